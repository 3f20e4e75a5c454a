package storetest

import "github.com/kvmbackup/kvmbackup"

var listRules = []Rule{
	{"list/all", "The zero Query selects all records of all VMs in all statuses, by VM and then by Sequence.",
		func(r *run) {
			all := r.populate()
			r.sameIDs("list", r.list(kvmbackup.Query{}), all...)
		}},
	{"list/order", "VMs are ordered by the bytes of their IDs, whatever language the database speaks.", func(r *run) {
		var want []kvmbackup.Backup
		for _, vm := range []kvmbackup.VMID{"B-1", "_x", "a b", "a-2", "aa", "ä"} {
			want = append(want, r.running(r.lease(vm), full(vm, 1)))
		}
		r.sameIDs("list", r.list(kvmbackup.Query{}), want...)
	}},
	{"list/empty", "A query that nothing fits returns no records and no error.", func(r *run) {
		r.populate()
		r.sameIDs("list", r.list(kvmbackup.Query{VM: "vm-c"}))
		r.sameIDs("list", r.list(kvmbackup.Query{Chain: kvmbackup.NewChainID()}))
	}},
	{"list/vm", "Query.VM selects one VM.", func(r *run) {
		all := r.populate()
		r.sameIDs("list", r.list(kvmbackup.Query{VM: vmA}), all[:4]...)
	}},
	{"list/chain", "Query.Chain selects one chain.", func(r *run) {
		all := r.populate()
		r.sameIDs("list", r.list(kvmbackup.Query{Chain: all[0].ChainID}), all[0], all[1])
	}},
	{"list/statuses", "Query.Statuses selects records in any of the statuses.", func(r *run) {
		all := r.populate()
		r.sameIDs("list", r.list(kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}}), all[3], all[5])
		r.sameIDs("list", r.list(kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted,
			kvmbackup.StatusDeletePending}}), all[0], all[1], all[4])
	}},
	{"list/after-sequence", "Query.AfterSequence selects higher sequences only.", func(r *run) {
		all := r.populate()
		r.sameIDs("list", r.list(kvmbackup.Query{VM: vmA, AfterSequence: all[1].Sequence}), all[2], all[3])
	}},
	{"list/limit", "Query.Limit keeps the first ones.", func(r *run) {
		all := r.populate()
		r.sameIDs("list", r.list(kvmbackup.Query{Limit: 5}), all[:5]...)
		r.sameIDs("list", r.list(kvmbackup.Query{Limit: 100}), all...)
	}},
	{"list/pages", "AfterSequence and Limit together page through a VM without gaps or repeats.", func(r *run) {
		all := r.populate()[:4]
		q := kvmbackup.Query{VM: vmA, Limit: 3}
		page := r.list(q)
		r.sameIDs("first page", page, all[:3]...)
		q.AfterSequence = page[2].Sequence
		r.sameIDs("second page", r.list(q), all[3])
	}},
	{"list/pages-of-all", "AfterVM, AfterSequence and Limit together page through all VMs without gaps or repeats.",
		func(r *run) {
			all := r.populate()
			q := kvmbackup.Query{Limit: 3}
			var got []kvmbackup.Backup
			for range len(all) {
				page := r.list(q)
				if len(page) == 0 {
					break
				}
				got = append(got, page...)
				last := page[len(page)-1]
				q.AfterVM, q.AfterSequence = last.VM, last.Sequence
			}
			r.sameIDs("all pages", got, all...)
			r.sameIDs("after the last", r.list(q))
		}},
	{"list/leaves", "Query.Leaves selects records that no record names as its parent, whatever status either is in.",
		func(r *run) {
			all := r.populate() // of which the second has the first for its parent
			r.sameIDs("list", r.list(kvmbackup.Query{Leaves: true}), all[1:]...)
			l := r.lease("vm-c")
			parent := r.completed(l, full("vm-c", 1))
			r.running(l, child(parent, 2))
			r.sameIDs("list", r.list(kvmbackup.Query{VM: "vm-c", Leaves: true,
				Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted}}))
		}},
	{"list/all-conditions", "The conditions of a query hold together.", func(r *run) {
		all := r.populate()
		q := kvmbackup.Query{VM: vmA, Chain: all[0].ChainID, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted},
			AfterSequence: 0, Limit: 9}
		r.sameIDs("list", r.list(q), all[0])
		q.VM = vmB
		r.sameIDs("list", r.list(q))
	}},
}

// populate makes records of two VMs in all statuses and returns them in List's order.
func (r *run) populate() []kvmbackup.Backup {
	lb, la := r.lease(vmB), r.lease(vmA)
	e := r.completed(lb, full(vmB, 1))
	f := r.running(lb, full(vmB, 2))
	a := r.completed(la, full(vmA, 3))
	b := r.pending(la, child(a, 4))
	c := r.failed(la, full(vmA, 5))
	d := r.running(la, full(vmA, 6))
	return []kvmbackup.Backup{a, b, c, d, e, f}
}
