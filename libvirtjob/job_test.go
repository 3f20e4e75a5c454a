package libvirtjob_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// big is so much that a job isn't through before its bandwidth is limited, which libvirt can do only after the begin:
// about a second's work, and nothing to store.
const big = 64 << 30

func bigDisks(devices ...string) []realguest.Disk {
	list := disks(devices...)
	for i := range list {
		list[i].SizeBytes = big
	}
	return list
}

// spread makes all of a big disk changed.
func (b *bench) spread(device string, pattern byte) {
	b.Helper()
	b.guest.WriteZeroes(device, 0, big)
	b.guest.Write(device, pattern, int64(pattern)<<30, 1<<20)
}

// slow makes a job that would take minutes, and begins it.
func (b *bench) slow(checkpoint, base string, volumes ...kvmbackup.JobVolume) (kvmbackup.Job, kvmbackup.JobSpec) {
	b.Helper()
	spec := b.spec(checkpoint, base, volumes...)
	spec.BandwidthBytes = 256 << 10
	return b.begin(spec), spec
}

func TestAbort(t *testing.T) { both(t, lab.Sparse(2), testAbort) }

func testAbort(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: bigDisks("vda", "vdb"), Persistent: true})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 8<<20)
	b.backup("c1", "", full("vda"), full("vdb"))
	b.spread("vda", 0x22)
	b.spread("vdb", 0x33)
	job, spec := b.slow("c2", "c1", incr("vda"), incr("vdb"))
	status := b.inspect()
	if status.Job != kvmbackup.JobBackup || status.JobDetail == "" {
		t.Errorf("job state is %v %q", status.Job, status.JobDetail)
	}
	b.must(job.Abort(b.ctx))
	b.must(job.Abort(b.ctx))
	if status := b.inspect(); status.Job != kvmbackup.JobNone {
		t.Errorf("job state is %v %q", status.Job, status.JobDetail)
	}
	_, err := job.Wait(b.ctx, nil)
	b.wantErr(err, kvmbackup.ErrJobFailed)
	b.wantCheckpoints("c1", "c2")
	b.drop("c2")
	b.wantCheckpoints("c1")
	b.wantBitmaps("vda", "c1")
	for _, v := range spec.Volumes {
		b.must(os.Remove(filepath.Join(b.dir, v.File)))
	}
	b.guest.Write("vdb", 0x44, 8<<20, 16<<20)
	b.backup("c2", "c1", incr("vda"), incr("vdb"))
}

func TestBandwidthAndProgress(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: bigDisks("vda", "vdb")})
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.guest.Write("vdb", 0x11, 0, 1<<20)
	job, spec := b.slow("c1", "", full("vda"), full("vdb"))

	// A waiting that ends leaves the job alone.
	ctx, cancel := context.WithCancelCause(b.ctx)
	var seen []kvmbackup.JobProgress
	stop := errors.New("enough")
	_, err := job.Wait(ctx, func(p kvmbackup.JobProgress) {
		if seen = append(seen, p); len(seen) == 3 {
			cancel(stop)
		}
	})
	b.wantErr(err, stop)
	if errors.Is(err, kvmbackup.ErrJobFailed) {
		t.Errorf("error is %v", err)
	}
	last := seen[len(seen)-1]
	if last.TotalBytes != 2*big || len(last.Volumes) != 2 || last.Volumes[1].TotalBytes != big ||
		last.DoneBytes == last.TotalBytes {
		t.Errorf("progress is %+v", last)
	}
	b.must(job.SetBandwidth(b.ctx, 0))
	result, err := job.Wait(b.ctx, func(p kvmbackup.JobProgress) { last = p })
	b.must(err)
	if result.TotalBytes != 2*big || result.CopiedBytes["id-vda"] != big || last.DoneBytes != last.TotalBytes {
		t.Errorf("result is %+v, progress is %+v", result, last)
	}
	again, err := job.Wait(b.ctx, nil)
	if err != nil || again.TotalBytes != result.TotalBytes {
		t.Errorf("second Wait returns %+v, %v", again, err)
	}
	b.must(job.SetBandwidth(b.ctx, 1))
	b.must(job.Abort(b.ctx))
	b.keep(spec)
}

// TestGuestLatency: while a job runs its progress tells how the guest's own requests fare, and nothing of the job's.
func TestGuestLatency(t *testing.T) { both(t, lab.Sparse(2), testGuestLatency) }

func testGuestLatency(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: bigDisks("vda")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 16<<20)
	job, _ := b.slow("c1", "", full("vda"))
	b.guest.Resume()
	var most kvmbackup.JobProgress
	reports, lifted := 0, false
	_, err := job.Wait(b.ctx, func(p kvmbackup.JobProgress) {
		most = p
		if reports++; reports == 5 { // it has been looked at
			b.guest.StartWrite("vda", 0x22, 1<<20, 64<<10)
			b.guest.StartWrite("vda", 0x22, 3<<20, 64<<10)
		}
		if most.GuestRequests >= 2 && !lifted {
			lifted = true
			b.must(job.SetBandwidth(b.ctx, 0))
		}
	})
	b.must(err)
	if most.GuestRequests < 2 || most.GuestTime <= 0 || most.GuestTime > time.Minute {
		t.Errorf("the guest's two writes are %d requests of %v together", most.GuestRequests, most.GuestTime)
	}
}

// A limit is on what is written: the holes of a thin disk pass. At QEMU's own measure this job takes more than two
// hours.
func TestHolesPassALimit(t *testing.T) { both(t, lab.Sparse(2), testHolesPassALimit) }

func testHolesPassALimit(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: bigDisks("vda", "vdb")})
	b.way = way
	const data = 80 << 20
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.guest.Write("vdb", 0x22, big-data, data)
	spec := b.spec("c1", "", full("vda"), full("vdb"))
	spec.BandwidthBytes = 16 << 20
	began := time.Now()
	job := b.begin(spec)
	result, err := job.Wait(b.ctx, nil)
	b.must(err)
	if took := time.Since(began); took > 3*time.Minute || result.TotalBytes != 2*big {
		t.Errorf("%d bytes in %v", result.TotalBytes, took)
	}
	b.keep(spec)
	b.compareAll()
}

func TestBusy(t *testing.T) { both(t, lab.Sparse(2), testBusy) }

func testBusy(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: bigDisks("vda")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 1<<20)
	theirs, _ := b.slow("theirs", "", full("vda"))
	spec := b.spec("ours", "", full("vda"))
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	defer func() { _ = job.Close(context.Background()) }()
	began := time.Now()
	err = job.Begin(b.ctx)
	b.wantErr(err, kvmbackup.ErrBusy)
	var busy *kvmbackup.BusyError
	if !errors.As(err, &busy) || busy.Holder == "" {
		t.Errorf("error is %v", err)
	}
	if took := time.Since(began); took > 10*time.Second { // libvirt itself would wait for 30
		t.Errorf("Begin took %v to find the other job", took)
	}
	// Ours is not theirs, and never began.
	_, err = job.Wait(b.ctx, nil)
	b.wantErr(err, kvmbackup.ErrNoJob)
	b.must(job.Abort(b.ctx))
	_, err = b.exec.AdoptJob(b.ctx, b.ref, spec)
	b.wantErr(err, kvmbackup.ErrNoJob)
	if got := b.inspect().Job; got != kvmbackup.JobBackup {
		t.Errorf("their job is %v", got)
	}
	b.wantCheckpoints("theirs")
	b.must(theirs.Abort(b.ctx))
}

func TestCrashDuringJob(t *testing.T) { both(t, lab.Sparse(2), testCrashDuringJob) }

func testCrashDuringJob(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	huge := bigDisks("vda")
	huge[0].SizeBytes = 2 << 40 // whose holes take seconds: a busy machine may be late with the limit
	for _, persistent := range []bool{true, false} {
		b := newBench(t, realguest.Config{Disks: huge, Persistent: persistent})
		b.way = way
		b.guest.Write("vda", 0x11, 0, 1<<20)
		job, _ := b.slow("c1", "", full("vda"))
		b.guest.Kill9()
		_, err := job.Wait(b.ctx, nil)
		b.wantErr(err, kvmbackup.ErrJobFailed, kvmbackup.ErrDomainStopped)
		b.must(job.Abort(b.ctx))
		if !persistent {
			b.describe()
		}
		b.drop("c1")
		b.wantCheckpoints()
		b.wantBitmaps("vda")
	}
}

// describe puts the disks into the reference, for a domain that libvirt forgets when it stops.
func (b *bench) describe() {
	b.Helper()
	b.ref.Disks = []kvmbackup.DiskRef{{Device: "vda", Source: b.guest.Image("vda"), Format: "qcow2"}}
}

func TestTargetExists(t *testing.T) { both(t, lab.Sparse(2), testTargetExists) }

func testTargetExists(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb")})
	b.way = way
	spec := b.spec("c1", "", full("vda"), full("vdb"))
	b.must(os.WriteFile(filepath.Join(b.dir, spec.Volumes[1].File), []byte("precious"), 0o644))
	_, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.wantErr(err, kvmbackup.ErrTargetExists)
	if got := realguest.Files(b.dir); len(got) != 1 {
		t.Errorf("files are %q", got)
	}
	spec.Dir = filepath.Join(b.dir, "missing")
	_, err = b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.wantErr(err, os.ErrNotExist)
}

func TestBeginEndedByContext(t *testing.T) { both(t, lab.Sparse(2), testBeginEndedByContext) }

func testBeginEndedByContext(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 16<<20)
	spec := b.spec("c1", "", full("vda"))
	spec.BandwidthBytes = 256 << 10
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	ctx, cancel := context.WithCancelCause(b.ctx)
	stop := errors.New("enough")
	cancel(stop)
	b.wantErr(job.Begin(ctx), stop)
	b.must(job.Abort(b.ctx))
	b.must(b.exec.DropCheckpoint(b.ctx, b.ref, "c1"))
	b.wantCheckpoints()
	b.must(job.Close(b.ctx))
	if err := job.Abort(b.ctx); err != nil && !errors.Is(err, kvmbackup.ErrInvalid) {
		t.Errorf("Abort of a closed job: %v", err)
	}
}

func TestNoSpace(t *testing.T) { both(t, lab.Sparse(2), testNoSpace) }

func testNoSpace(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	lab.NeedRoot(t)
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 32<<20)
	small := filepath.Join(b.dir, "small")
	b.must(os.Mkdir(small, 0o777))
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", small).Run() })
	spec := b.spec("c1", "", full("vda"))
	spec.Dir = small
	job := b.begin(spec)
	_, err := job.Wait(b.ctx, nil)
	b.wantErr(err, kvmbackup.ErrJobFailed, kvmbackup.ErrNoSpace)
	b.drop("c1")
	b.wantCheckpoints()
	b.wantBitmaps("vda")
	b.backup("c2", "", full("vda"))
}

func TestTargetAccess(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	target := b.dir
	if os.Geteuid() == 0 { // root may write whatever its mode says
		target = filepath.Join(b.dir, "mount")
		b.must(os.Mkdir(target, 0o777))
		if out, err := exec.Command("mount", "-t", "tmpfs", "tmpfs", target).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v: %s", err, out)
		}
		t.Cleanup(func() { _ = exec.Command("umount", "-l", target).Run() })
	}
	spec := b.spec("c1", "", full("vda"))
	spec.Dir = target
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	defer func() { _ = job.Close(context.Background()) }()
	file := filepath.Join(target, spec.Volumes[0].File)
	if target == b.dir {
		b.must(os.Chmod(file, 0o400))
	} else {
		b.must(exec.Command("mount", "-o", "remount,ro", target).Run())
	}
	err = job.Begin(b.ctx)
	b.wantErr(err, kvmbackup.ErrTargetAccess)
	for _, part := range []string{file + " has mode -r", "user ", "group "} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %v", part, err)
		}
	}
	b.wantCheckpoints()
	b.wantBitmaps("vda")
}
