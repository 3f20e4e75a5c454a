package libvirtjob_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// newPull is newBench for pull jobs.
func newPull(t *testing.T, cfg realguest.Config) *bench {
	t.Helper()
	t.Parallel()
	b := newBench(t, cfg)
	b.way = kvmbackup.TransferPull
	return b
}

// underWay begins a job that takes a minute, and waits until it copies.
func (b *bench) underWay(dir string, volumes ...kvmbackup.JobVolume) (kvmbackup.Job, kvmbackup.JobSpec) {
	b.Helper()
	spec := b.spec("c2", "c1", volumes...)
	spec.Dir, spec.BandwidthBytes = dir, 1<<20
	job := b.begin(spec)
	b.copies(job)
	return job, spec
}

func (b *bench) copies(job kvmbackup.Job) {
	b.Helper()
	lab.Eventually(b, "the job copies", func() bool { return libvirtjob.Copied(job) > 0 })
}

// undone drops the checkpoint of a job that has failed, and makes sure that nothing is left of it and that the next
// backup is an incremental.
func (b *bench) undone(job kvmbackup.Job, spec kvmbackup.JobSpec) {
	b.Helper()
	b.must(job.Abort(b.ctx))
	if got := b.inspect().Job; got != kvmbackup.JobNone {
		b.Errorf("job is %v", got)
	}
	b.must(job.Close(b.ctx))
	b.drop(string(spec.Checkpoint))
	if files := realguest.Files(b.room); len(files) > 0 {
		b.Errorf("left in the scratch: %q", files)
	}
	for _, v := range spec.Volumes {
		if err := os.Remove(filepath.Join(spec.Dir, v.File)); err != nil && !errors.Is(err, os.ErrNotExist) {
			b.Error(err)
		}
	}
	b.guest.Write("vda", 0x77, 0, 1<<20)
	b.backup("next", "c1", incr("vda"))
}

// tracked is a guest with much to copy since its full.
func tracked(t *testing.T) *bench {
	t.Helper()
	b := newPull(t, realguest.Config{Disks: disks("vda")})
	b.backup("c1", "", full("vda"))
	b.guest.Write("vda", 0x22, 0, 64<<20)
	return b
}

func TestPullOfRawDisks(t *testing.T) {
	lab.Further(t)
	b := newPull(t, realguest.Config{Disks: []realguest.Disk{{Device: "vda", Format: "raw"}, {Device: "vdb"}}})
	b.guest.Write("vda", 0x11, 4096, 10<<20)
	b.guest.Write("vdb", 0x22, 0, 1<<20)
	result := b.backup("c1", "", untracked(full("vda")), full("vdb"))
	if result.Transfer != kvmbackup.TransferPull {
		t.Errorf("result is %+v", result)
	}
	b.guest.Write("vda", 0x33, 0, 5<<20)
	b.guest.Write("vdb", 0x44, 0, 4096)
	b.backup("c2", "c1", untracked(full("vda")), incr("vdb"))
}

// What the guest writes while a job copies goes to the scratch, and not into the backup.
func TestPullIsOneInstant(t *testing.T) {
	b := tracked(t)
	job, spec := b.underWay(b.dir, incr("vda"))
	model := b.guest.Model("vda").Snapshot()
	for i := range int64(16) {
		b.guest.Write("vda", byte(i), i*4<<20, 3<<20)
	}
	b.must(job.SetBandwidth(b.ctx, 0))
	_, err := job.Wait(b.ctx, nil)
	b.must(err)
	model.Compare(t, filepath.Join(b.dir, spec.Volumes[0].File))
	b.last["vda"] = spec.Volumes[0].File
	b.must(job.Close(b.ctx))
	b.backup("c3", "c2", incr("vda"))
}

// A repository that is dead in mid-job, with writers that wait in the kernel and can't be killed, costs the guest
// nothing, and the job is aborted at once.
func TestPullToADeadRepository(t *testing.T) {
	lab.NeedRoot(t)
	b := tracked(t)
	share, freeze := freezable(t)
	job, spec := b.underWay(share, incr("vda"))
	thaw := freeze()
	b.must(job.SetBandwidth(b.ctx, 0)) // all workers run into it
	began := time.Now()
	for i := range int64(16) {
		b.guest.Write("vda", byte(i), i*4<<20, 1<<20)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the guest's writes took %v", took)
	}
	began = time.Now()
	b.must(job.Abort(b.ctx))
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the abort took %v", took)
	} else {
		t.Logf("the abort took %v", took)
	}
	if got := b.inspect().Job; got != kvmbackup.JobNone {
		t.Errorf("job is %v", got)
	}
	_, err := job.Wait(b.ctx, nil)
	b.wantErr(err, kvmbackup.ErrJobFailed)
	thaw()
	b.undone(job, spec)
}

// freezable is a mount that can die.
func freezable(t *testing.T) (dir string, freeze func() (thaw func())) {
	t.Helper()
	image, mnt := filepath.Join(t.TempDir(), "image"), t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
	}
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 256<<20)); err != nil {
		t.Fatal(err)
	}
	run("mkfs.ext4", "-q", image)
	run("mount", "-o", "loop", image, mnt)
	t.Cleanup(func() { run("umount", "-l", mnt) })
	return mnt, func() func() {
		run("fsfreeze", "-f", mnt)
		frozen := true
		thaw := func() {
			if frozen {
				frozen = false
				run("fsfreeze", "-u", mnt)
			}
		}
		t.Cleanup(thaw)
		return thaw
	}
}

// Whatever ends in mid-job ends the job, which has failed with its cause, and the next one is an incremental.
func TestPullIsCutShort(t *testing.T) {
	lab.Further(t)
	for name, c := range map[string]struct {
		cut  func(*bench, kvmbackup.Job)
		want string
	}{
		"by hand": {func(b *bench, _ kvmbackup.Job) { b.must(b.guest.Domain().AbortJob()) }, ""},
		"the daemon is killed": {func(b *bench, j kvmbackup.Job) {
			b.must(syscall.Kill(libvirtjob.DaemonPID(j), syscall.SIGKILL))
		}, "qemu-storage-daemon"},
		"the exports are removed": {func(b *bench, _ kvmbackup.Job) { b.guest.QMP("nbd-server-stop", nil, nil) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := tracked(t)
			job, spec := b.underWay(b.dir, incr("vda"))
			c.cut(b, job)
			began := time.Now()
			_, err := job.Wait(b.ctx, nil)
			b.wantErr(err, kvmbackup.ErrJobFailed)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			t.Log(err)
			b.undone(job, spec)
		})
	}
}

// A waiting that ends, and a closing, end libvirt's job, too: nobody would watch its scratch.
func TestPullIsLeft(t *testing.T) {
	for name, leave := range map[string]func(*bench, kvmbackup.Job) error{
		"wait": func(b *bench, j kvmbackup.Job) error {
			ctx, cancel := context.WithCancel(b.ctx)
			cancel()
			_, err := j.Wait(ctx, nil)
			b.wantErr(err, context.Canceled)
			return nil
		},
		"close": func(b *bench, j kvmbackup.Job) error { return j.Close(b.ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			b := tracked(t)
			job, spec := b.underWay(b.dir, incr("vda"))
			b.must(leave(b, job))
			lab.Eventually(t, "the job is gone", func() bool { return b.inspect().Job == kvmbackup.JobNone })
			if name == "close" {
				_, err := b.exec.AdoptJob(b.ctx, b.ref, spec)
				b.wantErr(err, kvmbackup.ErrNoJob)
				b.drop("c2")
				return
			}
			b.undone(job, spec)
		})
	}
}

// QEMU has one NBD server; another program may have it.
func TestPullWhereAnotherServes(t *testing.T) {
	b := newPull(t, realguest.Config{Disks: disks("vda")})
	address := map[string]any{"type": "unix", "data": map[string]any{"path": filepath.Join(b.room, "other")}}
	b.guest.QMP("nbd-server-start", map[string]any{"addr": address}, nil)
	spec := b.spec("c1", "", full("vda"))
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	b.wantErr(job.Begin(b.ctx), kvmbackup.ErrBusy)
	b.must(job.Close(b.ctx))
	b.wantCheckpoints()
	b.wantBitmaps("vda")
	b.must(os.Remove(filepath.Join(b.dir, spec.Volumes[0].File)))
	b.guest.QMP("nbd-server-stop", nil, nil)
	b.backup("c1", "", full("vda"))
}

// Exporting comes after the checkpoint: when it fails, the checkpoint goes.
func TestPullCantExport(t *testing.T) {
	b := newPull(t, realguest.Config{Disks: disks("vda", "vdb")})
	spec := b.spec("c1", "", full("vda"), full("vdb"))
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	libvirtjob.EditXML(job, func(xml string) string {
		return strings.Replace(xml, `exportname="vdb"`, `exportname="`+strings.Repeat("x", 5000)+`"`, 1)
	})
	err = job.Begin(b.ctx)
	if err == nil {
		t.Fatal("it could export")
	}
	t.Log(err)
	b.must(job.Abort(b.ctx))
	b.must(job.Close(b.ctx))
	b.wantCheckpoints()
	b.wantBitmaps("vda")
	if got := b.inspect().Job; got != kvmbackup.JobNone {
		t.Errorf("job is %v", got)
	}
}

// QEMU makes its socket in the scratch, which a profile of AppArmor may forbid: nothing is begun then.
func TestPullCantListen(t *testing.T) {
	b := newPull(t, realguest.Config{Disks: disks("vda")})
	spec := b.spec("c1", "", full("vda"))
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	libvirtjob.EditXML(job, func(xml string) string { return strings.Replace(xml, "/nbd\"", "/gone/nbd\"", 1) })
	b.wantErr(job.Begin(b.ctx), kvmbackup.ErrScratch)
	b.must(job.Abort(b.ctx))
	b.must(job.Close(b.ctx))
	b.wantCheckpoints()
	b.wantBitmaps("vda")
	if got := b.inspect().Job; got != kvmbackup.JobNone {
		t.Errorf("job is %v", got)
	}
}

// A scratch that can't do is refused before anything is begun or left.
func TestPullScratchErrors(t *testing.T) {
	b := newPull(t, realguest.Config{Disks: disks("vda")})
	full := kvmbackup.JobVolume{Device: "vda", Kind: kvmbackup.KindFull}
	for name, scratch := range map[string]string{
		"relative": "scratch", "missing": filepath.Join(b.room, "gone", "mine"), "none": "",
		"long": filepath.Join(b.room, strings.Repeat("x", 100)), "control": b.room + "/a\x01", "is there": b.room,
	} {
		spec := b.spec("c1", "", full)
		spec.Scratch = scratch
		_, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
		if !errors.Is(err, kvmbackup.ErrScratch) || !strings.Contains(err.Error(), scratch) && name != "control" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if os.Geteuid() == 0 {
		spec := b.spec("c1", "", full)
		spec.Scratch = filepath.Join(tmpfs(t, "100m"), "mine")
		_, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
		b.wantErr(err, kvmbackup.ErrScratch)
	}
	if files := realguest.Files(b.dir); len(files) > 0 {
		t.Errorf("files are %q", files)
	}
}

func TestCanPull(t *testing.T) {
	b := newPull(t, realguest.Config{Disks: disks("vda")})
	if got := b.inspect(); !got.CanPull || got.NoPull != "" {
		t.Errorf("status is %+v", got)
	}
	tool, err := qcow2.New(qcow2.Config{StorageDaemon: "/nowhere/qemu-storage-daemon"})
	b.must(err)
	b.exec, err = libvirtjob.New(realguest.Need(t).Conn, libvirtjob.Config{Images: tool})
	b.must(err)
	t.Cleanup(func() { _ = b.exec.Close() })
	if got := b.inspect(); got.CanPull || !strings.Contains(got.NoPull, "qemu-storage-daemon") {
		t.Errorf("status is %+v", got)
	}
	_, err = b.exec.PrepareJob(b.ctx, b.ref, b.spec("c1", "", full("vda")))
	b.wantErr(err, kvmbackup.ErrToolMissing)
	if files := append(realguest.Files(b.dir), realguest.Files(b.room)...); len(files) > 0 {
		t.Errorf("files are %q", files)
	}
}

func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := shortDir(t)
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	return dir
}

// A job goes before its scratch is full: no write of the guest fails.
func TestPullScratchFillsUp(t *testing.T) {
	lab.Further(t)
	lab.NeedRoot(t)
	big := disks("vda")
	big[0].SizeBytes = 512 << 20
	for _, size := range []string{"300m", "500m"} {
		t.Run(size, func(t *testing.T) {
			b := newPull(t, realguest.Config{Disks: big})
			b.guest.Write("vda", 0x11, 0, 512<<20)
			b.room = tmpfs(t, size)
			b.backup("c1", "", full("vda"))
			b.guest.Write("vda", 0x22, 0, 512<<20)
			spec := b.spec("c2", "c1", incr("vda"))
			spec.BandwidthBytes = 1 << 20
			job := b.begin(spec)
			b.overwrite(512 << 20)
			_, err := job.Wait(b.ctx, nil)
			var full *kvmbackup.ScratchFullError
			if !errors.As(err, &full) || full.Folder != b.room || full.Free <= 0 || full.WriteRate <= 0 ||
				full.FreeAtBegin <= full.Free || full.Used <= 0 {
				t.Errorf("error is %v", err)
			}
			b.wantErr(err, kvmbackup.ErrJobFailed, kvmbackup.ErrScratchFull)
			t.Log(err)
			b.room = shortDir(t)
			b.undone(job, spec)
			b.guest.Destroy()
			b.guest.Model("vda").Compare(t, b.guest.Image("vda"))
		})
	}
}

// overwrite has the guest write its disk as fast as it can. Each write holds libvirt's lock on the domain, for which an
// abort waits 30 s at most: so they are small.
func (b *bench) overwrite(size int64) {
	b.Helper()
	for at := int64(0); at < size; at += 1 << 20 {
		b.guest.Write("vda", byte(0x30+at>>25), at, 1<<20)
	}
}

// Several jobs share a scratch that is too small for all: some go before it is full, with the figures, and no write of
// any guest fails.
func TestPullScratchIsShared(t *testing.T) {
	lab.Further(t)
	lab.NeedRoot(t)
	const size = 256 << 20
	big := disks("vda")
	big[0].SizeBytes = size
	first := newPull(t, realguest.Config{Disks: big})
	room := tmpfs(t, "600m")
	var all []*bench
	for len(all) < 3 {
		b := first
		if len(all) > 0 {
			b = newBench(t, realguest.Config{Disks: big})
			b.way = kvmbackup.TransferPull
		}
		b.guest.Write("vda", 0x11, 0, size)
		b.backup("c1", "", full("vda"))
		b.guest.Write("vda", 0x22, 0, size)
		b.room = room
		all = append(all, b)
	}
	jobs, specs := make([]kvmbackup.Job, len(all)), make([]kvmbackup.JobSpec, len(all))
	for i, b := range all {
		specs[i] = b.spec("c2", "c1", incr("vda"))
		specs[i].BandwidthBytes = 1 << 20
		jobs[i] = b.begin(specs[i])
	}
	ended, written := make([]chan error, len(all)), make(chan struct{})
	for i, b := range all {
		ended[i] = make(chan error, 1)
		go func() {
			_, err := jobs[i].Wait(b.ctx, nil)
			ended[i] <- err
		}()
		go func() {
			defer func() { written <- struct{}{} }()
			b.overwrite(size)
		}()
	}
	for range all {
		<-written
	}
	gone := 0
	for i, b := range all {
		b.must(jobs[i].Abort(b.ctx)) // those that had room until now
		err := <-ended[i]
		var full *kvmbackup.ScratchFullError
		if errors.As(err, &full) {
			gone++
			if full.Folder != room || full.Free <= 0 || full.WriteRate <= 0 || full.FreeAtBegin <= full.Free || full.Used <= 0 {
				t.Errorf("figures are %+v", full)
			}
			b.wantErr(err, kvmbackup.ErrJobFailed, kvmbackup.ErrScratchFull)
		}
		t.Log(err)
	}
	if gone == 0 {
		t.Error("all had room")
	}
	for i, b := range all {
		b.room = shortDir(t)
		b.undone(jobs[i], specs[i])
		b.guest.Destroy()
		b.guest.Model("vda").Compare(t, b.guest.Image("vda"))
	}
}
