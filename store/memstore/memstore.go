// Package memstore is a kvmbackup.Store in memory, for tests and for trying things out. Its data ends with the process.
//
// Tests that need to be master of time set its clock:
//
//	now := time.Date(2026, 11, 23, 7, 0, 0, 0, time.UTC)
//	st := memstore.New(memstore.WithClock(func() time.Time { return now }))
package memstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// Store is a kvmbackup.Store in memory. All its methods may be called concurrently. A context is looked at when a
// call begins; no call blocks.
type Store struct {
	rules.Writer
	mu     sync.Mutex
	closed bool
	now    func() time.Time
	states map[kvmbackup.VMID]*rules.State
}

var _ kvmbackup.Store = (*Store)(nil)

// Option changes a new Store.
type Option func(*Store)

// WithClock sets the store's clock, which decides on leases and dates removals. It is called with the store
// locked, so it must not call the store. Defaults to time.Now.
func WithClock(now func() time.Time) Option { return func(s *Store) { s.now = now } }

// New returns an empty store.
func New(opts ...Option) *Store {
	s := &Store{now: time.Now, states: map[kvmbackup.VMID]*rules.State{}}
	for _, o := range opts {
		o(s)
	}
	s.Writer = rules.NewWriter(s.update)
	return s
}

// Close makes every later call an ErrUnavailable, as of a store that is gone. It returns nil.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

// open is an ErrUnavailable once the store is closed. The store is locked.
func (s *Store) open() error {
	if s.closed {
		return fmt.Errorf("%w: the store is closed", kvmbackup.ErrUnavailable)
	}
	return nil
}

// update gives the rules the VM's state while the store is locked. They change it only once all checks have passed.
func (s *Store) update(_ context.Context, vm kvmbackup.VMID, fn func(rules.Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	state, ok := s.states[vm]
	if !ok {
		state = rules.NewState(vm)
	}
	if err := fn(state.Tx(s.now(), s.backup)); err != nil {
		return err
	}
	s.states[vm] = state
	return nil
}

// backup looks through all VMs. The store is locked.
func (s *Store) backup(id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	for _, state := range s.states {
		if b, err := state.Backup(id); err == nil {
			return b, nil
		}
	}
	return kvmbackup.Backup{}, rules.NotFound(id)
}

// view locks the store for a read.
func view[T any](ctx context.Context, s *Store, fn func() (T, error)) (T, error) {
	var zero T
	if ctx.Err() != nil {
		return zero, context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return zero, err
	}
	return fn()
}

// state is for reads: that of an unknown VM is not kept. The store is locked.
func (s *Store) state(vm kvmbackup.VMID) *rules.State {
	if state, ok := s.states[vm]; ok {
		return state
	}
	return rules.NewState(vm)
}

// all returns every VM's state by VM. The store is locked.
func (s *Store) all() []*rules.State {
	var out []*rules.State
	for _, vm := range slices.Sorted(maps.Keys(s.states)) {
		out = append(out, s.states[vm])
	}
	return out
}

// VM implements kvmbackup.Store.
func (s *Store) VM(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.VMRecord, error) {
	return view(ctx, s, func() (kvmbackup.VMRecord, error) { return s.state(vm).VM.VMRecord, nil })
}

// Backup implements kvmbackup.Store.
func (s *Store) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	return view(ctx, s, func() (kvmbackup.Backup, error) { return s.backup(id) })
}

// Newest implements kvmbackup.Store.
func (s *Store) Newest(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	return view(ctx, s, func() (kvmbackup.Backup, error) { return s.state(vm).Newest() })
}

// Children implements kvmbackup.Store. An unknown backup has none.
func (s *Store) Children(ctx context.Context, id kvmbackup.BackupID) ([]kvmbackup.Backup, error) {
	return view(ctx, s, func() ([]kvmbackup.Backup, error) {
		for _, state := range s.states {
			if list := state.Children(id); len(list) > 0 {
				return list, nil
			}
		}
		return nil, nil
	})
}

// List implements kvmbackup.Store.
func (s *Store) List(ctx context.Context, q kvmbackup.Query) ([]kvmbackup.Backup, error) {
	return view(ctx, s, func() ([]kvmbackup.Backup, error) { return rules.List(q, s.all()...), nil })
}

// Removals implements kvmbackup.Store.
func (s *Store) Removals(ctx context.Context, limit int) ([]kvmbackup.Removal, error) {
	return view(ctx, s, func() ([]kvmbackup.Removal, error) { return rules.Removals(limit, s.all()...), nil })
}

// AckRemoval implements kvmbackup.Store.
func (s *Store) AckRemoval(ctx context.Context, id kvmbackup.BackupID) error {
	_, err := view(ctx, s, func() (bool, error) {
		for _, state := range s.states {
			state.AckRemoval(id)
		}
		return true, nil
	})
	return err
}
