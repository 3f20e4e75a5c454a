package storetest

import (
	"context"
	"io"
	"maps"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

const deadText = "Every call on a store that is closed or dead is ErrUnavailable, so that the caller can tell it " +
	"from an answer, and wait."

// deadRules are one per method.
func deadRules() []Rule {
	var out []Rule
	add := func(name string, prepare func(*run, kvmbackup.Lease) kvmbackup.Backup,
		call func(context.Context, kvmbackup.Store, kvmbackup.Lease, kvmbackup.Backup) error,
	) {
		out = append(out, Rule{"dead/" + name, deadText, func(r *run) {
			l := r.lease(vmA)
			b := prepare(r, l)
			if r.closes() {
				r.want(call(r.ctx, r.Store, l, b), name+" on a store that is closed", kvmbackup.ErrUnavailable)
			}
		}})
	}
	for _, w := range writes {
		add(w.name, w.prepare, w.call)
	}
	nothing := func(*run, kvmbackup.Lease) kvmbackup.Backup { return kvmbackup.Backup{} }
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		add(name, nothing, func(ctx context.Context, st kvmbackup.Store, l kvmbackup.Lease, _ kvmbackup.Backup) error {
			return calls[name](ctx, st, l)
		})
	}
	return out
}

// closes ends the store, if it can be closed.
func (r *run) closes() bool {
	end := r.h.Close
	if end == nil {
		c, ok := r.Store.(io.Closer)
		if !ok {
			return false
		}
		end = c.Close
	}
	r.ok(end(), "close the store")
	return true
}
