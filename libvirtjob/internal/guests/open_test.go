//go:build cgo

package guests_test

import (
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestOpen: a guest runs from a restore point without a copy. The chain stays as it is; it outlives its deletion, and a
// restart of the host, until the restore point is closed.
func TestOpen(t *testing.T) {
	lab.Further(t)
	g := needGuest(t)
	dir := t.TempDir()
	repo := filepath.Join(dir, "repository")
	restart := func() *bench {
		return newBench(t, func(c *engine.Config) {
			c.Store = fileStore(t, filepath.Join(dir, "backups.db"))
			c.Repository = newRepository(t, repo)
		})
	}
	b := restart()
	req := engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceRequire}
	full := b.backup(req)
	sum := g.write("/vda/opened", 2)
	incr := b.backup(req)
	g.run("rm /vda/opened")

	before := digests(t, repo)
	opened, err := b.engine.Open(b.ctx, engine.OpenRequest{Backup: incr.ID, Dir: t.TempDir(), Purpose: "look into it"})
	b.must(err)
	c := b.bootCopy(g, incr, opened.Volumes)
	if got := c.sum("/vda/opened"); got != sum {
		t.Errorf("checksum in the opened guest is %s, want %s", got, sum)
	}
	c.write("/vda/new", 2)
	c.run("sync")

	b = restart()
	for _, id := range []kvmbackup.BackupID{incr.ID, full.ID} {
		_, err := b.engine.Delete(b.ctx, id, kvmbackup.DeleteOptions{})
		b.must(err)
		if got, err := b.engine.Get(b.ctx, id); err != nil || got.Status != kvmbackup.StatusDeletePending {
			t.Errorf("the deleted backup is %v, %v", got.Status, err)
		}
	}
	if now := digests(t, repo); now != before {
		t.Errorf("the repository has changed from\n%s to\n%s", before, now)
	}
	c.run("echo 3 >/proc/sys/vm/drop_caches; sha256sum /vda/opened")
	destroy(connection(t), c.name)
	b.must(opened.Close(b.ctx))
	for _, id := range []kvmbackup.BackupID{incr.ID, full.ID} {
		_, err := b.engine.Get(b.ctx, id)
		b.wantErr(err, kvmbackup.ErrNotFound)
	}
	if left := digests(t, repo); left != "" {
		t.Errorf("left in the repository:\n%s", left)
	}
}

// digests lists the volumes' files in the repository with their checksums.
func digests(t *testing.T, repo string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repo, "*", "*", "*.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		return ""
	}
	return command(t, "sha256sum", files...)
}

// TestBrowse: a restore point's volume is served over NBD, read-only, with the content that a restore would give.
func TestBrowse(t *testing.T) {
	g := needGuest(t)
	lab.Need(t, "qemu-nbd", "qemu-io")
	b := newBench(t, nil)
	req := engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceRequire}
	b.backup(req)
	sum := g.write("/vda/browsed", 1)
	bk := b.backup(req)
	raw := b.restore(bk.ID, qcow2.FormatRaw)["vda"]
	wantFiles(t, raw, map[string]string{"browsed": sum})

	socket := filepath.Join(g.dir, "nbd")
	br, err := b.engine.Browse(b.ctx, bk.ID, bk.Volumes[0].VolumeID, socket)
	b.must(err)
	url := "nbd+unix:///?socket=" + socket
	t.Log(command(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", url, raw))
	var exit *exec.ExitError
	if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", url).
		CombinedOutput(); !errors.As(err, &exit) {
		t.Errorf("the export can be written: %s", out)
	}
	_, err = b.engine.Delete(b.ctx, bk.ID, kvmbackup.DeleteOptions{})
	b.must(err)
	b.must(br.Close(b.ctx))
	_, err = b.engine.Get(b.ctx, bk.ID)
	b.wantErr(err, kvmbackup.ErrNotFound)
}
