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
)

// exchangeAtCopy puts other bytes in place of a file as the first copy begins, when all files have been verified.
func (l *world) exchangeAtCopy(path string, other []byte) {
	var once sync.Once
	l.images.before = func(call, _ string) (err error) {
		if call == "convert" {
			once.Do(func() { err = os.WriteFile(path, other, 0o600) })
		}
		return err
	}
}

// TestExchangedDuringTheCopy: a restore that read another file than the one it had verified fails, and leaves nothing.
func TestExchangedDuringTheCopy(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	chain := l.chain(3)
	other := l.backup(full)
	l.write("vda", 0, 12)
	larger := l.backup(full)
	l.ok(l.h.Shutdown(vm))
	before := l.now()
	for i, b := range chain {
		path := l.file(b, "v-vda")
		good, err := os.ReadFile(path)
		l.ok(err)
		for name, from := range map[string]kvmbackup.Backup{"another full": larger, "a full where none is wanted": other} {
			if i == 0 && from.ID == other.ID {
				continue
			}
			bad, err := os.ReadFile(l.file(from, "v-vda"))
			l.ok(err)
			dir := l.out()
			l.exchangeAtCopy(path, bad)
			_, err = l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: chain[2].ID, Dir: dir})
			if err == nil {
				t.Errorf("position %d, %s: the restore succeeded", i, name)
				continue
			}
			l.fails(err, kvmbackup.ErrDamaged)
			l.empty(dir)
			l.ok(os.WriteFile(path, good, 0o600))

			l.exchangeAtCopy(path, bad)
			_, err = l.engine.Restore(t.Context(), l.inPlace(chain[2]))
			l.fails(err, kvmbackup.ErrDamaged)
			l.tidy()
			l.sees(before)
			l.ok(os.WriteFile(path, good, 0o600))
		}
	}
	l.images.before = nil
	l.restore(engine.RestoreRequest{Backup: chain[2].ID})
}

// TestRenamedAfterVerification: what was verified is what is copied, served and compared, whatever has its name by
// then, and none of what is put there instead is opened.
func TestRenamedAfterVerification(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	chain := l.chain(3, digests)
	top := chain[2]
	secret := filepath.Join(l.dir, "secret")
	run(t, "mkfifo", secret) // whatever opens it never comes back
	evil := filepath.Join(l.dir, "evil.qcow2")
	l.external(evil, secret)
	for i, b := range chain {
		path := l.file(b, "v-vda")
		var once sync.Once
		away := func(when string) {
			once = sync.Once{}
			l.images.before = func(call, _ string) (err error) {
				if call == when {
					once.Do(func() {
						data, rerr := os.ReadFile(evil)
						err = errors.Join(rerr, os.Rename(path, path+".aside"), os.WriteFile(path, data, 0o600))
					})
				}
				return err
			}
		}
		back := func() {
			l.images.before = nil
			l.ok(os.Rename(path+".aside", path))
		}
		for _, when := range []string{"check", "convert"} {
			away(when)
			l.restore(engine.RestoreRequest{Backup: top.ID})
			back()
		}
		away("check")
		l.verified(top, true)
		back()
		t.Logf("position %d", i)
	}
}

// TestFolderExchangedBeforeTheTargetsAreChecked: what a backup has written is checked and hashed in the files that were
// made, whatever folder has their folder's name meanwhile.
func TestFolderExchangedBeforeTheTargetsAreChecked(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	l.backup(full, digests)
	other := filepath.Join(l.nas, "other")
	l.ok(os.Mkdir(other, 0o755))
	l.image(filepath.Join(other, "root.v-vda.qcow2"), 2*disk, "") // another VM's file of that name
	back := func() {}
	l.images.before = func(call, path string) error {
		dir := filepath.Dir(path)
		switch {
		case call == "header" && strings.Contains(dir, ".partial-"):
			back = func() { l.ok(errors.Join(os.Remove(dir), os.Rename(dir+".x", dir))) }
			return errors.Join(os.Rename(dir, dir+".x"), os.Symlink(other, dir))
		case call == "check":
			back()
			back = func() {}
		}
		return nil
	}
	l.write("vda", 3, 2)
	b := l.backup(full, digests)
	l.images.before = nil
	l.restore(engine.RestoreRequest{Backup: b.ID})
}
