package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// Store keeps one JSON file per VM in a folder of a local file system. Any number of processes of one machine may share
// it. Writes wait for each other; a process that dies gives up the lock with its life.
type Store struct {
	rules.StateStore // all methods
	dir              string
}

var _ kvmbackup.Store = (*Store)(nil)

// Open returns the store in the folder, which it makes when it is not there.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir}
	s.StateStore = rules.NewStateStore(s.update, s.load, s.all)
	return s, os.MkdirAll(dir, 0o700)
}

// update is one transaction: lock, load, apply, save.
func (s *Store) update(ctx context.Context, vm kvmbackup.VMID, fn func(rules.Tx) error) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	state, err := s.load(ctx, vm)
	if err != nil {
		return err
	}
	other := func(id kvmbackup.BackupID) (kvmbackup.Backup, error) { return s.Backup(ctx, id) }
	if err := fn(state.Tx(time.Now(), other)); err != nil {
		return err
	}
	return s.save(state)
}

// lock waits for the folder's lock. The system call doesn't heed a context, so it is asked again and again.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		} else if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock the folder %q: %w", s.dir, err), f.Close())
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil, errors.Join(ctx.Err(), f.Close())
}

// file escapes the VM's name, so that no name leaves the folder or is another's.
func (s *Store) file(vm kvmbackup.VMID) string {
	return filepath.Join(s.dir, "vm-"+url.PathEscape(string(vm))+".json")
}

func (s *Store) load(_ context.Context, vm kvmbackup.VMID) (*rules.State, error) {
	state := rules.NewState(vm)
	data, err := os.ReadFile(s.file(vm))
	if errors.Is(err, os.ErrNotExist) {
		return state, nil
	}
	if err := errors.Join(err, json.Unmarshal(data, state)); err != nil {
		return state, fmt.Errorf("read the records of VM %q: %w", vm, err)
	}
	return state, nil
}

// save replaces the file whole: a reader, or the next process after a crash, finds the old one or the new one.
func (s *Store) save(state *rules.State) error {
	data, err := json.MarshalIndent(state, "", "\t")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(s.dir, "new-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already when all went well
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), s.file(state.VM.VM)); err != nil {
		return err
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// all loads every VM. It reads the folder rather than matching a pattern, which the folder's own name would be part of.
func (s *Store) all(ctx context.Context) ([]*rules.State, error) {
	files, err := os.ReadDir(s.dir)
	var out []*rules.State
	for _, file := range files {
		name, isVM := strings.CutPrefix(file.Name(), "vm-")
		if !isVM {
			continue
		}
		vm, errName := url.PathUnescape(strings.TrimSuffix(name, ".json"))
		state, errLoad := s.load(ctx, kvmbackup.VMID(vm))
		out, err = append(out, state), errors.Join(err, errName, errLoad)
	}
	return out, err
}
