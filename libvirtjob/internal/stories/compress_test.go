package stories_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// A chain of pushed, compressed and plain backups, of the VM running and stopped. Compressed ones are compressed, and
// plain qemu-img restores the lot.
func TestCompressedChain(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	repository := lab.Tmpfs(t, "size=256m") // apart from the scratch
	s.must(os.Chmod(repository, 0o777))
	scratch := t.TempDir()
	c := s.newConsumer("", repository, filepath.Join(t.TempDir(), "db"), func(c *engine.Config) {
		c.Scratch = []string{scratch}
	})
	take := func(way kvmbackup.Transfer, how kvmbackup.Compression) kvmbackup.Backup {
		t.Helper()
		for range 4 { // so that every backup has something of each MiB
			s.write("vda", byte(rand.N(255)+1), rand.Int64N(8), 2) //nolint:gosec // test data
		}
		req := s.request()
		req.Policy = kvmbackup.Policy{FullEvery: 100, OfflineIncremental: true, Compression: how}
		if way != kvmbackup.TransferOffline {
			req.Policy.Transfer = way
		}
		b := s.backupBy(c, req)
		if b.Transfer != way || b.Volumes[0].Compression != how {
			t.Errorf("backed up by %v with %q, want %v, %q", b.Transfer, b.Volumes[0].Compression, way, how)
		}
		if v := b.Volumes[0]; how != "" && v.StoredSize > v.DirtyBytes/2+1<<20 {
			t.Errorf("%d bytes are stored of %d", v.StoredSize, v.DirtyBytes)
		}
		info, err := c.images.Info(s.ctx, c.repo.FilePath(b.Path, b.Volumes[0].File), qcow2.InfoOptions{})
		if s.must(err); (info.CompressionType == "zstd") != (how != "") {
			t.Errorf("the file has %q", info.CompressionType)
		}
		return b
	}
	take(kvmbackup.TransferPull, kvmbackup.CompressionZstd)
	take(kvmbackup.TransferPush, "")
	take(kvmbackup.TransferPull, kvmbackup.CompressionZstd)
	s.guest.Destroy()
	take(kvmbackup.TransferOffline, kvmbackup.CompressionZstd)
	last := take(kvmbackup.TransferOffline, "")
	if last.Position != 4 {
		t.Errorf("the last is at %d", last.Position)
	}
	s.restoreAll()
	out := filepath.Join(t.TempDir(), "out.raw")
	file := c.repo.FilePath(last.Path, last.Volumes[0].File)
	if text, err := exec.Command("qemu-img", "convert", "-O", "raw", file, out).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	was := c.taken[len(c.taken)-1].content[last.Volumes[0].VolumeID].Path()
	s.must(c.images.Compare(s.ctx, was, out, qcow2.CompareOptions{FormatA: qcow2.FormatRaw, FormatB: qcow2.FormatRaw}))
}
