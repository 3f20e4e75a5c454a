package libvirtjob_test

import (
	"context"
	"math"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

func TestFreeze(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	guest := realguest.Boot(t, realguest.Config{Disks: disks("vda"), Persistent: true})
	b := &bench{T: t, exec: newExecutor(t), guest: guest, ref: kvmbackup.DomainRef{Name: guest.Name}}
	var cancel context.CancelFunc
	b.ctx, cancel = context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	b.must(b.exec.Thaw(b.ctx, b.ref)) // nothing is frozen
	frozen, err := b.exec.Freeze(b.ctx, b.ref)
	b.must(err)
	if frozen != 1 {
		t.Errorf("%d file systems frozen", frozen)
	}
	b.must(b.exec.Thaw(b.ctx, b.ref))
	b.must(b.exec.Thaw(b.ctx, b.ref))

	// Paused guests don't answer.
	guest.Suspend()
	_, err = b.exec.Freeze(b.ctx, b.ref)
	b.wantErr(err, kvmbackup.ErrDomainStopped)
	b.wantErr(b.exec.Thaw(b.ctx, b.ref), kvmbackup.ErrDomainStopped)
	b.must(b.exec.Resume(b.ctx, b.ref))
	frozen, err = b.exec.Freeze(b.ctx, b.ref)
	if err != nil || frozen != 1 {
		t.Errorf("%d file systems frozen, %v", frozen, err)
	}
	b.must(b.exec.Thaw(b.ctx, b.ref))

	// Its own shutdown leaves a quiet disk; a destroyed guest's is not.
	if err := guest.Domain().ShutdownFlags(libvirt.DOMAIN_SHUTDOWN_GUEST_AGENT); err != nil {
		t.Log(err) // the guest may be off before its agent has answered, which is what counts
	}
	lab.Eventually(t, "the guest is off", func() bool { return !guest.Running() })
	b.must(b.exec.Thaw(b.ctx, b.ref))
	if got := b.inspect(); got.State != kvmbackup.DomainStopped || !got.CleanShutdown {
		t.Errorf("status is %+v", got)
	}
}

// A guest says what it likes.
func TestCountOf(t *testing.T) {
	for said, want := range map[any]int{
		1.0: 1, 12.0: 12, 0.0: 0, -3.0: 0, 1e300: 0, 1.5: 0, "2": 0, true: 0, nil: 0, math.Inf(1): 0,
	} {
		if got := libvirtjob.CountOf(said); got != want {
			t.Errorf("%v counts for %d, want %d", said, got, want)
		}
	}
}
