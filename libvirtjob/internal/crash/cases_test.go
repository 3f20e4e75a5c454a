package crash_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"filippo.io/age"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/seal"
)

// crashCase is an operation that is broken off at each of its points in turn.
type crashCase struct {
	name    string
	stopped bool             // the VM is off
	pull    bool             // there is a scratch
	moved   bool             // each process has another one
	big     bool             // so are its disks, and all of them has changed
	prepare func(*app)       // what comes before
	act     func(*app) error // the operation
	config  func(*engine.Config)
	outcome engine.RecoveryOutcome // what Recover has to say of it; empty: whatever fits the point
	// repeat does it again before anything else, and checks that.
	repeat func(a *app)
	// after checks what is special to the case, when all is settled and the next backup was taken.
	after func(a *app, next kvmbackup.Backup)
}

var cases = []crashCase{
	{name: "first full", act: takeBackup(running), after: fullIfFirst},
	{
		name: "incremental", prepare: earlier(running, 1), act: takeBackup(checked),
		after: wantKind(kvmbackup.KindIncremental),
	},
	{name: "pulled full", pull: true, act: takeBackup(running), after: fullIfFirst},
	{
		name: "pulled incremental", pull: true, prepare: earlier(running, 1), act: takeBackup(checked),
		after: wantKind(kvmbackup.KindIncremental),
	},
	{
		name: "compared by pull", pull: true, prepare: earlier(running, 1), act: takeBackup(comparing),
		after: wantKind(kvmbackup.KindIncremental),
	},
	{
		name: "stopped compared", stopped: true, prepare: earlier(offline, 1), act: takeBackup(comparing),
		after: wantKind(kvmbackup.KindFull),
	},
	{
		name: "stopped full", stopped: true, prepare: earlier(running, 1), act: takeBackup(running),
		after: wantKind(kvmbackup.KindFull),
	},
	{
		name: "stopped incremental", stopped: true, prepare: earlier(offline, 1), act: takeBackup(offline),
		after: wantKind(kvmbackup.KindFull),
	},
	{
		name: "sealed pulled incremental", pull: true, config: withIdentity, prepare: earlier(sealed, 1),
		act: takeBackup(sealed),
	},
	{
		name: "sealed stopped full", stopped: true, config: withIdentity, prepare: earlier(sealed, 1),
		act: takeBackup(sealed),
	},
	{
		name: "sealed compared by pull", pull: true, config: withIdentity, prepare: earlier(sealed, 1),
		act: takeBackup(sealedComparing), after: wantKind(kvmbackup.KindIncremental),
	},
	{
		name: "sealed stopped compared by index", stopped: true, config: withIndexKey, prepare: earlier(sealed, 1),
		act: takeBackup(sealedComparing), after: wantKind(kvmbackup.KindFull),
	},
	{name: "rekey", pull: true, config: withIdentity, prepare: earlier(sealed, 2), act: rekey, repeat: rekeyed},
	{name: "delete", prepare: pendingParents, act: deleteNewest, after: deletedNewest},
	{
		name: "delete of a middle one", prepare: earlier(running, 3), act: deleteAt(1),
		after: wantKind(kvmbackup.KindIncremental),
	},
}

func caseNamed(name string) crashCase {
	all := slices.Concat(cases, leftCases)
	return all[slices.IndexFunc(all, func(c crashCase) bool { return c.name == name })]
}

// The requests of the cases.
func running(*engine.BackupRequest) {}

// checked asks for all that a backup can do beside the copy.
func checked(r *engine.BackupRequest) { r.Digests, r.Quiesce = true, engine.QuiesceTry }

// comparing has everything compared, and the bitmaps checked of a VM that runs.
func comparing(r *engine.BackupRequest) {
	r.Digests, r.Policy.Compare, r.Policy.ForceCompare = true, true, true
}

// identity is of no use but here: the processes of a case share it.
const identity = "AGE-SECRET-KEY-1PT2CNWDKJKEH5UDE0LQZCY5H8GXFP4D7UPRG48GE9HV6CH3APULQGM96ZR"

// otherIdentity is one that backups are given to.
const otherIdentity = "AGE-SECRET-KEY-18ZAAQ9DN6SDTQ3NA0HYFWTHLVTKMF7CJL65VY55Y2ZTV40Y22GYQVPYYX6"

func withIdentity(c *engine.Config) {
	withRecipient(c)
	if err := c.Keys.(*seal.Keys).AddIdentity(identity); err != nil {
		panic(err)
	}
}

// withRecipient makes a host that opens nothing that it has sealed.
func withRecipient(c *engine.Config) {
	keys := seal.New()
	recipient, err := age.ParseX25519Identity(identity)
	if err == nil {
		err = keys.AddRecipient(recipient.Recipient().String())
	}
	if err != nil {
		panic(err)
	}
	c.Keys = keys
}

// withIndexKey makes one that knows what it has sealed by indexes alone.
func withIndexKey(c *engine.Config) {
	withRecipient(c)
	if err := c.IndexKey.UnmarshalBinary(bytes.Repeat([]byte{7}, 32)); err != nil {
		panic(err)
	}
}

// rekey gives all backups to one more recipient, so that the identity of the case goes on reading them.
func rekey(a *app) error {
	to := seal.New()
	for _, private := range []string{identity, otherIdentity} {
		i, err := age.ParseX25519Identity(private)
		if err == nil {
			err = to.AddRecipient(i.Recipient().String())
		}
		if err != nil {
			return err
		}
	}
	_, err := a.engine.Rekey(a.ctx, engine.RekeyRequest{VM: a.vm(), To: to})
	return err
}

// rekeyed: done again, it is done for all, and nothing is left of the one that was broken off.
func rekeyed(a *app) {
	a.Helper()
	a.must(rekey(a))
	for _, b := range a.records(kvmbackup.StatusCompleted) {
		if b.Sealed() && len(b.KeyIDs) != 2 {
			a.Errorf("%s is for %q", b.Path, b.KeyIDs)
		}
	}
}

func sealed(r *engine.BackupRequest) {
	r.Policy.Encryption, r.Policy.Compression = kvmbackup.EncryptionLUKS, kvmbackup.CompressionZstd
}

func sealedComparing(r *engine.BackupRequest) {
	sealed(r)
	comparing(r)
}

func offline(r *engine.BackupRequest) { r.Policy.OfflineIncremental = true }

func (a *app) requestWith(change func(*engine.BackupRequest)) engine.BackupRequest {
	r := a.request()
	change(&r)
	return r
}

func takeBackup(change func(*engine.BackupRequest)) func(*app) error {
	return func(a *app) error {
		_, err := a.engine.Backup(a.ctx, a.requestWith(change))
		return err
	}
}

// earlier takes backups with a write before each, and writes.
func earlier(change func(*engine.BackupRequest), n int) func(*app) {
	return func(a *app) {
		for range n {
			a.change()
			a.backup(a.requestWith(change))
		}
	}
}

// change writes something that no backup has yet to every disk.
func (a *app) change() {
	a.Helper()
	vm, err := a.store.VM(a.ctx, a.vm())
	a.must(err)
	for i, d := range a.guest.devices {
		at := (vm.LastSequence + int64(i)) % 6
		a.guest.write(d, byte(16*(vm.LastSequence+1)+int64(i)), at, 2)
	}
}

func wantKind(kind kvmbackup.Kind) func(*app, kvmbackup.Backup) {
	return func(a *app, next kvmbackup.Backup) {
		a.Helper()
		if next.Kind != kind {
			a.Errorf("next backup is %v: %v", next.Kind, next.Reasons)
		}
	}
}

func fullIfFirst(a *app, next kvmbackup.Backup) {
	a.Helper()
	kind := kvmbackup.KindFull
	if len(a.records(kvmbackup.StatusCompleted)) > 1 {
		kind = kvmbackup.KindIncremental
	}
	wantKind(kind)(a, next)
}

// pendingParents leaves a chain of three whose older two are delete-pending.
func pendingParents(a *app) {
	earlier(running, 3)(a)
	for i := range 2 {
		a.must(deleteAt(i)(a))
	}
}

func deleteAt(i int) func(*app) error {
	return func(a *app) error {
		_, err := a.engine.Delete(a.ctx, a.records()[i].ID, kvmbackup.DeleteOptions{})
		return err
	}
}

func deleteNewest(a *app) error { return deleteAt(2)(a) }

// deletedNewest: either the deletion was not begun, and the newest backup lives with its pending parents; or it was
// finished, and every backup was reported as removed, once.
func deletedNewest(a *app, next kvmbackup.Backup) {
	a.Helper()
	removals, err := a.store.Removals(a.ctx, 0)
	a.must(err)
	records := a.records()
	if next.Kind == kvmbackup.KindIncremental {
		if len(removals) != 0 || len(records) != 4 {
			a.Errorf("%d records and %d removals after a deletion that was not begun", len(records), len(removals))
		}
		_, err := a.engine.Delete(a.ctx, records[2].ID, kvmbackup.DeleteOptions{Subtree: true})
		a.must(err)
		return
	}
	if len(removals) != 3 || len(records) != 1 {
		a.Errorf("%d records and %d removals after the deletion", len(records), len(removals))
	}
	for _, r := range removals {
		if r.Bytes <= 0 {
			a.Errorf("removal of %s reports %d bytes", r.Backup, r.Bytes)
		}
	}
}

// begin makes an empty application for the case, on a guest without checkpoints.
func (c crashCase) begin(a *app) {
	a.Helper()
	a.forget()
	if c.prepare != nil {
		c.prepare(a)
	}
	for _, d := range a.guest.devices {
		if c.big {
			a.guest.blank(d)
		}
	}
	a.change()
	a.keep()
}

// size is that of each disk.
func (c crashCase) size() int64 {
	if c.big {
		return big
	}
	return small
}

// scratch is the one for jobs of the case in the n-th process, below a folder with a short path.
func (c crashCase) scratch(dir string, n int) string {
	switch {
	case !c.pull:
		return ""
	case c.moved:
		return filepath.Join(dir, fmt.Sprintf("scratch-%d", n%2))
	}
	return filepath.Join(dir, "scratch")
}

// settle is what the next process does: it recovers, or just takes the next backup; then everything must be in order.
func (c crashCase) settle(a *app, byRecover bool) {
	a.Helper()
	cut := a.cut // then bitmaps are lost, and the next backup is full
	if c.repeat != nil {
		c.repeat(a)
	}
	if byRecover {
		found, err := a.engine.Recover(a.ctx, engine.Target{VM: a.vm(), Domain: a.guest.name})
		a.must(err)
		a.Logf("recovered: %v", found)
		if c.outcome != "" && (len(found) != 1 || found[0].Outcome != c.outcome) {
			a.Errorf("recovered: %v, want %s", found, c.outcome)
		}
		a.inOrder()
	}
	a.change()
	next := a.backup(a.request())
	a.inOrder()
	a.tracked(next)
	if c.after != nil && !cut {
		c.after(a, next)
	}
	a.restoreAll()
	a.inOrder()
	a.must(os.RemoveAll(a.dir))
}
