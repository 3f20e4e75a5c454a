package stories_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// small makes a repository on a file system of 40 MiB, a function that fills it up to some bytes, and one that frees
// it.
func (s *story) small(change ...func(*engine.Config)) (c *consumer, fill func(leaveBytes int64), free func()) {
	s.Helper()
	dir := s.TempDir()
	s.run("mount", "-t", "tmpfs", "-o", "size=40m,mode=777", "tmpfs", dir)
	s.Cleanup(func() { s.unmount(dir) })
	c = s.newConsumer("", dir, s.TempDir()+"/small.db", change...)
	s.consumers = []*consumer{c}
	s.consumer = c
	hog := filepath.Join(dir, "hog")
	fill = func(leaveBytes int64) {
		space, err := c.repo.Probe(s.ctx, "")
		s.must(err)
		s.run("fallocate", "-l", sprint(space.FreeBytes-leaveBytes), hog)
	}
	return c, fill, func() { s.must(os.Remove(hog)) }
}

// The repository fills up in the middle of a backup, at whatever step: the guest runs on, nothing is left, and the next
// backup is incremental once there is space.
func TestSpaceRunsOut(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.policy.OfflineIncremental = true
	full, leave := "", int64(0) // the step before which it fills up
	var fill func(int64)
	_, fill, free := s.small(func(c *engine.Config) {
		c.OnEvent = func(e engine.Event) {
			if e.Type == engine.EventStep && e.Step == full {
				full = ""
				fill(leave)
			}
		}
	})
	runsOut := func() {
		t.Helper()
		for _, full = range []string{"create folder", "create targets", "begin job", "save definition", "publish"} {
			step, state := full, s.state()
			leave = 0
			if step == "begin job" {
				leave = mib // so that the copying begins
			}
			s.fails(s.ctx, s.request(), kvmbackup.ErrNoSpace)
			if got := s.state(); got != state || full != "" {
				t.Errorf("%s: the guest is %v, was %v", step, got, state)
			}
			free()
		}
	}
	s.write("vda", 0x11, 0, 2)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 8)
	runsOut()
	s.write("vdb", 0x31, 0, 2)
	s.incremental()

	s.guest.Destroy()
	s.write("vda", 0x41, 2, 8)
	runsOut()
	s.incremental()
	s.restoreAll()
}

// Whatever little space is left, the backup fails or it restores: QEMU writes an image's tables last.
func TestSpaceForAllButTheTables(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	var fill func(int64)
	var free func()
	leave := int64(-1)
	_, fill, free = s.small(func(c *engine.Config) {
		c.OnEvent = func(e engine.Event) {
			switch {
			case e.Type != engine.EventStep || leave < 0:
			case e.Step == "begin job":
				fill(leave)
			case e.Step == "check targets", e.Step == "undo": // all the rest finds space
				leave = -1
				free()
			}
		}
	})
	s.write("vda", 0x11, 0, 2)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	failed := 0
	for space := int64(mib) - 32<<10; space <= mib+160<<10; space += 4 << 10 {
		s.write("vda", byte(space>>12), 1, 1)
		leave = space
		b, err := s.engine.Backup(s.ctx, s.request())
		if err == nil {
			t.Logf("%d bytes are enough", space)
			s.restore(s.consumer, taken{b, map[kvmbackup.VolumeID]*model{"vol-vda": s.guest.Model("vda").Snapshot()}})
			break
		}
		failed++
		s.wantErr(err, kvmbackup.ErrNoSpace)
	}
	t.Logf("%d backups failed", failed)
	if failed == 0 {
		t.Error("there was always space enough")
	}
	s.incremental()
	s.restoreAll()
}

// A backup for which there is no space isn't begun, and the refusal has the figures.
func TestPreflight(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	_, fill, free := s.small(func(c *engine.Config) { c.ReserveBytes = 4 * mib })
	s.write("vda", 0x11, 0, 2)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 8)
	fill(10 * mib)
	err := s.refuses(s.request(), kvmbackup.ErrNoSpace)
	var space *kvmbackup.SpaceError
	if !errors.As(err, &space) || space.NeedBytes < 8*mib || space.NeedBytes > 10*mib || space.FreeBytes > 10*mib ||
		space.ReserveBytes != 4*mib {
		t.Errorf("error is %+v", space)
	}
	free()
	s.incremental()

	// Full to the last byte, so that not even the probe's file fits.
	fill(0)
	s.refuses(s.request(), kvmbackup.ErrNoSpace)
	free()
	s.run("mount", "-o", "remount,ro", s.dir)
	s.refuses(s.request(), repository.ErrReadOnly)
	s.run("mount", "-o", "remount,rw", s.dir)
	s.incremental()
	s.restoreAll()

	// The share isn't mounted.
	s.unmount(s.dir)
	_, err = s.engine.Backup(s.ctx, s.request())
	s.wantErr(err, repository.ErrNotRepository)
	if files := s.files(s.dir); len(files) != 1 {
		t.Errorf("the empty mount point has %q", files)
	}
}

// compress replaces the stopped guest's image by a compressed one.
func (s *story) compress(device string) {
	s.Helper()
	image := s.guest.Image(device)
	s.run("qemu-img", "convert", "-q", "-c", "-O", "qcow2", image, image+".small")
	s.must(os.Chmod(image+".small", 0o666))
	s.must(os.Rename(image+".small", image))
}

// The image takes 1 MiB on the host and holds 64: the share is too small, which is said before anything is begun.
func TestPreflightOfACompressedImage(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	s := tell(t, config{Disks: []disk{{Device: "vda", SizeBytes: 128 * mib}}, Persistent: true})
	s.small()
	s.write("vda", 0x11, 0, 64)
	s.guest.Destroy()
	s.compress("vda")
	for _, running := range []bool{false, true} {
		if running {
			s.start()
		}
		var space *kvmbackup.SpaceError
		if err := s.refuses(s.request(), kvmbackup.ErrNoSpace); !errors.As(err, &space) || space.NeedBytes < 64*mib ||
			space.NeedBytes > 66*mib {
			t.Errorf("running %v: error is %+v", running, space)
		}
	}
	req := s.request()
	req.IgnoreSpace = true
	s.fails(s.ctx, req, kvmbackup.ErrNoSpace)
	s.guest.Snapshot("vda", "s1") // the compressed image is below now
	s.refuses(s.request(), kvmbackup.ErrNoSpace)
}

// A full of a thin disk by push has all of its tables, as QEMU writes a zero cluster for each hole. An incremental, and
// a full of the stopped VM, has what it needs.
func TestEstimateOfAThinImage(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	const size = 128 << 30
	for _, stopped := range []bool{false, true} {
		s := tell(t, config{Disks: []disk{{Device: "vda", SizeBytes: size}}, Persistent: true, Stopped: stopped})
		_, fill, free := s.small()
		s.policy.OfflineIncremental, s.policy.Transfer = true, kvmbackup.TransferPush
		room := int64(8 * mib)
		if stopped {
			room = 64 << 10
		}
		fill(room)
		s.refuses(s.request(), kvmbackup.ErrNoSpace)
		free()
		for _, full := range []bool{true, false} {
			p, err := s.engine.Plan(s.ctx, s.request())
			s.must(err)
			b, err := s.engine.Backup(s.ctx, s.request())
			s.must(err)
			info, err := os.Stat(s.repo.FilePath(b.Path, b.Volumes[0].File))
			if s.must(err); (b.Kind == kvmbackup.KindFull) != full || info.Size() > p.EstimateBytes ||
				info.Size() < p.EstimateBytes-mib {
				t.Errorf("stopped %v: %v of %d bytes, the plan said %d", stopped, b.Kind, info.Size(), p.EstimateBytes)
			}
			s.write("vda", 0x21, 5, 1)
		}
	}
}

// The repository's folder is gone.
func TestRepositoryGone(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	away := s.dir + ".away"
	s.must(os.Rename(s.dir, away))
	_, err := s.engine.Backup(s.ctx, s.request())
	s.wantErr(err, repository.ErrNotRepository)
	s.Log(err)
	if _, err := os.Lstat(s.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder was made again: %v", err)
	}
	s.must(os.Rename(away, s.dir))
	s.write("vda", 0x21, 1, 2)
	s.incremental()
	s.restoreAll()
}
