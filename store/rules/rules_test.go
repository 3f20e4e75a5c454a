package rules_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/store/rules"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

// documents is the least store that the package is made for: one JSON document per VM.
type documents struct {
	rules.StateStore
	mu   sync.Mutex
	docs map[kvmbackup.VMID][]byte
	tx   func(rules.Tx) rules.Tx // what stands between the rules and the state
}

func newDocuments() *documents {
	d := &documents{docs: map[kvmbackup.VMID][]byte{}, tx: func(tx rules.Tx) rules.Tx { return tx }}
	d.StateStore = rules.NewStateStore(d.update, func(_ context.Context, vm kvmbackup.VMID) (*rules.State, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.load(vm)
	}, func(context.Context) ([]*rules.State, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.all()
	})
	return d
}

func (d *documents) load(vm kvmbackup.VMID) (*rules.State, error) {
	state := rules.NewState(vm)
	if doc := d.docs[vm]; doc != nil {
		return state, json.Unmarshal(doc, state)
	}
	return state, nil
}

func (d *documents) all() (out []*rules.State, err error) {
	for vm := range d.docs {
		state, errLoad := d.load(vm)
		out, err = append(out, state), errors.Join(err, errLoad)
	}
	return out, err
}

func (d *documents) save(state *rules.State) (err error) {
	d.docs[state.VM.VM], err = json.Marshal(state)
	return err
}

func (d *documents) update(_ context.Context, vm kvmbackup.VMID, fn func(rules.Tx) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	state, err := d.load(vm)
	if err != nil {
		return err
	}
	other := func(id kvmbackup.BackupID) (kvmbackup.Backup, error) {
		list, err := d.all()
		for _, s := range list {
			if b, err := s.Backup(id); err == nil {
				return b, nil
			}
		}
		return kvmbackup.Backup{}, errors.Join(err, rules.NotFound(id))
	}
	if err := fn(d.tx(state.Tx(time.Now(), other))); err != nil {
		return err
	}
	return d.save(state)
}

// TestAckRemovalOfAnotherTx: what is not a State's can't be acknowledged by it, and says so.
func TestAckRemovalOfAnotherTx(t *testing.T) {
	d := newDocuments()
	ctx := t.Context()
	l, err := d.AcquireLease(ctx, lab.VM, "test", time.Hour)
	b := lab.Full()
	_, errBegin := d.Begin(ctx, l, b)
	if err := errors.Join(err, errBegin, d.Fail(ctx, l, b.ID, "failed"), d.Remove(ctx, l, b.ID, 0)); err != nil {
		t.Fatal(err)
	}
	d.tx = func(tx rules.Tx) rules.Tx { return faulty{tx, new(int)} }
	if err := d.AckRemoval(ctx, b.ID); !errors.Is(err, kvmbackup.ErrInvalid) {
		t.Errorf("through another Tx: %v", err)
	}
	d.tx = func(tx rules.Tx) rules.Tx { return tx }
	if err := d.AckRemoval(ctx, b.ID); err != nil {
		t.Error(err)
	}
	if left, err := d.Removals(ctx, 0); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestDocuments(t *testing.T) {
	storetest.Run(t, func(testing.TB) storetest.Harness {
		return storetest.Harness{Store: newDocuments(), ShortTTL: 5 * time.Millisecond}
	}, storetest.Parallel())
}

var errFault = errors.New("fault")

// faulty fails its n-th call.
type faulty struct {
	rules.Tx
	left *int
}

func (f faulty) fault() error {
	if *f.left--; *f.left == 0 {
		return errFault
	}
	return nil
}

func (f faulty) Now(ctx context.Context) (time.Time, error) {
	now, err := f.Tx.Now(ctx)
	return now, errors.Join(err, f.fault())
}

func (f faulty) VM(ctx context.Context) (rules.VM, error) {
	vm, err := f.Tx.VM(ctx)
	return vm, errors.Join(err, f.fault())
}

func (f faulty) SetVM(ctx context.Context, vm rules.VM) error {
	return errors.Join(f.Tx.SetVM(ctx, vm), f.fault())
}

func (f faulty) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	if err := f.fault(); err != nil {
		return kvmbackup.Backup{}, err
	}
	return f.Tx.Backup(ctx, id)
}

func (f faulty) Running(ctx context.Context) (bool, error) {
	is, err := f.Tx.Running(ctx)
	return is, errors.Join(err, f.fault())
}

func (f faulty) HasChildren(ctx context.Context, id kvmbackup.BackupID) (bool, error) {
	is, err := f.Tx.HasChildren(ctx, id)
	return is, errors.Join(err, f.fault())
}

func (f faulty) HasSequence(ctx context.Context, n int64) (bool, error) {
	is, err := f.Tx.HasSequence(ctx, n)
	return is, errors.Join(err, f.fault())
}

func (f faulty) Put(ctx context.Context, b kvmbackup.Backup) error {
	return errors.Join(f.Tx.Put(ctx, b), f.fault())
}

func (f faulty) Delete(ctx context.Context, id kvmbackup.BackupID) error {
	return errors.Join(f.Tx.Delete(ctx, id), f.fault())
}

func (f faulty) AddRemoval(ctx context.Context, r kvmbackup.Removal) error {
	return errors.Join(f.Tx.AddRemoval(ctx, r), f.fault())
}

// TestFaults fails each call that the rules make, one after the other: the fault comes out, and nothing is kept.
func TestFaults(t *testing.T) {
	ctx := t.Context()
	full := record("", 1)
	inc := record(full.ID, 2)
	done := func(b kvmbackup.Backup) kvmbackup.Backup { b.Status = kvmbackup.StatusCompleted; return b }
	imported := done(record("", 9))
	imported.Sequence = 9
	var l kvmbackup.Lease
	d := newDocuments()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"acquire", func() (err error) { l, err = d.AcquireLease(ctx, "vm", "h", time.Hour); return err }},
		{"renew", func() error { _, err := d.RenewLease(ctx, l, time.Hour); return err }},
		{"begin", func() error { _, err := d.Begin(ctx, l, full); return err }},
		{"complete", func() error { return d.Complete(ctx, l, done(full)) }},
		{"begin on a parent", func() error { _, err := d.Begin(ctx, l, inc); return err }},
		{"fail", func() error { return d.Fail(ctx, l, inc.ID, "why") }},
		{"import", func() error { return d.Import(ctx, l, imported) }},
		{"annotate", func() error { return d.Annotate(ctx, l, full.ID, kvmbackup.Annotation{Pinned: new(bool)}) }},
		{"mark", func() error { return d.MarkDeletePending(ctx, l, full.ID) }},
		{"remove", func() error { return d.Remove(ctx, l, full.ID, 7) }},
		{"set active", func() error { return d.SetActive(ctx, l, "backup.x") }},
		{"release", func() error { return d.ReleaseLease(ctx, l) }},
	} {
		for n := 1; ; n++ {
			before, left := string(d.docs["vm"]), n
			d.tx = func(tx rules.Tx) rules.Tx { return faulty{tx, &left} }
			err := step.do()
			if err == nil && left > 0 {
				break
			}
			if !errors.Is(err, errFault) {
				t.Fatalf("%s: call %d failed and the error is %v", step.name, n, err)
			}
			if now := string(d.docs["vm"]); now != before {
				t.Fatalf("%s: call %d failed and something was kept:\n was %s\n now %s", step.name, n, before, now)
			}
		}
	}
}

func record(parent kvmbackup.BackupID, n int64) kvmbackup.Backup {
	b := kvmbackup.Backup{ID: kvmbackup.NewBackupID(), VM: "vm", Kind: kvmbackup.KindFull, Status: kvmbackup.StatusRunning,
		ChainID: kvmbackup.NewChainID(), Checkpoint: "backup.c", Path: "vm/" + string(rune('a'+n)),
		StartedAt: time.Unix(n, 0), Consistency: kvmbackup.ConsistencyCrash, Volumes: []kvmbackup.VolumeBackup{
			{VolumeID: "v", Kind: kvmbackup.KindFull, File: "v.qcow2"},
		}}
	if parent != "" {
		b.Kind, b.ParentID, b.Position = kvmbackup.KindIncremental, parent, 1
	}
	return b
}
