package storetest_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/memstore"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

// TestRulesBite breaks a store in one way per rule, and the rule must say so. A rule without a broken store fails.
func TestRulesBite(t *testing.T) {
	all := breakers()
	for _, rule := range storetest.Rules() {
		t.Run(rule.Name, func(t *testing.T) {
			if err := rule.Check(t.Context(), newHooks().harness()); err != nil {
				t.Fatalf("the rule refuses a store that is whole: %v", err)
			}
			breakIt, ok := all[rule.Name]
			if !ok {
				t.Fatal("no broken store shows that this rule can fail")
			}
			delete(all, rule.Name)
			h := newHooks()
			breakIt(h)
			err := rule.Check(t.Context(), h.harness())
			if err == nil {
				t.Fatal("the rule doesn't notice the broken store")
			}
			if !strings.Contains(err.Error(), rule.Text) {
				t.Errorf("the failure doesn't explain itself: %v", err)
			}
		})
	}
	for name := range all {
		t.Errorf("there is a broken store for %s, which is no rule", name)
	}
}

// TestProcessClock: a store that goes by the process's clock instead of its own is found by every rule on expiry,
// however short its leases and slow its calls are.
func TestProcessClock(t *testing.T) {
	found := 0
	for _, rule := range storetest.Rules() {
		own := newClock() // nobody asks it
		err := rule.Check(t.Context(), storetest.Harness{
			Store: memstore.New(), Advance: own.Advance, ShortTTL: time.Nanosecond,
		})
		expiry := strings.HasSuffix(rule.Name, "-expired") && rule.Name != "lease/release-expired" // which does nothing
		switch expiry = expiry || rule.Name == "lease/clock" || rule.Name == "lease/takeover"; {
		case expiry && err == nil:
			t.Errorf("%s doesn't notice it", rule.Name)
		case expiry:
			found++
		}
	}
	if found < 10 {
		t.Errorf("%d rules are on expiry", found)
	}
}

// waits is a store that waits for a busy VM, whatever its caller's context says.
type waits struct {
	*memstore.Store
	until chan struct{}
}

func (w waits) AcquireLease(ctx ctxT, vm vmT, holder string, ttl time.Duration) (lease, error) {
	l, err := w.Store.AcquireLease(ctx, vm, holder, ttl)
	if errors.Is(err, kvmbackup.ErrBusy) {
		<-w.until
	}
	return l, err
}

// TestRulesEnd: a call that never returns doesn't hold up the suite.
func TestRulesEnd(t *testing.T) {
	until := make(chan struct{})
	defer close(until)
	for _, rule := range storetest.Rules() {
		if strings.HasPrefix(rule.Name, "lease/busy") {
			err := rule.Check(t.Context(), storetest.Harness{Store: waits{memstore.New(), until}},
				storetest.Limit(10*time.Millisecond))
			if err == nil || !strings.Contains(err.Error(), rule.Text) {
				t.Errorf("%s: %v", rule.Name, err)
			}
		}
	}
}

// breakers returns for every rule a way to break a whole store so that the rule must fail.
func breakers() map[string]func(*hooks) {
	out := map[string]func(*hooks){}
	for _, set := range []map[string]func(*hooks){leaseBreakers, readBreakers, listBreakers, beginBreakers,
		completeBreakers, failBreakers, markBreakers, removeBreakers, annotateBreakers, importBreakers, removalBreakers,
		concurrentBreakers} {
		for name, f := range set {
			out[name] = f
		}
	}
	for _, w := range []string{"begin", "complete", "fail", "mark", "remove", "set-active", "annotate", "import"} {
		fenceBreakers(out, w)
		out["context/"+w] = ignoreContext(w)
		out["dead/"+w] = undead(w)
	}
	delete(out, "fence/set-active-other-vm")
	for _, m := range []string{"acquire-lease", "renew-lease", "release-lease", "vm", "backup", "newest", "children",
		"list", "removals", "ack-removal"} {
		out["context/"+m] = ignoreContext(m)
		out["dead/"+m] = undead(m)
	}
	return out
}

func ignoreContext(name string) func(*hooks) {
	return func(h *hooks) {
		h.before[name] = func(ctx ctxT, l lease) (ctxT, lease) { return context.WithoutCancel(ctx), l }
	}
}

// undead answers although the store is closed.
func undead(name string) func(*hooks) { return func(h *hooks) { h.alive[name] = true } }

// fenceBreakers are stores that let one write pass with a lease that no longer counts, in one way each.
func fenceBreakers(out map[string]func(*hooks), name string) {
	pass := func(when func(h *hooks, l lease) bool) func(*hooks) {
		return func(h *hooks) {
			h.before[name] = func(ctx ctxT, l lease) (ctxT, lease) {
				if when(h, l) {
					l = h.valid(l.VM)
				}
				return ctx, l
			}
		}
	}
	out["fence/"+name+"-taken-over"] = pass(func(h *hooks, l lease) bool { return l.Token < h.last[l.VM].Token })
	out["fence/"+name+"-released"] = pass(func(h *hooks, l lease) bool {
		return l.Token == h.last[l.VM].Token && h.released[l.VM]
	})
	out["fence/"+name+"-expired"] = pass(func(h *hooks, l lease) bool {
		// The suite's own look at whether the lease is over is a SetActive with a clock that stands.
		return l.Token == h.last[l.VM].Token && !h.released[l.VM]
	})
	out["fence/"+name+"-not-given"] = pass(func(h *hooks, l lease) bool {
		return l.Token > h.last[l.VM].Token || l.Token <= 0
	})
	out["fence/"+name+"-other-vm"] = func(h *hooks) {
		h.before[name] = func(ctx ctxT, l lease) (ctxT, lease) {
			if l.VM == "vm-b" {
				l = h.valid("vm-a")
			}
			return ctx, l
		}
	}
}

var leaseBreakers = map[string]func(*hooks){
	"lease/fields": func(h *hooks) {
		h.acquire = func(ctx ctxT, vm vmT, holder string, ttl time.Duration) (lease, error) {
			l, err := h.good.AcquireLease(ctx, vm, holder, ttl)
			l.Holder = ""
			return l, err
		}
	},
	"lease/busy": func(h *hooks) { h.instead("acquire-lease", kvmbackup.ErrBusy) }, // without the holder
	"lease/busy-at-once": func(h *hooks) {
		h.acquire = func(ctx ctxT, vm vmT, holder string, ttl time.Duration) (lease, error) {
			l, err := h.good.AcquireLease(ctx, vm, holder, ttl)
			if errors.Is(err, kvmbackup.ErrBusy) {
				<-ctx.Done()
			}
			return l, err
		}
	},
	"fence/never-leased": func(h *hooks) {
		h.before["set-active"] = func(ctx ctxT, l lease) (ctxT, lease) {
			if l.Token == 0 && h.last[l.VM].Token == 0 {
				l = h.valid(l.VM)
			}
			return ctx, l
		}
	},
	"lease/busy-for-itself": func(h *hooks) {
		h.acquire = func(ctx ctxT, vm vmT, holder string, ttl time.Duration) (lease, error) {
			if h.last[vm].Holder == holder {
				_ = h.good.ReleaseLease(ctx, h.last[vm])
			}
			return h.good.AcquireLease(ctx, vm, holder, ttl)
		}
	},
	"lease/per-vm": func(h *hooks) {
		h.acquire = func(ctx ctxT, vm vmT, holder string, ttl time.Duration) (lease, error) {
			return h.good.AcquireLease(ctx, "all", holder, ttl)
		}
	},
	"lease/takeover": func(h *hooks) {
		h.acquire = func(ctx ctxT, vm vmT, holder string, ttl time.Duration) (lease, error) {
			if h.last[vm].Token > 0 && !h.released[vm] {
				return lease{}, &kvmbackup.BusyError{VM: vm, Holder: h.last[vm].Holder}
			}
			return h.good.AcquireLease(ctx, vm, holder, ttl)
		}
	},
	"lease/clock": func(h *hooks) { // removals are dated by the process
		h.removals = func(ctx ctxT, limit int) ([]kvmbackup.Removal, error) {
			list, err := h.good.Removals(ctx, limit)
			for i := range list {
				list[i].At = time.Now().UTC()
			}
			return list, err
		}
	},
	"lease/token-rises-after-release": sameToken,
	"lease/token-rises-for-all": func(h *hooks) {
		other := newHooks()
		h.open = func() (kvmbackup.Store, error) { return other, nil }
	},
	"lease/renew": func(h *hooks) {
		h.renew = func(ctx ctxT, l lease, ttl time.Duration) (lease, error) {
			_, err := h.good.RenewLease(ctx, l, ttl)
			return l, err
		}
	},
	"lease/renew-counts": func(h *hooks) {
		h.renew = func(ctx ctxT, l lease, ttl time.Duration) (lease, error) {
			l.ExpiresAt = h.clock.Now().Add(ttl)
			return l, nil
		}
	},
	"lease/renew-expired":    func(h *hooks) { h.swallow("renew-lease", kvmbackup.ErrLeaseLost) },
	"lease/renew-taken-over": func(h *hooks) { h.swallow("renew-lease", kvmbackup.ErrLeaseLost) },
	"lease/renew-released":   func(h *hooks) { h.swallow("renew-lease", kvmbackup.ErrLeaseLost) },
	"lease/release":          func(h *hooks) { h.release = func(ctxT, lease) error { return nil } },
	"lease/release-twice": func(h *hooks) {
		h.release = func(ctx ctxT, l lease) error {
			if h.released[l.VM] {
				return kvmbackup.ErrLeaseLost
			}
			return h.good.ReleaseLease(ctx, l)
		}
	},
	"lease/release-expired": func(h *hooks) {
		h.release = func(ctx ctxT, l lease) error {
			_, err := h.good.RenewLease(ctx, l, time.Hour)
			return errors.Join(err, h.good.ReleaseLease(ctx, l))
		}
	},
	"lease/release-lost": func(h *hooks) {
		h.release = func(ctx ctxT, l lease) error { return h.good.ReleaseLease(ctx, h.last[l.VM]) }
	},
	"lease/race":          func(h *hooks) { h.swallow("acquire-lease", kvmbackup.ErrBusy) },
	"lease/race-takeover": func(h *hooks) { h.swallow("acquire-lease", kvmbackup.ErrBusy) },
}

func sameToken(h *hooks) {
	h.acquire = func(ctx ctxT, vm vmT, holder string, ttl time.Duration) (lease, error) {
		l, err := h.good.AcquireLease(ctx, vm, holder, ttl)
		l.Token = 1
		return l, err
	}
	h.release = func(ctx ctxT, l lease) error {
		l.Token = int64(h.counted())
		return h.good.ReleaseLease(ctx, l)
	}
}

var readBreakers = map[string]func(*hooks){
	"read/no-lease": func(h *hooks) {
		h.list = func(ctx ctxT, q kvmbackup.Query) ([]rec, error) {
			if h.released["vm-a"] {
				return nil, kvmbackup.ErrLeaseLost
			}
			return h.good.List(ctx, q)
		}
	},
	"read/sees-writes": func(h *hooks) {
		// The other instance remembers the first answer.
		other := newHooks()
		other.good, other.vm = h.good, h.good.VM
		other.returned = func(b rec) rec {
			if old, ok := other.snapped[b.ID]; ok {
				return old
			}
			other.snapped[b.ID] = b
			return b
		}
		h.open = func() (kvmbackup.Store, error) { return other, nil }
	},
	"read/durable":   func(h *hooks) { h.open = func() (kvmbackup.Store, error) { return memstore.New(), nil } },
	"read/not-found": func(h *hooks) { h.swallow("fail", kvmbackup.ErrNotFound) },
	"read/unchanged": func(h *hooks) {
		h.stored = func(b rec) rec { b.FrozenFor = 0; return b }
	},
	"read/times": func(h *hooks) {
		h.returned = func(b rec) rec { b.StartedAt = b.StartedAt.Truncate(time.Millisecond); return b }
	},
	"read/own-copy": func(h *hooks) {
		h.complete = func(ctx ctxT, l lease, b rec) error {
			h.snapped[b.ID] = b
			return h.good.Complete(ctx, l, b)
		}
		h.returned = func(b rec) rec { return h.snapped[b.ID] }
	},
	"vm/unknown": func(h *hooks) {
		h.vm = func(ctx ctxT, vm vmT) (kvmbackup.VMRecord, error) {
			if l := h.last[vm]; l.Token == 0 {
				return kvmbackup.VMRecord{}, kvmbackup.ErrNotFound
			}
			return h.good.VM(ctx, vm)
		}
	},
	"newest/sequence": func(h *hooks) {
		h.newest = func(ctx ctxT, vm vmT) (rec, error) {
			list, err := h.good.List(ctx, kvmbackup.Query{VM: vm})
			return slices.MaxFunc(list, func(a, b rec) int { return a.StartedAt.Compare(b.StartedAt) }), err
		}
	},
	"newest/restorable":     func(h *hooks) { h.newestOf() },
	"newest/delete-pending": func(h *hooks) { h.newestOf(kvmbackup.StatusCompleted) },
	"newest/removed": func(h *hooks) {
		h.newest = func(ctx ctxT, vm vmT) (rec, error) {
			v, err := h.good.VM(ctx, vm)
			list, errList := h.good.List(ctx, kvmbackup.Query{VM: vm, AfterSequence: v.LastSequence - 1})
			if len(list) == 0 {
				return rec{}, kvmbackup.ErrNotFound
			}
			return list[0], errors.Join(err, errList)
		}
	},
	"newest/per-vm": func(h *hooks) {
		h.newest = func(ctx ctxT, _ vmT) (rec, error) { return h.good.Newest(ctx, "vm-b") }
	},
	"newest/none": func(h *hooks) { h.swallow("newest", kvmbackup.ErrNotFound) },
	"children/direct": func(h *hooks) {
		h.children = func(ctx ctxT, id idT) ([]rec, error) {
			list, err := h.good.Children(ctx, id)
			slices.SortFunc(list, func(a, b rec) int { return strings.Compare(a.Path, b.Path) })
			return list, err
		}
	},
	"children/any-status": func(h *hooks) {
		h.children = func(ctx ctxT, id idT) ([]rec, error) {
			list, err := h.good.Children(ctx, id)
			return slices.DeleteFunc(list, func(b rec) bool { return b.Status == kvmbackup.StatusDeletePending }), err
		}
	},
	"children/unknown": func(h *hooks) {
		h.children = func(ctx ctxT, id idT) ([]rec, error) {
			if _, err := h.good.Backup(ctx, id); err != nil {
				return nil, err
			}
			return h.good.Children(ctx, id)
		}
	},
	"children/parent-not-there": func(h *hooks) {
		h.children = func(ctx ctxT, id idT) ([]rec, error) {
			if h.record(id).ID == "" {
				return nil, nil
			}
			return h.good.Children(ctx, id)
		}
	},
}

// newestOf makes Newest look at records in those statuses only.
func (h *hooks) newestOf(statuses ...kvmbackup.Status) {
	h.newest = func(ctx ctxT, vm vmT) (rec, error) {
		list, err := h.good.List(ctx, kvmbackup.Query{VM: vm, Statuses: statuses})
		return list[len(list)-1], err
	}
}

// listed breaks List by changing the query or the answer.
func listed(query func(*kvmbackup.Query), answer func([]rec) []rec) func(*hooks) {
	return func(h *hooks) {
		h.list = func(ctx ctxT, q kvmbackup.Query) ([]rec, error) {
			if query != nil {
				query(&q)
			}
			list, err := h.good.List(ctx, q)
			if answer != nil {
				list = answer(list)
			}
			return list, err
		}
	}
}

var listBreakers = map[string]func(*hooks){
	"list/all": listed(nil, func(l []rec) []rec {
		return slices.DeleteFunc(l, func(b rec) bool { return b.Status == kvmbackup.StatusFailed })
	}),
	"list/order": listed(nil, func(l []rec) []rec {
		slices.SortFunc(l, func(a, b rec) int {
			return strings.Compare(strings.ToLower(string(a.VM)), strings.ToLower(string(b.VM)))
		})
		return l
	}),
	"list/empty": func(h *hooks) {
		h.list = func(ctx ctxT, q kvmbackup.Query) ([]rec, error) {
			list, err := h.good.List(ctx, q)
			if len(list) == 0 && err == nil {
				err = kvmbackup.ErrNotFound
			}
			return list, err
		}
	},
	"list/vm":             listed(func(q *kvmbackup.Query) { q.VM = "" }, nil),
	"list/chain":          listed(func(q *kvmbackup.Query) { q.Chain = "" }, nil),
	"list/statuses":       listed(func(q *kvmbackup.Query) { q.Statuses = q.Statuses[:min(1, len(q.Statuses))] }, nil),
	"list/after-sequence": listed(func(q *kvmbackup.Query) { q.AfterSequence-- }, nil),
	"list/limit":          listed(func(q *kvmbackup.Query) { q.Limit = 0 }, nil),
	"list/pages": listed(func(q *kvmbackup.Query) {
		if q.Limit > 0 {
			q.AfterSequence = 0
		}
	}, nil),
	"list/pages-of-all": listed(func(q *kvmbackup.Query) { q.AfterVM = "" }, nil),
	"list/leaves":       listed(func(q *kvmbackup.Query) { q.Leaves = false }, nil),
	"list/all-conditions": listed(func(q *kvmbackup.Query) {
		if q.Chain != "" {
			q.VM = ""
		}
	}, nil),
}

var beginBreakers = map[string]func(*hooks){
	"begin/record": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) {
			_, err := h.good.Begin(ctx, l, b)
			return b, err
		}
	},
	"begin/sequence": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) {
			got, err := h.good.Begin(ctx, l, b)
			if b.Sequence > 0 {
				got.Sequence = b.Sequence
			}
			return got, err
		}
		h.returned = func(b rec) rec { b.Sequence = 100 - b.Sequence; return b }
	},
	"begin/sequence-not-reused": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) {
			list, _ := h.good.List(ctx, kvmbackup.Query{VM: l.VM})
			b, err := h.good.Begin(ctx, l, b)
			b.Sequence = int64(len(list)) + 1
			return b, err
		}
	},
	"begin/stamp": func(h *hooks) {
		h.vm = func(ctx ctxT, vm vmT) (kvmbackup.VMRecord, error) {
			v, err := h.good.VM(ctx, vm)
			if list, _ := h.good.List(ctx, kvmbackup.Query{VM: vm}); len(list) == 0 {
				v.LastStamp = ""
			}
			return v, err
		}
	},
	"begin/active": func(h *hooks) {
		h.done["begin"] = func(ctx ctxT, l lease, _ idT) { _ = h.good.SetActive(ctx, l, "") }
	},
	"begin/one-running": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) {
			running, _ := h.good.List(ctx, kvmbackup.Query{VM: l.VM, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
			if len(running) > 0 {
				_ = h.good.Fail(ctx, l, running[0].ID, "overtaken")
			}
			return h.good.Begin(ctx, l, b)
		}
	},
	"begin/after-end": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) {
			if h.counted() > 2 {
				return rec{}, kvmbackup.ErrRunning
			}
			return h.good.Begin(ctx, l, b)
		}
	},
	"begin/per-vm": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) {
			running, _ := h.good.List(ctx, kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
			if len(running) > 0 {
				return rec{}, kvmbackup.ErrRunning
			}
			return h.good.Begin(ctx, l, b)
		}
	},
	"begin/status":        func(h *hooks) { h.swallow("begin", kvmbackup.ErrStatus) },
	"begin/parent-status": func(h *hooks) { h.swallow("begin", kvmbackup.ErrStatus) },
	"begin/parent-unknown": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) {
			if _, err := h.good.Backup(ctx, b.ParentID); b.ParentID != "" && err != nil {
				b.ParentID, b.Kind, b.Position, b.Volumes = "", kvmbackup.KindFull, 0, b.Volumes[1:]
			}
			return h.good.Begin(ctx, l, b)
		}
	},
	"begin/parent-other-vm": func(h *hooks) { h.swallow("begin", kvmbackup.ErrInvalid, kvmbackup.ErrNotFound) },
	"begin/validates":       func(h *hooks) { h.swallow("begin", kvmbackup.ErrInvalid) },
	"begin/id-taken": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) {
			if old := h.record(b.ID); old.ID != "" && old.VM == b.VM {
				_ = h.good.MarkDeletePending(ctx, l, b.ID)
				_ = h.good.Remove(ctx, l, b.ID, 0)
			}
			return h.good.Begin(ctx, l, b)
		}
	},
}

var completeBreakers = map[string]func(*hooks){
	"complete/replaces": func(h *hooks) {
		h.complete = func(ctx ctxT, l lease, b rec) error {
			b.Volumes = h.record(b.ID).Volumes
			return h.good.Complete(ctx, l, b)
		}
	},
	"complete/sequence": func(h *hooks) {
		h.complete = func(ctx ctxT, l lease, b rec) error {
			h.snapped[b.ID] = b
			return h.good.Complete(ctx, l, b)
		}
		h.returned = func(b rec) rec {
			if given, ok := h.snapped[b.ID]; ok {
				b.Sequence = given.Sequence
			}
			return b
		}
	},
	"complete/parent": func(h *hooks) { h.swallow("complete", kvmbackup.ErrInvalid) },
	"complete/active": func(h *hooks) {
		h.complete = func(ctx ctxT, l lease, b rec) error {
			v, _ := h.good.VM(ctx, l.VM)
			return errors.Join(h.good.Complete(ctx, l, b), h.good.SetActive(ctx, l, v.ActiveCheckpoint))
		}
	},
	"complete/untracked":          activeAsGiven,
	"complete/checkpoint-dropped": activeAsGiven,
	"complete/status-given": func(h *hooks) {
		h.complete = func(ctx ctxT, l lease, b rec) error {
			b.Status = kvmbackup.StatusCompleted
			return h.good.Complete(ctx, l, b)
		}
	},
	"complete/validates": func(h *hooks) { h.swallow("complete", kvmbackup.ErrInvalid) },
	"complete/twice": func(h *hooks) {
		h.complete = func(ctx ctxT, l lease, b rec) error {
			if h.record(b.ID).Status == kvmbackup.StatusCompleted {
				return kvmbackup.ErrStatus
			}
			return h.good.Complete(ctx, l, b)
		}
	},
	"complete/twice-active":   activeAsGiven,
	"complete/conflict":       func(h *hooks) { h.swallow("complete", kvmbackup.ErrStatus) },
	"complete/failed":         func(h *hooks) { h.swallow("complete", kvmbackup.ErrStatus) },
	"complete/delete-pending": func(h *hooks) { h.swallow("complete", kvmbackup.ErrStatus) },

	"active/set": func(h *hooks) {
		h.active = func(ctx ctxT, l lease, name kvmbackup.CheckpointName) error {
			return errors.Join(h.good.SetActive(ctx, l, name), h.good.SetActive(ctx, h.valid("vm-b"), name))
		}
	},
	"active/empty": func(h *hooks) {
		h.active = func(ctx ctxT, l lease, name kvmbackup.CheckpointName) error {
			if name == "" {
				return nil
			}
			return h.good.SetActive(ctx, l, name)
		}
	},
	"atomic/begin": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) {
			b, err := h.good.Begin(context.WithoutCancel(ctx), l, b)
			if err == nil && ctx.Err() != nil {
				return b, errors.Join(context.Cause(ctx), h.good.Fail(context.WithoutCancel(ctx), l, b.ID, "half"))
			}
			return b, err
		}
	},
	"atomic/complete": func(h *hooks) {
		h.complete = func(ctx ctxT, l lease, b rec) error {
			if err := h.good.SetActive(ctx, l, b.Checkpoint); err != nil {
				return err
			}
			return h.good.Complete(ctx, l, b)
		}
	},
	"atomic/mark": func(h *hooks) {
		h.mark = func(ctx ctxT, l lease, id idT) error {
			if err := h.good.SetActive(ctx, l, ""); err != nil {
				return err
			}
			return h.good.MarkDeletePending(ctx, l, id)
		}
	},
	"atomic/import": func(h *hooks) {
		h.imports = func(ctx ctxT, l lease, b rec) error {
			whole := context.WithoutCancel(ctx)
			if err := h.good.Import(whole, l, b); err != nil || ctx.Err() == nil {
				return err
			}
			return errors.Join(context.Cause(ctx), h.good.MarkDeletePending(whole, l, b.ID), h.good.Remove(whole, l, b.ID, 0))
		}
	},
	"atomic/remove": func(h *hooks) {
		h.remove = func(ctx ctxT, l lease, id idT, bytes int64) error {
			if err := h.good.Remove(ctx, l, id, bytes); err != nil || ctx.Err() == nil {
				return err
			}
			return errors.Join(context.Cause(ctx), h.good.AckRemoval(context.WithoutCancel(ctx), id))
		}
	},
}

// activeAsGiven makes every Complete set the active checkpoint, whatever it is.
func activeAsGiven(h *hooks) {
	h.complete = func(ctx ctxT, l lease, b rec) error {
		return errors.Join(h.good.Complete(ctx, l, b), h.good.SetActive(ctx, l, b.Checkpoint))
	}
}

var failBreakers = map[string]func(*hooks){
	"fail/record": func(h *hooks) {
		h.fail = func(ctx ctxT, l lease, id idT, _ string) error { return h.good.Fail(ctx, l, id, "") }
	},
	"fail/parent": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) { h.snapped[b.ID] = b; return h.good.Begin(ctx, l, b) }
		h.returned = func(b rec) rec { b.ParentID = h.snapped[b.ID].ParentID; return b }
	},
	"fail/active": func(h *hooks) {
		h.done["fail"] = func(ctx ctxT, l lease, _ idT) { _ = h.good.SetActive(ctx, l, "") }
	},
	"fail/twice": func(h *hooks) {
		h.fail = func(ctx ctxT, l lease, id idT, reason string) error {
			if h.record(id).Status == kvmbackup.StatusFailed {
				return kvmbackup.ErrStatus
			}
			return h.good.Fail(ctx, l, id, reason)
		}
	},
	"fail/completed": func(h *hooks) { h.swallow("fail", kvmbackup.ErrStatus) },
}

var markBreakers = map[string]func(*hooks){
	"mark/record": func(h *hooks) {
		h.done["mark"] = func(ctx ctxT, l lease, id idT) {
			yes := true
			_ = h.good.Annotate(ctx, l, id, kvmbackup.Annotation{Pinned: &yes})
		}
	},
	"mark/owner": func(h *hooks) {
		h.mark = func(ctx ctxT, l lease, id idT) error {
			v, _ := h.good.VM(ctx, l.VM)
			return errors.Join(h.good.MarkDeletePending(ctx, l, id), h.good.SetActive(ctx, l, v.ActiveCheckpoint))
		}
	},
	"mark/not-owner": markEmpties,
	"mark/twice":     markEmpties,
	"mark/status":    func(h *hooks) { h.swallow("mark", kvmbackup.ErrStatus) },
	"mark/with-children": func(h *hooks) {
		h.mark = func(ctx ctxT, l lease, id idT) error {
			if list, _ := h.good.Children(ctx, id); len(list) > 0 {
				return kvmbackup.ErrHasChildren
			}
			return h.good.MarkDeletePending(ctx, l, id)
		}
	},
}

func markEmpties(h *hooks) {
	h.done["mark"] = func(ctx ctxT, l lease, _ idT) { _ = h.good.SetActive(ctx, l, "") }
}

var removeBreakers = map[string]func(*hooks){
	"remove/record": func(h *hooks) {
		h.remove = func(ctx ctxT, l lease, id idT, _ int64) error { return nil }
	},
	"remove/failed": func(h *hooks) {
		h.remove = func(ctx ctxT, l lease, id idT, bytes int64) error {
			if h.record(id).Status == kvmbackup.StatusFailed {
				return kvmbackup.ErrStatus
			}
			return h.good.Remove(ctx, l, id, bytes)
		}
	},
	"remove/report": func(h *hooks) {
		h.remove = func(ctx ctxT, l lease, id idT, bytes int64) error {
			return h.good.Remove(ctx, l, id, int64(int32(bytes)))
		}
	},
	"remove/children": func(h *hooks) { h.swallow("remove", kvmbackup.ErrHasChildren) },
	"remove/cascade":  func(h *hooks) { h.swallow("remove", kvmbackup.ErrHasChildren) },
	"remove/held":     func(h *hooks) { h.swallow("remove", kvmbackup.ErrHeld) },
	"remove/status":   func(h *hooks) { h.swallow("remove", kvmbackup.ErrStatus) },
	"remove/gone":     func(h *hooks) { h.swallow("remove", kvmbackup.ErrNotFound) },
}

var annotateBreakers = map[string]func(*hooks){
	"annotate/fields": func(h *hooks) {
		h.annotate = func(ctx ctxT, l lease, id idT, a kvmbackup.Annotation) error {
			a.Digests = nil
			return h.good.Annotate(ctx, l, id, a)
		}
	},
	"annotate/nothing": func(h *hooks) {
		h.annotate = func(ctx ctxT, l lease, id idT, a kvmbackup.Annotation) error {
			if a.Pinned == nil {
				a.Pinned = new(bool)
			}
			return h.good.Annotate(ctx, l, id, a)
		}
	},
	"annotate/keys": func(h *hooks) {
		h.annotate = func(ctx ctxT, l lease, id idT, a kvmbackup.Annotation) error {
			a.KeyIDs = nil
			return h.good.Annotate(ctx, l, id, a)
		}
	},
	"annotate/delete-pending": func(h *hooks) {
		h.annotate = func(ctx ctxT, l lease, id idT, a kvmbackup.Annotation) error {
			if h.record(id).Status == kvmbackup.StatusDeletePending {
				return kvmbackup.ErrStatus
			}
			return h.good.Annotate(ctx, l, id, a)
		}
	},
	"annotate/hold-delete-pending": func(h *hooks) { h.swallow("annotate", kvmbackup.ErrStatus) },
	"annotate/hold-twice": func(h *hooks) {
		h.annotate = func(ctx ctxT, l lease, id idT, a kvmbackup.Annotation) error {
			if a.AddHold != nil {
				_ = h.good.Annotate(ctx, l, id, kvmbackup.Annotation{RemoveHold: a.AddHold.ID})
			}
			return h.good.Annotate(ctx, l, id, a)
		}
	},
	"annotate/unhold-unknown": func(h *hooks) {
		h.annotate = func(ctx ctxT, l lease, id idT, a kvmbackup.Annotation) error {
			if holds := h.record(id).Holds; a.RemoveHold != "" && len(holds) > 0 {
				a.RemoveHold = holds[0].ID
			}
			return h.good.Annotate(ctx, l, id, a)
		}
	},
	"annotate/status": func(h *hooks) { h.swallow("annotate", kvmbackup.ErrStatus) },
}

var importBreakers = map[string]func(*hooks){
	"import/record": func(h *hooks) {
		h.imports = func(ctx ctxT, l lease, b rec) error { b.Holds = nil; return h.good.Import(ctx, l, b) }
	},
	"import/delete-pending": func(h *hooks) {
		h.imports = func(ctx ctxT, l lease, b rec) error {
			b.Status = kvmbackup.StatusCompleted
			return h.good.Import(ctx, l, b)
		}
	},
	"import/status": func(h *hooks) { h.swallow("import", kvmbackup.ErrStatus) },
	"import/there": func(h *hooks) {
		h.imports = func(ctx ctxT, l lease, b rec) error {
			if h.record(b.ID).ID != "" {
				return kvmbackup.ErrInvalid
			}
			return h.good.Import(ctx, l, b)
		}
	},
	"import/failed": func(h *hooks) {
		h.imports = func(ctx ctxT, l lease, b rec) error {
			if h.record(b.ID).ID != "" {
				return nil
			}
			return h.good.Import(ctx, l, b)
		}
	},
	"import/other-vms-id": func(h *hooks) {
		h.imports = func(ctx ctxT, l lease, b rec) error {
			if there := h.record(b.ID); there.ID != "" && there.VM != b.VM {
				_ = h.good.MarkDeletePending(ctx, h.valid(there.VM), b.ID)
				_ = h.good.Remove(ctx, h.valid(there.VM), b.ID, 0)
			}
			return h.good.Import(ctx, l, b)
		}
	},
	"import/counters": func(h *hooks) {
		h.vm = func(ctx ctxT, vm vmT) (kvmbackup.VMRecord, error) { return kvmbackup.VMRecord{VM: vm}, nil }
	},
	"import/counters-stay": func(h *hooks) {
		h.imports = func(ctx ctxT, l lease, b rec) error {
			h.count = int(b.Sequence)
			return h.good.Import(ctx, l, b)
		}
		h.vm = func(ctx ctxT, vm vmT) (kvmbackup.VMRecord, error) {
			v, err := h.good.VM(ctx, vm)
			v.LastSequence = int64(h.count)
			return v, err
		}
	},
	"import/sequence-taken": func(h *hooks) { h.swallow("import", kvmbackup.ErrInvalid) },
	"import/validates":      func(h *hooks) { h.swallow("import", kvmbackup.ErrInvalid) },
	"import/active": func(h *hooks) {
		h.done["import"] = func(ctx ctxT, l lease, id idT) { _ = h.good.SetActive(ctx, l, h.record(id).Checkpoint) }
	},
	"import/while-running": func(h *hooks) {
		h.imports = func(ctx ctxT, l lease, b rec) error {
			list, _ := h.good.List(ctx, kvmbackup.Query{VM: l.VM, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
			if len(list) > 0 {
				return kvmbackup.ErrRunning
			}
			return h.good.Import(ctx, l, b)
		}
	},
}

var removalBreakers = map[string]func(*hooks){
	"removals/oldest-first": func(h *hooks) {
		h.removals = func(ctx ctxT, limit int) ([]kvmbackup.Removal, error) {
			list, err := h.good.Removals(ctx, limit)
			slices.Reverse(list)
			return list, err
		}
	},
	"removals/limit": func(h *hooks) {
		h.removals = func(ctx ctxT, _ int) ([]kvmbackup.Removal, error) { return h.good.Removals(ctx, 0) }
	},
	"removals/stay": func(h *hooks) {
		h.removals = func(ctx ctxT, limit int) ([]kvmbackup.Removal, error) {
			list, err := h.good.Removals(ctx, limit)
			for _, r := range list {
				err = errors.Join(err, h.good.AckRemoval(ctx, r.Backup))
			}
			return list, err
		}
	},
	"removals/ack": func(h *hooks) {
		// Acknowledging one acknowledges all before it.
		h.ack = func(ctx ctxT, id idT) error {
			list, err := h.good.Removals(ctx, 0)
			for _, r := range list {
				err = errors.Join(err, h.good.AckRemoval(ctx, r.Backup))
				if r.Backup == id {
					break
				}
			}
			return err
		}
	},
	"removals/ack-unknown": func(h *hooks) {
		h.ack = func(ctx ctxT, id idT) error {
			list, _ := h.good.Removals(ctx, 0)
			if !slices.ContainsFunc(list, func(r kvmbackup.Removal) bool { return r.Backup == id }) {
				return kvmbackup.ErrNotFound
			}
			return h.good.AckRemoval(ctx, id)
		}
	},
	"removals/ack-no-lease": func(h *hooks) {
		h.ack = func(ctx ctxT, id idT) error {
			if !h.released["vm-a"] {
				return &kvmbackup.BusyError{VM: "vm-a"}
			}
			return h.good.AckRemoval(ctx, id)
		}
	},
	"removals/ack-live": func(h *hooks) {
		h.ack = func(ctx ctxT, id idT) error {
			return errors.Join(h.good.MarkDeletePending(ctx, h.valid("vm-a"), id), h.good.Remove(ctx, h.valid("vm-a"), id, 0))
		}
	},
}

var concurrentBreakers = map[string]func(*hooks){
	"concurrent/begin":    func(h *hooks) { h.swallow("begin", kvmbackup.ErrRunning) },
	"concurrent/complete": completeBreakers["complete/twice"],
	"concurrent/complete-or-fail": func(h *hooks) {
		// The status and the active checkpoint are two writes, and of two callers the last one's second write counts.
		h.complete = func(ctx ctxT, l lease, b rec) error {
			return errors.Join(h.good.Complete(ctx, l, b), h.good.SetActive(ctx, l, b.Checkpoint))
		}
		h.fail = func(ctx ctxT, l lease, id idT, reason string) error {
			return errors.Join(h.good.Fail(ctx, l, id, reason), h.good.SetActive(ctx, l, "backup.failed"))
		}
	},
	"concurrent/remove": func(h *hooks) { h.swallow("remove", kvmbackup.ErrNotFound) },
	"concurrent/annotate": func(h *hooks) {
		h.annotate = func(ctx ctxT, l lease, id idT, a kvmbackup.Annotation) error {
			if h.counted()%2 == 0 {
				return nil // another's write goes over it
			}
			return h.good.Annotate(ctx, l, id, a)
		}
	},
	"concurrent/two-deletes": func(h *hooks) {
		// A mark on a parent gets lost.
		h.mark = func(ctx ctxT, l lease, id idT) error {
			if h.record(id).ParentID == "" {
				return nil
			}
			return h.good.MarkDeletePending(ctx, l, id)
		}
	},
	"concurrent/begin-or-mark": func(h *hooks) {
		h.begin = func(ctx ctxT, l lease, b rec) (rec, error) {
			if b.ParentID != "" {
				_ = h.good.MarkDeletePending(ctx, l, b.ParentID)
				_ = h.good.Remove(ctx, l, b.ParentID, 0)
				return b, nil
			}
			return h.good.Begin(ctx, l, b)
		}
	},
	"concurrent/takeover": func(h *hooks) {
		h.active = func(ctx ctxT, l lease, name kvmbackup.CheckpointName) error {
			return h.good.SetActive(ctx, h.valid(l.VM), oldName(name))
		}
	},
	"concurrent/vms": func(h *hooks) {
		h.remove = func(ctx ctxT, l lease, id idT, bytes int64) error {
			if bytes > 0 && h.counted() == 1 {
				return nil
			}
			return h.good.Remove(ctx, l, id, bytes)
		}
	},
}

// oldName replaces every writer's name by the old holder's.
func oldName(kvmbackup.CheckpointName) kvmbackup.CheckpointName { return "backup.old" }
