package stories_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// countedShare is a file system whose disk counts what is read of it: what the page cache gives isn't counted.
type countedShare struct {
	*story
	dir, device string
}

func newCountedShare(s *story, mebibytes int64) countedShare {
	s.Helper()
	lab.Need(s.T, "mkfs.ext4", "mount", "umount")
	image, share := filepath.Join(s.TempDir(), "share.img"), countedShare{story: s, dir: s.TempDir()}
	s.must(os.WriteFile(image, nil, 0o600))
	s.must(os.Truncate(image, mebibytes*mib))
	share.device = lab.LoopDevice(s.T, image)
	s.tool("mkfs.ext4", "-q", "-m", "0", share.device)
	s.tool("mount", share.device, share.dir)
	s.Cleanup(func() {
		lab.Eventually(s.T, "the share is unmounted", func() bool { return syscall.Unmount(share.dir, 0) == nil })
	})
	return share
}

// read is how many bytes were read so far.
func (c countedShare) read() int64 {
	c.Helper()
	text, err := os.ReadFile("/sys/block/" + filepath.Base(c.device) + "/stat")
	c.must(err)
	var requests, merged, sectors int64
	_, err = fmt.Sscan(string(text), &requests, &merged, &sectors)
	c.must(err)
	return sectors * 512
}

// forget takes the files out of the page cache, as others that fill the memory do.
func (c countedShare) forget() {
	c.Helper()
	const dontNeed = 4
	c.must(filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = f.Sync()
		if _, _, failed := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0); failed != 0 {
			err = errors.Join(err, failed)
		}
		return errors.Join(err, f.Close())
	}))
}

// TestSealedChainIsReadOnce: a restore of a sealed chain to new files reads each byte once of the share, although it
// compares the files with their digests, and although the page cache keeps nothing of what was read before the copy. A
// changed byte anywhere is found all the same: no file gets its name, and nothing is written to a device.
func TestSealedChainIsReadOnce(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	w := newSealedWorld(t, config{Disks: []disk{{Device: "vda", SizeBytes: 128 * mib}}, Persistent: true})
	share := newCountedShare(w.story, 512)
	w.nas = filepath.Join(share.dir, "nas")
	w.must(os.Mkdir(w.nas, 0o777))
	w.must(os.Chmod(share.dir, 0o777))
	w.must(os.Chmod(w.nas, 0o777))
	c := w.host(w.private, kvmbackup.DataKey{})
	w.write("vda", 1, 2, 100)
	chain := []kvmbackup.Backup{w.take(c, kvmbackup.KindFull, -1, nil)}
	for i := range int64(2) {
		w.write("vda", byte(2+i), 10+20*i, 4)
		chain = append(chain, w.take(c, kvmbackup.KindIncremental, 4, nil))
	}
	last := chain[2]

	stored := int64(0)
	for _, b := range chain {
		stored += b.StoredBytes()
	}
	c.cfg.OnEvent = func(e engine.Event) {
		if e.Type == engine.EventStep && e.Step == "copy" {
			share.forget()
		}
	}
	var err error
	c.engine, err = engine.New(c.cfg)
	w.must(err)
	share.forget()
	before, began := share.read(), time.Now()
	w.restore(c, c.taken[2])
	w.unproved = 0
	read := share.read() - before
	t.Logf("%d KiB are read of %d, in %v with a comparison of the content", read>>10, stored>>10, time.Since(began))
	if read < stored*9/10 || read > stored*11/10 {
		t.Errorf("%d bytes are read of a chain of %d", read, stored)
	}

	blank := filepath.Join(t.TempDir(), "device.img")
	lab.CreateImage(t, "-f", "raw", blank, sprint(128*mib))
	device := lab.LoopDevice(t, blank)
	for _, b := range chain {
		v, _ := b.Volume("vol-vda")
		file := filepath.Join(w.nas, filepath.FromSlash(b.Path), v.File)
		for what, at := range map[string]int64{"data": v.StoredSize - 3*mib/2, "the container's header": 200} {
			w.flipped(file, at, func() {
				w.refusesChanged(c, what, file, engine.RestoreRequest{Backup: last.ID, Dir: w.TempDir()})
				w.refusesChanged(c, what, file, engine.RestoreRequest{Backup: last.ID,
					Volumes: []engine.RestoreVolume{{ID: v.VolumeID, Path: device, Format: qcow2.FormatRaw}}})
			})
		}
	}
	data, err := os.ReadFile(device)
	w.must(err)
	if len(bytes.Trim(data, "\x00")) > 0 {
		t.Error("a device was written to")
	}
}

// refusesChanged wants a restore to name the changed file, and to leave nothing.
func (w *sealedWorld) refusesChanged(c *consumer, what, file string, req engine.RestoreRequest) {
	w.Helper()
	_, err := c.engine.Restore(w.ctx, req)
	if !errors.Is(err, kvmbackup.ErrDamaged) || !strings.Contains(err.Error(), file) {
		w.Errorf("a byte of %s of %s is changed: %v", what, file, err)
	}
	if req.Dir == "" {
		return
	}
	if left, err := os.ReadDir(req.Dir); err != nil || len(left) > 0 {
		w.Errorf("a byte of %s of %s is changed, and left are %v, %v", what, file, left, err)
	}
}
