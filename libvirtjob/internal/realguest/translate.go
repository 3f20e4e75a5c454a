//go:build cgo

package realguest

import (
	"bytes"
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// language is that of a Translated daemon. The messages come in it where the locale is any but C and, since glibc 2.39,
// C.UTF-8. So locale is the latter under another name; where it isn't there, as for a daemon that isn't translated, it
// means C.
const (
	language = "de"
	locale   = "de_DE.UTF-8"
)

// Translated is a Daemon that gives these messages in another language, as one does where the host's language isn't
// English.
func Translated(tb testing.TB, messages map[string]string) *Host {
	tb.Helper()
	return daemon(tb, func(h *Host) error {
		dir := filepath.Join(h.Root, "locale", language, "LC_MESSAGES")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.CopyFS(filepath.Join(h.Root, "locale", "de_DE.utf8"), os.DirFS("/usr/lib/locale/C.utf8")); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "libvirt.mo"), catalogue(messages), 0o644)
	})
}

// catalogue is a file of translations as gettext reads it: two tables, of the messages in order and of their
// translations, each with lengths and offsets of texts that end in a zero.
func catalogue(messages map[string]string) []byte {
	messages = maps.Clone(messages)
	messages[""] = "Content-Type: text/plain; charset=UTF-8\n"
	originals := slices.Sorted(maps.Keys(messages))
	const header = 28
	n := uint32(len(originals))
	var tables, texts bytes.Buffer
	put := func(text string) {
		_ = binary.Write(&tables, binary.NativeEndian, []uint32{uint32(len(text)), header + 16*n + uint32(texts.Len())})
		texts.WriteString(text + "\x00")
	}
	for _, o := range originals {
		put(o)
	}
	for _, o := range originals {
		put(messages[o])
	}
	var out bytes.Buffer
	_ = binary.Write(&out, binary.NativeEndian, []uint32{0x950412de, 0, n, header, header + 8*n, 0, header + 16*n})
	out.Write(tables.Bytes())
	out.Write(texts.Bytes())
	return out.Bytes()
}
