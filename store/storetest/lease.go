package storetest

import (
	"context"
	"errors"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

var leaseRules = []Rule{
	{"lease/fields", "AcquireLease returns a lease that names the VM and the holder, with a token above 0 and its " +
		"expiry.", func(r *run) {
		l := r.lease(vmA)
		if l.VM != vmA || l.Holder != "first" || l.Token <= 0 || l.ExpiresAt.IsZero() || l.ExpiresAt.Location() != time.UTC {
			r.fatalf("got the lease %+v", l)
		}
	}},
	{"lease/busy", "While another holder's lease is in force AcquireLease doesn't wait; it returns a *BusyError that " +
		"names the VM and the holder, so that the user can be told.", func(r *run) {
		r.lease(vmA)
		_, err := r.AcquireLease(r.ctx, vmA, "second", long)
		r.want(err, "acquire a lease that is in force", kvmbackup.ErrBusy)
		var busy *kvmbackup.BusyError
		if !errors.As(err, &busy) || busy.VM != vmA || busy.Holder != "first" {
			r.fatalf("got %#v, want a *BusyError with the VM and the holder %q", err, "first")
		}
	}},
	{"lease/busy-at-once", "AcquireLease of a lease in force returns at once: how long to wait for a busy VM is its " +
		"caller's to say.", func(r *run) {
		r.lease(vmA)
		ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
		defer cancel()
		_, err := r.AcquireLease(ctx, vmA, "second", long)
		r.want(err, "acquire a lease that is in force, with five seconds to wait", kvmbackup.ErrBusy)
		r.ok(ctx.Err(), "acquire a lease that is in force, with five seconds to wait")
	}},
	{"lease/busy-for-itself", "A holder's own lease in force is busy too, with the same error: two operations of one " +
		"process must not take the VM from each other.", func(r *run) {
		r.lease(vmA)
		_, err := r.AcquireLease(r.ctx, vmA, "first", long)
		r.want(err, "acquire the own lease that is in force", kvmbackup.ErrBusy)
		var busy *kvmbackup.BusyError
		if !errors.As(err, &busy) || busy.VM != vmA || busy.Holder != "first" {
			r.fatalf("got %#v, want a *BusyError with the VM and the holder %q", err, "first")
		}
	}},
	{"lease/per-vm", "Leases are per VM: one VM's lease keeps nobody from another VM.", func(r *run) {
		r.lease(vmA)
		r.lease(vmB)
	}},
	{"lease/takeover", "An expired lease is taken over, with a higher token: a dead process doesn't block its VM for " +
		"ever.", func(r *run) {
		l := r.lease(vmA)
		r.expire(l)
		next, err := r.AcquireLease(r.ctx, vmA, "second", long)
		r.ok(err, "take over the expired lease")
		r.higher(next, l)
	}},
	{"lease/clock", "Leases and removals go by the store's own clock, one for all processes, and by no process's: " +
		"another machine's may be wrong.", func(r *run) {
		l := r.lease(vmA)
		if r.h.Advance == nil {
			return // the clocks can't be told apart
		}
		r.h.Advance(long / 2)
		_, err := r.AcquireLease(r.ctx, vmA, "second", long)
		r.want(err, "acquire a lease halfway to its expiry", kvmbackup.ErrBusy)
		r.h.Advance(long/2 + time.Second)
		r.want(r.SetActive(r.ctx, l, ""), "write with a lease whose time is over", kvmbackup.ErrLeaseLost)
		next, err := r.AcquireLease(r.ctx, vmA, "second", long)
		r.ok(err, "acquire a lease whose time is over")
		if moved := next.ExpiresAt.Sub(l.ExpiresAt); moved < long || moved > long+time.Minute {
			r.fatalf("an hour and a second later a lease of the same length expires %v later", moved)
		}
		b := r.running(next, full(vmA, 1))
		r.ok(r.Fail(r.ctx, next, b.ID, "for the removal's date"), "fail a backup")
		r.ok(r.Remove(r.ctx, next, b.ID, 0), "remove it")
		list, err := r.Removals(r.ctx, 0)
		r.ok(err, "list the removals")
		begun := next.ExpiresAt.Add(-long)
		if len(list) != 1 || list[0].At.Before(begun.Add(-time.Second)) || list[0].At.After(begun.Add(time.Minute)) {
			r.fatalf("under a lease since %v the removals are %+v", begun, list)
		}
	}},
	{"lease/token-rises-after-release", "Every acquisition has a higher token than any before it on this VM, also " +
		"after releases: otherwise a process that was late could write with it.", func(r *run) {
		l := r.lease(vmA)
		for range 3 {
			r.ok(r.ReleaseLease(r.ctx, l), "release the lease")
			next := r.lease(vmA)
			r.higher(next, l)
			l = next
		}
	}},
	{"lease/token-rises-for-all", "Tokens rise over all instances of the store.", func(r *run) {
		l := r.lease(vmA)
		r.ok(r.ReleaseLease(r.ctx, l), "release the lease")
		next, err := r.other().AcquireLease(r.ctx, vmA, "second", long)
		r.ok(err, "acquire the released lease through another instance")
		r.higher(next, l)
	}},
	{"lease/renew", "RenewLease extends a lease to ttl from now and keeps its token.", func(r *run) {
		l := r.lease(vmA)
		next, err := r.RenewLease(r.ctx, l, 2*long)
		r.ok(err, "renew the lease")
		if next.VM != vmA || next.Holder != l.Holder || next.Token != l.Token ||
			next.ExpiresAt.Before(l.ExpiresAt.Add(long/2)) {
			r.fatalf("%+v was renewed to %+v", l, next)
		}
		r.ok(r.SetActive(r.ctx, next, ""), "write with the renewed lease")
	}},
	{"lease/renew-counts", "A renewed lease is in force until its new expiry, and no longer than that.", func(r *run) {
		l := r.lease(vmA)
		if r.h.Advance != nil {
			_, err := r.RenewLease(r.ctx, l, 2*long)
			r.ok(err, "renew the lease")
			r.h.Advance(long + time.Minute)
			_, err = r.AcquireLease(r.ctx, vmA, "second", long)
			r.want(err, "acquire a lease within its renewed time", kvmbackup.ErrBusy)
		}
		r.expire(l)
		_, err := r.AcquireLease(r.ctx, vmA, "second", long)
		r.ok(err, "acquire a lease after its renewed time")
	}},
	{"lease/renew-expired", "RenewLease of an expired lease returns ErrLeaseLost, also when nobody took it over: its " +
		"holder must stop.", func(r *run) {
		l := r.lease(vmA)
		r.expire(l)
		_, err := r.RenewLease(r.ctx, l, long)
		r.want(err, "renew an expired lease", kvmbackup.ErrLeaseLost)
	}},
	{"lease/renew-taken-over", "RenewLease of a lease that was taken over returns ErrLeaseLost and leaves the new " +
		"one as it is.", func(r *run) {
		l := r.lease(vmA)
		r.expire(l)
		next, err := r.AcquireLease(r.ctx, vmA, "second", long)
		r.ok(err, "take over the expired lease")
		_, err = r.RenewLease(r.ctx, l, long)
		r.want(err, "renew a lost lease", kvmbackup.ErrLeaseLost)
		r.ok(r.SetActive(r.ctx, next, ""), "write with the new lease")
	}},
	{"lease/renew-released", "RenewLease of a released lease returns ErrLeaseLost.", func(r *run) {
		l := r.lease(vmA)
		r.ok(r.ReleaseLease(r.ctx, l), "release the lease")
		_, err := r.RenewLease(r.ctx, l, long)
		r.want(err, "renew a released lease", kvmbackup.ErrLeaseLost)
	}},
	{"lease/release", "ReleaseLease ends the lease: the next holder needn't wait for its expiry.", func(r *run) {
		l := r.lease(vmA)
		r.ok(r.ReleaseLease(r.ctx, l), "release the lease")
		_, err := r.AcquireLease(r.ctx, vmA, "second", long)
		r.ok(err, "acquire a released lease")
	}},
	{"lease/release-twice", "Releasing a lease that is released does nothing.", func(r *run) {
		l := r.lease(vmA)
		r.ok(r.ReleaseLease(r.ctx, l), "release the lease")
		r.ok(r.ReleaseLease(r.ctx, l), "release it again")
	}},
	{"lease/release-expired", "Releasing an expired lease does nothing.", func(r *run) {
		l := r.lease(vmA)
		r.expire(l)
		r.ok(r.ReleaseLease(r.ctx, l), "release an expired lease")
	}},
	{"lease/release-lost", "Releasing a lease that another has taken over does nothing, least of all to the new one.",
		func(r *run) {
			l := r.lease(vmA)
			r.expire(l)
			next, err := r.AcquireLease(r.ctx, vmA, "second", long)
			r.ok(err, "take over the expired lease")
			r.ok(r.ReleaseLease(r.ctx, l), "release a lost lease")
			r.ok(r.SetActive(r.ctx, next, ""), "write with the new lease")
		}},
	{"lease/race", "Of many that acquire a VM's lease at once, through any instance, exactly one gets it.", func(r *run) {
		errs := r.race(func(_ int, st kvmbackup.Store) error {
			_, err := st.AcquireLease(r.ctx, vmA, "racer", long)
			return err
		})
		r.oneWins("acquire the lease", errs, kvmbackup.ErrBusy)
	}},
	{"lease/race-takeover", "Of many that take over an expired lease at once exactly one gets it.", func(r *run) {
		r.expire(r.lease(vmA))
		errs := r.race(func(_ int, st kvmbackup.Store) error {
			_, err := st.AcquireLease(r.ctx, vmA, "racer", long)
			return err
		})
		r.oneWins("take over the lease", errs, kvmbackup.ErrBusy)
	}},
}

func (r *run) higher(next, before kvmbackup.Lease) {
	if next.Token <= before.Token {
		r.fatalf("got token %d after %d", next.Token, before.Token)
	}
}

// oneWins ends the rule unless exactly one error is nil and the others are the target.
func (r *run) oneWins(what string, errs []error, target error) {
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, target) {
			r.fatalf("%s: a loser got the error %w, want %v", what, err, target)
		}
	}
	if won != 1 {
		r.fatalf("%s: %d of %d succeeded, want exactly one", what, won, len(errs))
	}
}
