package restoretest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestOpenOverlays writes into overlays, while backups go on, and closes them in another process.
func TestOpenOverlays(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	chain := l.chain(3)
	b := chain[1]
	sums := l.sums(chain)
	opened, err := l.engine.Open(t.Context(), engine.OpenRequest{Backup: b.ID, Dir: l.out(), Purpose: "boot test"})
	l.ok(err)
	if len(opened.Volumes) != 2 || len(l.get(b.ID).Holds) != 1 {
		t.Fatalf("opened %+v, holds %v", opened, l.get(b.ID).Holds)
	}
	for _, v := range opened.Volumes {
		c, err := kvmbackuptest.ReadChain(v.Path)
		l.ok(err)
		if diff := c.Diff(l.held[b.ID][v.VolumeID]); diff != "" {
			t.Errorf("overlay of %s: %s", v.VolumeID, diff)
		}
		if v.Format != qcow2.FormatQcow2 || v.VirtualSize != disk {
			t.Errorf("opened %+v", v)
		}
		run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 0 256k", v.Path)
		run(t, "qemu-io", "-f", "qcow2", "-c", "read -P 0x5a 0 256k", v.Path)
	}
	if l.sums(chain) != sums {
		t.Error("writing into an overlay changed the repository")
	}
	_, err = l.engine.Open(t.Context(), engine.OpenRequest{Backup: b.ID, Dir: filepath.Dir(opened.Volumes[0].Path)})
	l.fails(err, kvmbackup.ErrTargetExists)
	if n := len(l.get(b.ID).Holds); n != 1 {
		t.Fatalf("%d holds after a refused open", n)
	}

	l.open() // the host program was restarted
	l.write("vda", 2, 1)
	l.backup()
	for i := len(chain) - 1; i >= 0; i-- {
		_, err := l.engine.Delete(t.Context(), chain[i].ID, kvmbackup.DeleteOptions{})
		l.ok(err)
	}
	for _, v := range opened.Volumes {
		run(t, "qemu-img", "check", "-q", v.Path)
		if _, err := kvmbackuptest.ReadChain(v.Path); err != nil {
			t.Errorf("the chain below %s: %v", v.Path, err)
		}
	}
	last, err := l.engine.List(t.Context(), kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted},
	})
	l.ok(err)
	_, err = l.engine.Delete(t.Context(), last[0].ID, kvmbackup.DeleteOptions{})
	l.ok(err)
	if got := l.get(b.ID).Status; got != kvmbackup.StatusDeletePending {
		t.Fatalf("the open backup is %v", got)
	}
	l.ok(opened.Close(t.Context()))
	if left, err := l.engine.List(t.Context(), kvmbackup.Query{VM: vm}); err != nil || len(left) > 0 {
		t.Errorf("left after the close: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(l.nas, vm)); !os.IsNotExist(err) {
		t.Errorf("the VM's folder: %v", err)
	}
}

// sums are the digests of all files of a chain.
func (l *world) sums(chain []kvmbackup.Backup) string {
	l.Helper()
	var all string
	for _, b := range chain {
		for _, v := range b.Volumes {
			sum, err := l.images.FileDigest(l.Context(), l.file(b, v.VolumeID))
			l.ok(err)
			all += sum + "\n"
		}
	}
	return all
}

// TestBrowse compares what is served over NBD with what the guest saw.
func TestBrowse(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(3)[1]
	raw := l.restore(engine.RestoreRequest{Backup: b.ID, Format: qcow2.FormatRaw})
	for _, v := range raw.Volumes {
		dir, err := os.MkdirTemp("", "nbd") //nolint:usetesting // a socket's path must be short
		l.ok(err)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		br, err := l.engine.Browse(t.Context(), b.ID, v.VolumeID, filepath.Join(dir, "s"))
		l.ok(err)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", v.Path, "nbd+unix:///?socket="+br.Socket)
		if holds := l.get(b.ID).Holds; len(holds) != 1 || holds[0].ID != br.HoldID {
			t.Errorf("holds %v", holds)
		}
		_, err = l.engine.Browse(t.Context(), b.ID, v.VolumeID, br.Socket)
		l.fails(err, kvmbackup.ErrTargetExists)
		l.ok(br.Close(t.Context()))
		l.ok(br.Close(t.Context()))
		l.empty(dir)
		if holds := l.get(b.ID).Holds; len(holds) != 0 {
			t.Errorf("holds after the close: %v", holds)
		}
	}
}

// TestBrowseFollowsNoLinks: a link that is rewritten after the chain was verified leads nowhere.
func TestBrowseFollowsNoLinks(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.chain(3)[2]
	raw := l.restore(engine.RestoreRequest{Backup: b.ID, Format: qcow2.FormatRaw}).Volumes[0]
	other := filepath.Join(l.dir, "other.qcow2")
	l.image(other, disk, "")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 0 1M", other)
	l.images.before = func(call, path string) error {
		if call == "serve" {
			run(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", other, path)
		}
		return nil
	}
	dir, err := os.MkdirTemp("", "nbd") //nolint:usetesting // a socket's path must be short
	l.ok(err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	br, err := l.engine.Browse(t.Context(), b.ID, "v-vda", filepath.Join(dir, "s"))
	l.ok(err)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw.Path, "nbd+unix:///?socket="+br.Socket)
	l.ok(br.Close(t.Context()))
}

// TestOpenAndBrowseRefuse what can't be opened, and leave neither files nor holds.
func TestOpenAndBrowseRefuse(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.backup()
	dir := l.out()
	for _, c := range []struct {
		req  engine.OpenRequest
		want error
	}{
		{engine.OpenRequest{Backup: b.ID}, kvmbackup.ErrInvalid},
		{engine.OpenRequest{Backup: b.ID, Dir: dir, Volumes: []kvmbackup.VolumeID{"v-none"}}, kvmbackup.ErrNoVolume},
		{engine.OpenRequest{Backup: b.ID, Dir: filepath.Join(dir, "none")}, os.ErrNotExist},
		{engine.OpenRequest{Backup: kvmbackup.NewBackupID(), Dir: dir}, kvmbackup.ErrNotFound},
	} {
		_, err := l.engine.Open(t.Context(), c.req)
		l.fails(err, c.want)
	}
	_, err := l.engine.Browse(t.Context(), b.ID, "v-none", filepath.Join(dir, "s"))
	l.fails(err, kvmbackup.ErrNoVolume)
	_, err = l.engine.Browse(t.Context(), b.ID, "v-vda", filepath.Join(dir, "none", "s"))
	l.fails(err)
	l.empty(dir)
	if holds := l.get(b.ID).Holds; len(holds) != 0 {
		t.Errorf("holds %v", holds)
	}
}
