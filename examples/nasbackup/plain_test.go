package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/kvmbackup/kvmbackup"
	tools "github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// evil would clear a terminal, turn the direction of writing, and forge a line, of the one and of the other kind.
const evil = "\x1b[2J\u009b31m\u202ea\nmail: ok\r\x7f"

// TestHostileTexts: what is on the share or in a record reaches no terminal and no log as it is.
func TestHostileTexts(t *testing.T) {
	tools.Need(t, "qemu-img")
	f := newFixture(t)
	m := manifest("web", chainWeb, "55555555-0000-4000-8000-000000000005", 0)
	m.ChainID, m.Path, m.Sequence = "bbbbbbbb-0000-4000-8000-00000000000c", "web/2026.11.27.07.04.50", 9
	m.Reasons[0].Detail = evil
	f.publish(m)
	folder := filepath.Join(f.dir, "web", "2026.11.25.07.04.50")
	err := errors.Join(
		os.WriteFile(filepath.Join(folder, evil), nil, 0o600),
		os.Mkdir(filepath.Join(f.dir, "web", evil), 0o755),
		os.WriteFile(filepath.Join(f.dir, "web", "2026.11.24.07.04.50", repository.ManifestName), []byte(evil), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	failed := f.failedWith(evil)
	for _, args := range [][]string{
		{"import"}, {"list", "--all"}, {"show", string(m.ID)}, {"show", failed}, {"show", evil}, {"verify", "web/latest"},
		{"verify", web3},
		{"verify", "--all"}, {"restore", web3, "--to", t.TempDir()}, {"delete", web3}, {evil}, {"list", "--" + evil},
		{"doctor", evil},
	} {
		for _, more := range [][]string{nil, {"--json"}, {"--verbose"}, {"--json", "--verbose"}} {
			r := f.run(append(args, more...)...)
			if at := strings.IndexFunc(r.stdout+r.stderr, obeyed); at >= 0 {
				t.Errorf("nasbackup %q %q prints %q", args, more, (r.stdout + r.stderr)[at:])
			}
			if strings.Contains(r.stdout+r.stderr, "\nmail: ok") {
				t.Errorf("nasbackup %q %q prints a line of somebody else's", args, more)
			}
		}
	}
}

// obeyed tells what a terminal doesn't show.
func obeyed(r rune) bool {
	return r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r))
}

// failedWith records a failed backup as an earlier version, or another program with the same database, may have done.
func (f *fixture) failedWith(reason string) string {
	f.t.Helper()
	ctx, store := f.t.Context(), openRecords(f.t, f.dir, f.args[3])
	lease, err := store.AcquireLease(ctx, "web", "test", time.Minute)
	if err != nil {
		f.t.Fatal(err)
	}
	m := manifest("web", chainMail, "66666666-0000-4000-8000-000000000006", 0)
	m.Status, m.Path, m.Repository = kvmbackup.StatusRunning, "web/2026.11.28.07.04.50", f.id
	_, err = store.Begin(ctx, lease, m.Backup)
	if err = errors.Join(err, store.Fail(ctx, lease, m.ID, reason), store.ReleaseLease(ctx, lease)); err != nil {
		f.t.Fatal(err)
	}
	return string(m.ID)
}

// TestPlain: what is printed of a text that is fine stays as it is, in scripts for shells, too.
func TestPlain(t *testing.T) {
	var out bytes.Buffer
	for text, want := range map[string]string{"a\tb\n\nö\n": "a\tb\n\nö\n", "a\x1b[2J\r\n": `a\u001b[2J\u000d` + "\n"} {
		out.Reset()
		if n, err := (plain{&out}).Write([]byte(text)); n != len(text) || err != nil || out.String() != want {
			t.Errorf("%q: %q, %d, %v", text, out.String(), n, err)
		}
	}
}
