package restoretest_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// waiting is the name of what waits beside a restore's target, as the restores of that VM name it.
func waiting(path string, vm kvmbackup.VMID, what string) string {
	sum := sha256.Sum256([]byte(vm))
	return path + ".kvmbackup-" + hex.EncodeToString(sum[:4]) + "-" + what
}

// halting is qemu-img that stops at the end of every copy until it is told to go on.
type halting struct {
	engine.Images
	copied, next chan struct{}
}

func (h halting) Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error {
	err := h.Images.Convert(ctx, src, dst, o)
	close(h.copied)
	<-h.next
	return err
}

// halted begins a restore and returns when its copy is made. finish lets it go on and returns what became of it.
func (l *world) halted(req engine.RestoreRequest) (finish func() error) {
	l.Helper()
	h := halting{l.images, make(chan struct{}), make(chan struct{})}
	cfg := l.cfg
	cfg.Images = h
	e, err := engine.New(cfg)
	l.ok(err)
	done := make(chan error, 1)
	go func() {
		_, err := e.Restore(l.Context(), req)
		done <- err
	}()
	select {
	case <-h.copied:
	case err := <-done:
		l.Fatalf("ended before its copy: %v", err)
	}
	return func() error {
		close(h.next)
		return <-done
	}
}

// another makes a second VM with one disk, whose volume is v-sda, and takes a backup of it.
func (l *world) another(name string) kvmbackup.Backup {
	l.Helper()
	l.ok(l.h.Define(kvmbackuptest.Domain{Name: name, Disks: []kvmbackuptest.Disk{l.disk("sda", disk)}}))
	l.ok(l.h.Start(name))
	l.ok(l.h.Write(name, "sda", 0, kvmbackuptest.Pattern(4711, 5*cluster)))
	content, err := l.h.Content(name, "sda")
	l.ok(err)
	b, err := l.engine.Backup(l.Context(), engine.BackupRequest{
		VM: kvmbackup.VMID(name), Volumes: []engine.Volume{volume("sda")},
	})
	l.ok(err)
	l.held[b.ID] = contents{"v-sda": content}
	return b
}

// TestTwoVMsToOnePath: of two restores to one new path, in whatever order they end, the first succeeds, with its own
// content, and the other says that the path is taken.
func TestTwoVMsToOnePath(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	ours := l.backup()
	theirs := l.another("vm2")
	for _, oursFirst := range []bool{true, false} {
		dir := l.out()
		path := filepath.Join(dir, "restored.qcow2")
		us, them := l.halted(one(ours, "v-vda", path)), l.halted(one(theirs, "v-sda", path))
		first, second, want := us, them, l.held[ours.ID]["v-vda"]
		if !oursFirst {
			first, second, want = them, us, l.held[theirs.ID]["v-sda"]
		}
		l.ok(first())
		l.fails(second(), kvmbackup.ErrTargetExists)
		l.holds(path, qcow2.FormatQcow2, want)
		l.ok(os.Remove(path))
		l.empty(dir)
	}
}

// TestWhatWaitsForAnotherVM is neither put back nor removed by a restore or a recovery.
func TestWhatWaitsForAnotherVM(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.backup()
	l.ok(l.h.Shutdown(vm))
	image := l.source("vda")
	foreign := []string{waiting(image, "vm2", "new"), waiting(image, "vm2", "old")}
	for _, path := range foreign {
		l.ok(os.WriteFile(path, []byte("another VM's"), 0o600))
	}
	l.ok(os.Remove(image))
	_, err := l.engine.Recover(t.Context(), engine.Target{VM: vm, Domain: vm})
	l.ok(err)
	if _, err := os.Stat(image); !os.IsNotExist(err) {
		t.Errorf("something was put back: %v", err)
	}
	l.restore(l.inPlace(b))
	for _, path := range foreign {
		data, err := os.ReadFile(path)
		l.ok(err)
		if string(data) != "another VM's" {
			t.Errorf("%s holds %q", path, data)
		}
	}
}

// TestLongImageName: an image may have as long a name as its file system allows. What waits beside it has a shorter one
// then.
func TestLongImageName(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.backup()
	dir := l.out()
	path := filepath.Join(dir, strings.Repeat("ä", 124)+".qcow2")
	l.ok(l.h.Shutdown(vm))
	l.ok(l.h.Detach(vm, "vda"))
	l.ok(l.h.Attach(vm, kvmbackuptest.Disk{Device: "vda", Source: path, SizeBytes: disk}))
	l.restore(l.inPlace(b))
	l.restore(one(b, "v-vda", filepath.Join(l.out(), filepath.Base(path))))
	left, err := os.ReadDir(dir)
	l.ok(err)
	if len(left) != 1 {
		t.Errorf("there: %v", left)
	}
}
