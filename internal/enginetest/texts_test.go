package enginetest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// TestHostileNames: a diagnosis quotes names from the share, and what it says is of lines that are its own.
func TestHostileNames(t *testing.T) {
	w := newWorld(t)
	w.build("A")
	const name = "\x1b[2J\u009b1m\u202e\n  healthy"
	lab.OK(t, os.Mkdir(filepath.Join(w.dir, string(lab.VM), name), 0o755))
	h := kvmbackuptest.NewHypervisor()
	lab.OK(t, h.Define(kvmbackuptest.Domain{
		Name: lab.VM.String(), Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 20}},
	}))
	d, err := w.newEngine(engine.Config{Executor: h.Executor(), Images: kvmbackuptest.Images{}}).
		Inspect(t.Context(), engine.Target{VM: lab.VM})
	lab.OK(t, err)
	text := d.String()
	lab.Equal(t, "named", strings.Contains(text, `\u001b[2J\u009b1m\u202e\u000a  healthy`), true)
	for _, r := range text {
		if r != '\n' && !unicode.IsGraphic(r) {
			t.Errorf("%q is in %q", r, text)
		}
	}
}

// saysEvil has an agent that answers with an escape sequence.
type saysEvil struct{ kvmbackup.Executor }

func (saysEvil) Freeze(context.Context, kvmbackup.DomainRef) (int, error) {
	return 0, fmt.Errorf("%w: \x1b[2J\u009b1m", kvmbackup.ErrNoAgent)
}

// TestHostileReasons: what a store is given to keep is printable, wherever it comes from.
func TestHostileReasons(t *testing.T) {
	w := newWorld(t)
	h := kvmbackuptest.NewHypervisor()
	lab.OK(t, h.Define(kvmbackuptest.Domain{
		Name: lab.VM.String(), Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 20}},
	}))
	lab.OK(t, h.Start(lab.VM.String()))
	e := w.newEngine(engine.Config{Executor: saysEvil{h.Executor()}, Images: kvmbackuptest.Images{}})
	b, err := e.Backup(t.Context(), engine.BackupRequest{VM: lab.VM, Quiesce: engine.QuiesceTry})
	lab.OK(t, err)
	recorded, err := w.store.Backup(t.Context(), b.ID)
	lab.OK(t, err)
	m, err := w.repo.ReadManifest(t.Context(), b.Path)
	lab.OK(t, err)
	for where, reasons := range map[string][]kvmbackup.Reason{"record": recorded.Reasons, "manifest": m.Reasons} {
		said := false
		for _, r := range reasons {
			said = said || strings.Contains(r.Detail, `\u001b[2J`)
			lab.Equal(t, where, strings.ContainsFunc(r.Detail, unicode.IsControl), false)
		}
		lab.Equal(t, "the agent's words in the "+where, said, true)
	}
}
