package engine

import (
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// leaseWait tells of an operation's wait for a VM's lease: when it begins to wait, for whom, and once more when nobody seems to renew
// that lease, so that there is an end to be waited for.
type leaseWait struct {
	o      *op
	vm     kvmbackup.VMID
	began  time.Time
	holder string
	left   time.Duration // of the lease, when it was last asked for
	since  time.Time     // when it was last seen to be renewed, or taken
	gone   bool          // that was told
}

// busy is told of each attempt that found the VM busy.
func (w *leaseWait) busy(err error, now time.Time) {
	var by *kvmbackup.BusyError
	if !errors.As(err, &by) {
		return
	}
	if w.began.IsZero() {
		w.began = now
	}
	if by.Holder != w.holder {
		w.since, w.gone = now, false
		w.tell(now, fmt.Sprintf("for the lease of %q, held by %s%s", w.vm, by.Holder, unlessRenewed(by.Left)))
	} else if by.Left > w.left {
		w.since, w.gone = now, false
	}
	w.holder, w.left = by.Holder, by.Left
	// Holders renew at a third of the time to live.
	if unrenewed := now.Sub(w.since); !w.gone && by.Left > 0 && unrenewed > w.o.e.cfg.LeaseTTL/2 {
		w.gone = true
		w.tell(now, fmt.Sprintf("%v for the lease of %q, held by %s, a process that seems to be gone", by.Left.Round(time.Second), w.vm, by.Holder))
	}
}

func unlessRenewed(left time.Duration) string {
	if left <= 0 {
		return ""
	}
	return fmt.Sprintf(", for another %v unless it is renewed", left.Round(time.Second))
}

func (w *leaseWait) tell(now time.Time, detail string) {
	w.o.emit(Event{Type: EventWaiting, Detail: "waiting " + detail, Elapsed: now.Sub(w.began)})
}
