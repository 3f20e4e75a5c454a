package restoretest_test

import (
	"context"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// inspector counts how often the domain is inspected.
type inspector struct {
	kvmbackup.Executor
	times int
}

func (i *inspector) Inspect(ctx context.Context, dom kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	i.times++
	return i.Executor.Inspect(ctx, dom)
}

// TestInPlaceInspectsThreeTimes: what the first inspection has shown is handed down. The other two are right before the
// images are moved away and right after, when nobody can start the VM any more.
func TestInPlaceInspectsThreeTimes(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2)[1]
	l.ok(l.h.Shutdown(vm))
	i := &inspector{Executor: l.h.Executor()}
	cfg := l.cfg
	cfg.Executor = i
	eng, err := engine.New(cfg)
	l.ok(err)
	_, err = eng.Restore(t.Context(), l.inPlace(b))
	l.ok(err)
	if i.times > 3 {
		t.Errorf("a restore in place has inspected the domain %d times, want 3 at most", i.times)
	}
	l.nextIsFull(l.held[b.ID])
}
