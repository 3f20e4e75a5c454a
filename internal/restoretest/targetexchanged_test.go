package restoretest_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// lead puts links to the victim in place of what a restore writes aside in the folder, once.
func lead(t testing.TB, dir, victim string) (links int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*-new"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := errors.Join(os.Rename(f, f+".aside"), os.Symlink(victim, f)); err != nil {
			t.Fatal(err)
		}
	}
	return len(files)
}

// TestTargetsExchanged: the owner of the folder into which somebody else restores puts a link in place of the file that
// is written, while it is, or before it is read back or gets its name. Where it leads nothing is written, nor are a
// mode and an owner changed; and what gets the name is what was written, or nothing.
func TestTargetsExchanged(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.chain(2, digests)[1]
	l.ok(l.h.Shutdown(vm))
	victim := filepath.Join(l.dir, "victim")
	l.ok(os.WriteFile(victim, []byte("the victim's"), 0o640))
	for _, when := range []string{"convert", "digest", "file digest"} {
		for name, req := range map[string]engine.RestoreRequest{
			"qcow2": {Backup: b.ID}, "raw": {Backup: b.ID, Format: qcow2.FormatRaw}, "in place": l.inPlace(b),
		} {
			dir := filepath.Join(l.dir, "images")
			if req.InPlace == nil {
				dir = l.out()
				req.Dir = dir
			}
			links := 0
			var once sync.Once
			l.images.before = func(call, _ string) error {
				if call == when {
					once.Do(func() { links = lead(t, dir, victim) })
				}
				return nil
			}
			_, err := l.engine.Restore(t.Context(), req)
			l.images.before = nil
			info, serr := os.Stat(victim)
			l.ok(serr)
			data, rerr := os.ReadFile(victim)
			l.ok(rerr)
			if string(data) != "the victim's" || info.Mode().Perm() != 0o640 {
				t.Errorf("%s, %s: the file behind the link is %q with mode %v", name, when, data, info.Mode())
			}
			if err != nil {
				l.fails(err, kvmbackup.ErrTargetExists)
			}
			files, gerr := os.ReadDir(dir)
			l.ok(gerr)
			for _, f := range files {
				if strings.HasSuffix(f.Name(), ".aside") {
					l.ok(os.Remove(filepath.Join(dir, f.Name())))
				} else if !f.Type().IsRegular() {
					t.Errorf("%s, %s: %s is left", name, when, f.Name())
				}
			}
			if reads := map[bool]string{false: "digest", true: "file digest"}[name == "raw"]; links != 1 &&
				(when == "convert" || when == reads) {
				t.Errorf("%s, %s: %d links were put there", name, when, links)
			}
		}
	}
}

// TestExchangedBeforePublication is the last instant at which a name can lead elsewhere.
func TestExchangedBeforePublication(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.chain(1, digests)[0]
	victim := filepath.Join(l.dir, "victim")
	l.ok(os.WriteFile(victim, []byte("the victim's"), 0o640))
	dir := l.out()
	headers := 0
	l.images.before = func(call, _ string) error {
		if call == "header" {
			if headers++; headers == 2 { // the look after the copy
				if lead(t, dir, victim) != 1 {
					t.Error("no file was exchanged")
				}
			}
		}
		return nil
	}
	r, err := l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
	l.images.before = nil
	if err != nil {
		l.fails(err, kvmbackup.ErrTargetExists)
		return
	}
	l.compare(r.Volumes, l.held[b.ID])
	if info, err := os.Lstat(r.Volumes[0].Path); err != nil || !info.Mode().IsRegular() {
		t.Errorf("what has the name: %v, %v", info, err)
	}
}
