package libvirtjob_test

import (
	"context"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/realguest"
)

func TestFreeze(t *testing.T) {
	t.Parallel()
	guest := realguest.Boot(t, realguest.Config{Disks: disks("vda")})
	b := &bench{T: t, exec: newExecutor(t), guest: guest, ref: kvmbackup.DomainRef{Name: guest.Name}}
	var cancel context.CancelFunc
	b.ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
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
	b.must(b.exec.Resume(b.ctx, b.ref))
	frozen, err = b.exec.Freeze(b.ctx, b.ref)
	if err != nil || frozen != 1 {
		t.Errorf("%d file systems frozen, %v", frozen, err)
	}
	b.must(b.exec.Thaw(b.ctx, b.ref))
}
