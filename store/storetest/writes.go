package storetest

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// write is one of the methods that change a VM's records.
type write struct {
	name string
	// prepare makes what the call needs, with a lease in force, and returns the record for it.
	prepare func(r *run, l kvmbackup.Lease) kvmbackup.Backup
	call    func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease, b kvmbackup.Backup) error
}

var writes = []write{
	{"begin", func(*run, kvmbackup.Lease) kvmbackup.Backup { return full(vmA, 1) },
		func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease, b kvmbackup.Backup) error {
			_, err := st.Begin(ctx, l, b)
			return err
		}},
	{"complete", func(r *run, l kvmbackup.Lease) kvmbackup.Backup { return finished(r.running(l, full(vmA, 1))) },
		func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease, b kvmbackup.Backup) error {
			return st.Complete(ctx, l, b)
		}},
	{"fail", func(r *run, l kvmbackup.Lease) kvmbackup.Backup { return r.running(l, full(vmA, 1)) },
		func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease, b kvmbackup.Backup) error {
			return st.Fail(ctx, l, b.ID, "why")
		}},
	{"mark", func(r *run, l kvmbackup.Lease) kvmbackup.Backup { return r.completed(l, full(vmA, 1)) },
		func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease, b kvmbackup.Backup) error {
			return st.MarkDeletePending(ctx, l, b.ID)
		}},
	{"remove", func(r *run, l kvmbackup.Lease) kvmbackup.Backup { return r.pending(l, full(vmA, 1)) },
		func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease, b kvmbackup.Backup) error {
			return st.Remove(ctx, l, b.ID, 7)
		}},
	{"set-active", func(*run, kvmbackup.Lease) kvmbackup.Backup { return kvmbackup.Backup{} },
		func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease, _ kvmbackup.Backup) error {
			return st.SetActive(ctx, l, "backup.other")
		}},
	{"annotate", func(r *run, l kvmbackup.Lease) kvmbackup.Backup { return r.completed(l, full(vmA, 1)) },
		func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease, b kvmbackup.Backup) error {
			yes := true
			return st.Annotate(ctx, l, b.ID, kvmbackup.Annotation{Pinned: &yes})
		}},
	{"import", func(*run, kvmbackup.Lease) kvmbackup.Backup { return imported(vmA, 1, 7) },
		func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease, b kvmbackup.Backup) error {
			return st.Import(ctx, l, b)
		}},
}

// imported is a completed record as a repository holds it.
func imported(vm kvmbackup.VMID, n int, sequence int64) kvmbackup.Backup {
	b := finished(full(vm, n))
	b.Sequence = sequence
	return b
}

// writeRules asks of every write what the contract says of all of them.
func writeRules() []Rule {
	var out []Rule
	for _, w := range writes {
		out = append(out,
			Rule{"fence/" + w.name + "-taken-over", "A write with a lease that another has taken over changes " +
				"nothing and returns ErrLeaseLost: a process that lost its lease cannot commit.",
				func(r *run) { r.refusedLease(w, r.takeOver) }},
			Rule{"fence/" + w.name + "-expired", "A write with an expired lease changes nothing and returns " +
				"ErrLeaseLost, also when nobody took it over: the store's own clock decides.",
				func(r *run) { r.refusedLease(w, r.expire) }},
			Rule{"fence/" + w.name + "-released", "A write with a released lease changes nothing and returns ErrLeaseLost.",
				func(r *run) {
					r.refusedLease(w, func(l kvmbackup.Lease) { r.ok(r.ReleaseLease(r.ctx, l), "release the lease") })
				}},
			Rule{"fence/" + w.name + "-not-given", "A write with a token that is not the VM's current one, be it " +
				"higher, or none, changes nothing and returns ErrLeaseLost.",
				func(r *run) { r.refusedToken(w) }})
		if w.name != "set-active" {
			out = append(out, Rule{"fence/" + w.name + "-other-vm",
				"A record of another VM than the lease's is refused with ErrInvalid, and nothing changes.",
				func(r *run) { r.refusedVM(w) }})
		}
	}
	return append(out, Rule{"fence/never-leased", "While nobody ever had the VM's lease nothing is written, not even " +
		"with the lease that has no token: ErrLeaseLost, and the VM stays unknown.",
		func(r *run) { r.refusedUnleased() }})
}

func (r *run) refusedToken(w write) {
	l := r.lease(vmA)
	b := w.prepare(r, l)
	before := r.snapshot()
	for _, token := range []int64{l.Token + 1, 0, -l.Token} {
		forged := l
		forged.Token = token
		r.want(w.call(r.ctx, r.Store, forged, b), fmt.Sprintf("%s with the token %d for %d", w.name, token, l.Token),
			kvmbackup.ErrLeaseLost)
		r.unchanged(before, w.name+" with a token that was not given")
	}
}

func (r *run) refusedUnleased() {
	none := kvmbackup.Lease{VM: vmA}
	_, err := r.Begin(r.ctx, none, full(vmA, 1))
	r.want(err, "begin without a lease", kvmbackup.ErrLeaseLost)
	r.want(r.Import(r.ctx, none, imported(vmA, 1, 7)), "import without a lease", kvmbackup.ErrLeaseLost)
	r.want(r.SetActive(r.ctx, none, "backup.x"), "set the active checkpoint without a lease", kvmbackup.ErrLeaseLost)
	_, err = r.RenewLease(r.ctx, none, long)
	r.want(err, "renew no lease", kvmbackup.ErrLeaseLost)
	r.ok(r.ReleaseLease(r.ctx, none), "release no lease")
	if got := r.record(vmA); got != (kvmbackup.VMRecord{VM: vmA}) || len(r.list(kvmbackup.Query{})) > 0 {
		r.fatalf("the VM's record became %+v", got)
	}
}

func (r *run) takeOver(l kvmbackup.Lease) {
	r.ok(r.ReleaseLease(r.ctx, l), "release the lease")
	_, err := r.AcquireLease(r.ctx, l.VM, "second", long)
	r.ok(err, "acquire the released lease")
}

func (r *run) refusedLease(w write, lose func(kvmbackup.Lease)) {
	l := r.lease(vmA)
	b := w.prepare(r, l)
	lose(l)
	before := r.snapshot()
	r.want(w.call(r.ctx, r.Store, l, b), w.name+" with a lost lease", kvmbackup.ErrLeaseLost)
	r.unchanged(before, w.name+" with a lost lease")
}

func (r *run) refusedVM(w write) {
	b := w.prepare(r, r.lease(vmA))
	l := r.lease(vmB)
	before := r.snapshot()
	r.want(w.call(r.ctx, r.Store, l, b), w.name+" of another VM's record", kvmbackup.ErrInvalid)
	r.unchanged(before, w.name+" of another VM's record")
}
