package sealtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// fault is one point of an operation at which something fails, or the process dies.
type fault struct {
	mu    sync.Mutex
	at    int
	n     int
	kill  func() // nil: an error
	dead  bool
	where string
}

var errFault = errors.New("injected")

// point is asked at each call and step.
func (f *fault) point(where string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return errFault
	}
	if f.n++; f.n != f.at+1 {
		return nil
	}
	f.where = where
	if f.kill != nil {
		f.dead = true
		f.kill()
	}
	return errFault
}

// faultCalls are the calls of a store at which a fault is asked: its writes.
var faultCalls = map[string]string{
	"AcquireLease": "acquire", "ReleaseLease": "release", "Begin": "begin", "Complete": "complete", "Fail": "fail",
	"Annotate": "annotate",
}

// store asks before each write. A process that is dead renews no lease.
func (f *fault) store(in kvmbackup.Store) kvmbackup.Store {
	return lab.GatedStore{In: in, Around: func(method string, call func() error) error {
		if where, ok := faultCalls[method]; ok {
			if err := f.point(where); err != nil {
				return err
			}
		}
		if method == "RenewLease" && f.isDead() {
			return errFault
		}
		return call()
	}}
}

func (f *fault) isDead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

// faultyKeys are a key service that goes away.
type faultyKeys struct {
	engine.Keys
	f *fault
}

func (k faultyKeys) WrapKey(ctx context.Context, key kvmbackup.DataKey) ([]kvmbackup.WrappedKey, error) {
	if err := k.f.point("wrap"); err != nil {
		return nil, err
	}
	return k.Keys.WrapKey(ctx, key)
}

func (k faultyKeys) UnwrapKey(ctx context.Context, w []kvmbackup.WrappedKey) (kvmbackup.DataKey, error) {
	if err := k.f.point("unwrap"); err != nil {
		return kvmbackup.DataKey{}, err
	}
	return k.Keys.UnwrapKey(ctx, w)
}

func (k faultyKeys) SealFile(ctx context.Context, key kvmbackup.DataKey, b []byte) ([]byte, error) {
	if err := k.f.point("seal"); err != nil {
		return nil, err
	}
	return k.Keys.SealFile(ctx, key, b)
}

// faulty is an engine of a process in which the fault is.
func (w *world) faulty(k engine.Keys, f *fault) *engine.Engine {
	w.Helper()
	cfg := w.cfg
	var err error
	cfg.Repository, err = repository.Open(w.Context(), w.repo.Root(), repository.Options{
		NoSync: true, BeforeStep: f.point,
	})
	lab.OK(w, err)
	cfg.Store, cfg.Keys, cfg.Executor = f.store(cfg.Store), faultyKeys{k, f}, w.h.Executor()
	cfg.CleanupLimit = 5 * time.Second
	w.h.OnCall(func(op string) error {
		if strings.HasPrefix(op, "Wait") {
			return nil
		}
		return f.point(op)
	})
	e, err := engine.New(cfg)
	lab.OK(w, err)
	return e
}

// whole wants every completed backup to restore, every running record to be settled by the next operation, and nothing
// but the completed ones in the repository.
func (w *world) whole(at string) {
	w.Helper()
	w.h.OnCall(nil)
	w.cfg.Executor = w.h.Executor()
	w.ahead.Add(int64(time.Hour)) // the dead process's lease is over
	b := w.backup(sealed)
	all, err := w.taker().List(w.Context(), kvmbackup.Query{VM: vm})
	lab.OK(w, err)
	completed := 0
	for _, r := range all {
		switch r.Status {
		case kvmbackup.StatusCompleted:
			completed++
			if _, known := w.contents[r.ID]; !known {
				w.contents[r.ID] = w.interrupted
			}
			w.restored(w.reader(), r)
		case kvmbackup.StatusRunning:
			w.Errorf("%s: %s is running still", at, r.Path)
		}
	}
	folders, err := os.ReadDir(filepath.Join(w.repo.Root(), string(vm)))
	lab.OK(w, err)
	if len(folders) != completed || b.Status != kvmbackup.StatusCompleted {
		w.Errorf("%s: %d folders of %d completed backups", at, len(folders), completed)
	}
}

// TestFaults: a sealed backup that fails, or whose process dies, at any call or step leaves nothing behind, or is
// whole; the next one is as it would have been, and all can be read. A host that has the recipient alone settles it. It
// is the same where contents are compared: with sealed files that an identity opens, or by an index alone.
func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		policy   kvmbackup.Policy
		index    kvmbackup.DataKey
		identity bool
	}{
		"sealed":            {policy: sealed},
		"compared":          {policy: compares(), identity: true},
		"compared by index": {policy: compares(), index: kvmbackup.NewDataKey()},
	} {
		for how, kill := range map[string]bool{"error": false, "kill": true} {
			t.Run(name+"/"+how, func(t *testing.T) {
				first, stride := lab.Every(t, 12)
				for at, more := first, true; more && !t.Failed(); at += stride {
					w := newWorld(t)
					w.cfg.IndexKey = c.index
					keys := takes(t, w.mine)
					if c.identity {
						keys = reads(t, w.mine)
					}
					more = w.faultAt(at, kill, keys, c.policy)
				}
			})
		}
	}
}

// faultAt has a backup fail, or its process die, at a point, and wants what is left to be whole; false: it has no such
// point.
func (w *world) faultAt(at int, kill bool, keys engine.Keys, p kvmbackup.Policy) bool {
	w.Helper()
	w.backup(sealed)
	w.change()
	var err error
	w.interrupted, err = w.h.Content(string(vm), "vda")
	lab.OK(w, err)
	f := &fault{at: at}
	if kill {
		f.kill = w.h.KillHost
	}
	b, err := w.faulty(keys, f).Backup(w.Context(), w.request(p))
	if f.where == "" {
		lab.OK(w, err)
		if b.Kind != kvmbackup.KindIncremental || at < 20 {
			w.Errorf("it is %v, and has only %d points: %v", b.Kind, at, b.Reasons)
		}
		return false
	}
	w.whole(f.where)
	if w.Failed() {
		w.Fatalf("at point %d, %s: %v", at, f.where, err)
	}
	return true
}

// TestFaultsOfRekey: the same for giving backups to others.
func TestFaultsOfRekey(t *testing.T) {
	first, stride := lab.Every(t, 3)
	for at := first; ; at += stride {
		w := newWorld(t)
		all := []kvmbackup.Backup{w.backup(sealed), w.backup(sealed)}
		fresh := newPair(t)
		f := &fault{at: at}
		_, err := w.faulty(reads(t, w.mine), f).Rekey(t.Context(), engine.RekeyRequest{VM: vm, To: takes(t, fresh)})
		w.h.OnCall(nil)
		w.ahead.Add(int64(time.Hour))
		for _, b := range all {
			w.restored(w.engine(reads(t, w.mine, fresh)), b)
		}
		_, again := w.reader().Rekey(t.Context(), engine.RekeyRequest{VM: vm, To: takes(t, fresh)})
		lab.OK(t, again)
		for _, b := range all {
			w.restored(w.engine(reads(t, fresh)), b)
		}
		if t.Failed() {
			t.Fatalf("at point %d, %s: %v", at, f.where, err)
		}
		if f.where == "" {
			lab.OK(t, err)
			return
		}
	}
}
