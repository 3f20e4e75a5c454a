package rules

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
)

// Reader is the reading half of a kvmbackup.Store for stores on State, made by NewReader for a store to embed: VM,
// Backup, Newest, Children, List and Removals. It is as safe for concurrent use as its loads.
//
// Backup and Children look through the states of all VMs, which suits stores of modest size; others have an index
// and methods of their own.
type Reader struct {
	one func(ctx context.Context, vm kvmbackup.VMID) (*State, error)
	all func(ctx context.Context) ([]*State, error)
}

// NewReader returns a Reader over a store's loads. The one func returns the VM's state, NewState for an unknown VM; all
// returns those of all VMs. Each state is as one transaction left it and is not changed afterwards.
func NewReader(
	one func(ctx context.Context, vm kvmbackup.VMID) (*State, error), all func(ctx context.Context) ([]*State, error),
) Reader {
	return Reader{one, all}
}

// state is one, with a look at the context.
func (r Reader) state(ctx context.Context, vm kvmbackup.VMID) (*State, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	s, err := r.one(ctx, vm)
	return s, StoreError(ctx, err)
}

// states is all, with a look at the context.
func (r Reader) states(ctx context.Context) ([]*State, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	list, err := r.all(ctx)
	return list, StoreError(ctx, err)
}

// VM implements kvmbackup.Store.
func (r Reader) VM(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.VMRecord, error) {
	s, err := r.state(ctx, vm)
	if err != nil {
		return kvmbackup.VMRecord{}, err
	}
	return s.VM.VMRecord, nil
}

// Backup implements kvmbackup.Store.
func (r Reader) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	list, err := r.states(ctx)
	if err != nil {
		return kvmbackup.Backup{}, err
	}
	for _, s := range list {
		if b, err := s.Backup(id); !errors.Is(err, kvmbackup.ErrNotFound) {
			return b, err
		}
	}
	return kvmbackup.Backup{}, NotFound(id)
}

// Newest implements kvmbackup.Store.
func (r Reader) Newest(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	s, err := r.state(ctx, vm)
	if err != nil {
		return kvmbackup.Backup{}, err
	}
	return s.Newest()
}

// Children implements kvmbackup.Store. An unknown backup has none.
func (r Reader) Children(ctx context.Context, id kvmbackup.BackupID) ([]kvmbackup.Backup, error) {
	list, err := r.states(ctx)
	for _, s := range list {
		if children := s.Children(id); len(children) > 0 {
			return children, nil
		}
	}
	return nil, err
}

// List implements kvmbackup.Store.
func (r Reader) List(ctx context.Context, q kvmbackup.Query) ([]kvmbackup.Backup, error) {
	list, err := r.states(ctx)
	if err != nil {
		return nil, err
	}
	return List(q, list...), nil
}

// Removals implements kvmbackup.Store.
func (r Reader) Removals(ctx context.Context, limit int) ([]kvmbackup.Removal, error) {
	list, err := r.states(ctx)
	if err != nil {
		return nil, err
	}
	return Removals(limit, list...), nil
}
