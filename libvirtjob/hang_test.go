package libvirtjob_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// brief returns a context that ends soon, with a cause.
func (b *bench) brief() (context.Context, error) {
	cause := errors.New("waited long enough")
	ctx, cancel := context.WithTimeoutCause(b.ctx, 300*time.Millisecond, cause)
	b.Cleanup(cancel)
	return ctx, cause
}

func TestHungBegin(t *testing.T) { both(t, lab.Sparse(2), testHungBegin) }

func testHungBegin(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: bigDisks("vda")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 1<<20)
	spec := b.spec("c1", "", full("vda"))
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	goOn := b.guest.Hang()
	ctx, cause := b.brief()
	b.wantErr(libvirtjob.BeginAtOnce(ctx, job), cause)
	ctx, cause = b.brief()
	_, err = b.exec.Inspect(ctx, b.ref)
	b.wantErr(err, cause)
	ctx, cause = b.brief()
	b.wantErr(job.Abort(ctx), kvmbackup.ErrJobStuck, cause)
	goOn()
	b.must(job.Abort(b.ctx))
	if got := b.inspect().Job; got != kvmbackup.JobNone {
		t.Errorf("job is %v", got)
	}
	b.drop("c1")
	b.wantCheckpoints()
	b.wantBitmaps("vda")
	b.must(job.Close(b.ctx))
}

// A QEMU that hangs before libvirt was asked has begun nothing.
func TestHungBeforeBegin(t *testing.T) { both(t, lab.Sparse(2), testHungBeforeBegin) }

func testHungBeforeBegin(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: bigDisks("vda")})
	b.way = way
	job, err := b.exec.PrepareJob(b.ctx, b.ref, b.spec("c1", "", full("vda")))
	b.must(err)
	goOn := b.guest.Hang()
	ctx, cause := b.brief()
	b.wantErr(job.Begin(ctx), cause)
	goOn()
	b.must(job.Abort(b.ctx))
	if got := b.inspect().Job; got != kvmbackup.JobNone {
		t.Errorf("job is %v", got)
	}
	b.wantCheckpoints()
	b.must(job.Close(b.ctx))
}

func TestHungJob(t *testing.T) { both(t, lab.Sparse(2), testHungJob) }

func testHungJob(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: bigDisks("vda", "vdb")})
	b.way = way
	b.guest.Write("vda", 0x11, 0, 1<<20)
	job, spec := b.slow("c1", "", full("vda"), full("vdb"))
	goOn := b.guest.Hang()
	ctx, cause := b.brief()
	b.wantErr(job.Abort(ctx), kvmbackup.ErrJobStuck, cause)

	// Wait still reports while nothing moves, and notices its context.
	calls := 0
	ctx, cancel := context.WithCancelCause(b.ctx)
	_, err := job.Wait(ctx, func(kvmbackup.JobProgress) {
		if calls++; calls == 4 {
			cancel(cause)
		}
	})
	b.wantErr(err, cause)
	goOn()
	// The first Abort may have got through.
	b.must(job.Abort(b.ctx))
	_, err = job.Wait(b.ctx, nil)
	b.wantErr(err, kvmbackup.ErrJobFailed)
	b.drop("c1")
	_ = spec
}
