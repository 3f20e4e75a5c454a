package libvirtjob_test

import (
	"context"
	"errors"
	"fmt"
	"os"
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

// TestDaemonRestarts has a libvirtd killed and started again, in the middle of a job.
func TestDaemonRestarts(t *testing.T) {
	t.Parallel()
	host := realguest.Daemon(t)
	b := newBench(t, realguest.Config{Host: host, Disks: bigDisks("vda"), Persistent: true})
	b.exec = openExecutor(t, host)
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("c1", "", full("vda"))
	b.spread("vda", 0x12)
	job, spec := b.slow("c2", "c1", incr("vda"))

	host.KillDaemon(t)
	_, err := job.Wait(b.ctx, nil)
	t.Logf("wait without a daemon: %v", err)
	if err == nil {
		t.Fatal("a job without a daemon is no success")
	}
	b.must(job.Close(b.ctx))
	for range 3 { // a connection that can't be made again is neither given up twice nor used after that
		if _, err := b.exec.Inspect(b.ctx, b.ref); err == nil {
			t.Error("there is no daemon")
		}
		refs, err := b.exec.References()
		b.must(err)
		if refs == 0 {
			t.Fatal("the executor has a connection that is gone")
		}
	}
	host.StartDaemon(t)
	if got := b.inspect(); got.Job != kvmbackup.JobBackup {
		t.Errorf("status is %+v", got)
	}
	job, err = b.exec.AdoptJob(b.ctx, b.ref, spec)
	b.must(err)
	b.must(job.SetBandwidth(b.ctx, 0))
	result, err := job.Wait(b.ctx, nil)
	b.must(err)
	b.must(job.Close(b.ctx))
	if result.TotalBytes != big {
		t.Errorf("result is %+v", result)
	}
	b.keep(spec)
	b.drop("c1")
	b.wantCheckpoints("c2")

	// A job that ended while there was no daemon: libvirt's record doesn't say how much it copied, the target and the
	// base's bitmap do.
	b.guest.WriteZeroes("vda", 0, big)
	b.guest.Write("vda", 0x33, big-32<<20, 32<<20) // the last that is copied; all else makes 9 MiB of tables
	job, spec = b.slow("c3", "c2", incr("vda"))
	b.must(job.SetBandwidth(b.ctx, 0))
	host.KillDaemon(t)
	b.must(job.Close(b.ctx))
	target := filepath.Join(b.dir, spec.Volumes[0].File)
	lab.Eventually(t, "QEMU is done", func() bool { return allocated(target) >= 24<<20 })
	host.StartDaemon(t)
	job, err = b.exec.AdoptJob(b.ctx, b.ref, spec)
	b.must(err)
	result, err = job.Wait(b.ctx, nil)
	b.must(err)
	if result.TotalBytes != big {
		t.Errorf("result is %+v", result)
	}
	b.must(job.Close(b.ctx))
	b.keep(spec)
	b.wantCheckpoints("c2", "c3")
	b.must(b.exec.Close())
}

// openExecutor returns an executor with a connection of its own, which the test has to close.
func openExecutor(t *testing.T, host *realguest.Host) *libvirtjob.Executor {
	t.Helper()
	exec, err := libvirtjob.Open(t.Context(), host.URI, config(t))
	if err != nil {
		t.Fatal(err)
	}
	return exec
}

func config(t *testing.T) libvirtjob.Config {
	t.Helper()
	tool, err := qcow2.New(qcow2.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return libvirtjob.Config{Images: tool}
}

// TestDaemonHangs: a libvirtd that doesn't answer holds nobody up for ever, also not who has no deadline.
func TestDaemonHangs(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	host := realguest.Daemon(t)
	b := newBench(t, realguest.Config{Host: host, Disks: disks("vda"), Persistent: true})
	hasty := openExecutor(t, host)
	patient, err := libvirtjob.OpenWithin(context.Background(), 10*time.Second, host.URI, config(t))
	b.must(err)
	goOn := host.HangDaemon(t)
	began := time.Now()
	b.wantErr(hasty.Close(), kvmbackup.ErrBusy)
	t.Logf("closed after %v", time.Since(began))
	cause := errors.New("enough of that")
	ctx, cancel := context.WithTimeoutCause(b.ctx, 100*time.Millisecond, cause)
	defer cancel()
	asked := time.Now()
	_, err = libvirtjob.Open(ctx, host.URI, config(t))
	if b.wantErr(err, cause); time.Since(asked) > 5*time.Second {
		t.Errorf("a context of 100 ms ended the connecting after %v", time.Since(asked))
	}
	_, err = patient.Inspect(context.Background(), b.ref)
	if err == nil {
		t.Error("nobody answers")
	}
	t.Logf("after %v: %v", time.Since(began), err)

	// Its connection is broken now, and no other can be made.
	opened, cfg := make(chan error), config(t)
	go func() {
		_, err := libvirtjob.OpenWithin(context.Background(), 10*time.Second, host.URI, cfg)
		opened <- err
	}()
	_, err = patient.Inspect(context.Background(), b.ref)
	b.wantErr(err, kvmbackup.ErrBusy)
	b.wantErr(<-opened, kvmbackup.ErrBusy)
	t.Logf("after %v: %v", time.Since(began), err)
	goOn()
	if _, err := patient.Inspect(b.ctx, b.ref); err != nil {
		t.Errorf("when it answers again: %v", err)
	}
	b.must(patient.Close())
	_, err = hasty.Inspect(b.ctx, b.ref)
	b.wantErr(err, kvmbackup.ErrInvalid)
}

// TestDaemonEndsWithItsGuests: nothing is left of a test's own libvirtd, also when it was killed before its guests.
func TestDaemonEndsWithItsGuests(t *testing.T) {
	t.Parallel()
	pid := 0
	t.Run("guest", func(t *testing.T) {
		host := realguest.Daemon(t)
		pid = realguest.Start(t, realguest.Config{Host: host, Disks: disks("vda")}).PID()
		host.KillDaemon(t)
	})
	if pid == 0 {
		t.Fatal("no guest")
	}
	lab.Eventually(t, "QEMU is gone", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(text), ") Z ")
	})
}

// allocated returns what a file occupies.
func allocated(path string) int64 {
	var s syscall.Stat_t
	if syscall.Stat(path, &s) != nil {
		return 0
	}
	return s.Blocks * 512
}
