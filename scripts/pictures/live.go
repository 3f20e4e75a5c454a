package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// stage is what there is after something was done.
type stage struct {
	text    []string
	backups []backup // one for each night so far
}

type backup struct {
	kind   kvmbackup.Kind
	parent int // the night of the backup that it stands on; -1: none
	status kvmbackup.Status
	gone   bool
	active bool // the next incremental starts from it
}

const vm = kvmbackup.VMID("web1")

// life is a VM with an engine, and the IDs of its backups by night.
type life struct {
	*engine.Engine
	hypervisor *kvmbackuptest.Hypervisor
	store      *memstore.Store
	now        time.Time
	nights     []kvmbackup.Backup
}

// live takes backups and deletes some, and returns what there was after each step.
func live(ctx context.Context) (stages []stage, err error) {
	dir, err := os.MkdirTemp("", "pictures-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := begin(ctx, dir)
	if err != nil {
		return nil, err
	}
	for _, s := range []struct {
		do   func() error
		text []string
	}{
		{func() error { return l.take(ctx, 4) }, []string{
			"Four nights. An incremental copies what has changed since the backup before it, and stands on it.",
		}},
		{func() error { return l.delete(ctx, 1) }, []string{
			"Somebody deletes Tuesday's. Wednesday's and Thursday's need its files, so it becomes delete-pending:",
			"nobody can restore it any more, and its files stay. No chain is ever merged or rewritten.",
		}},
		{func() error { return l.take(ctx, 1) }, []string{
			"The chain is complete (full-every is 4 here). Friday's full begins the next one.",
		}},
		{func() error { return l.delete(ctx, 2, 3) }, []string{
			"Somebody deletes Wednesday's, which waits too, and then Thursday's. Nothing stands on that one:",
			"it goes at once, and with it what had waited for it. The space of all three comes back.",
		}},
	} {
		if err := s.do(); err != nil {
			return nil, err
		}
		backups, err := l.look(ctx)
		if err != nil {
			return nil, err
		}
		stages = append(stages, stage{s.text, backups})
	}
	return stages, nil
}

func begin(ctx context.Context, dir string) (*life, error) {
	monday := time.Date(2026, 11, 23, 22, 0, 0, 0, time.UTC)
	l := &life{hypervisor: kvmbackuptest.NewHypervisor(), store: memstore.New(), now: monday}
	repo, err := repository.Init(ctx, dir, repository.Options{NoSync: true})
	if err != nil {
		return nil, err
	}
	disks := []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 20}}
	err = l.hypervisor.Define(kvmbackuptest.Domain{Name: vm.String(), Disks: disks})
	if err == nil {
		err = l.hypervisor.Start(vm.String())
	}
	if err != nil {
		return nil, err
	}
	l.Engine, err = engine.New(engine.Config{
		Store: l.store, Repository: repo, Executor: l.hypervisor.Executor(), Images: kvmbackuptest.Images{},
		Now: func() time.Time { return l.now },
	})
	return l, err
}

func (l *life) take(ctx context.Context, nights int) error {
	for range nights {
		err := l.hypervisor.Write(vm.String(), "vda", 0, []byte(l.now.String()))
		if err != nil {
			return err
		}
		b, err := l.Backup(ctx, engine.BackupRequest{VM: vm, Policy: kvmbackup.Policy{FullEvery: 4}})
		if err != nil {
			return err
		}
		l.nights = append(l.nights, b)
		l.now = l.now.AddDate(0, 0, 1)
	}
	return nil
}

func (l *life) delete(ctx context.Context, nights ...int) error {
	for _, n := range nights {
		if _, err := l.Delete(ctx, l.nights[n].ID, kvmbackup.DeleteOptions{}); err != nil {
			return err
		}
	}
	return nil
}

func (l *life) look(ctx context.Context) (out []backup, err error) {
	record, err := l.store.VM(ctx, vm)
	if err != nil {
		return nil, err
	}
	for _, b := range l.nights {
		now, err := l.Get(ctx, b.ID)
		gone := errors.Is(err, kvmbackup.ErrNotFound)
		if err != nil && !gone {
			return nil, err
		}
		out = append(out, backup{b.Kind, l.nightOf(b.ParentID), now.Status, gone, b.Checkpoint == record.ActiveCheckpoint})
	}
	return out, nil
}

func (l *life) nightOf(id kvmbackup.BackupID) int {
	for n, b := range l.nights {
		if b.ID == id {
			return n
		}
	}
	return -1
}
