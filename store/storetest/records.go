package storetest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// The two VMs of the rules.
const (
	vmA kvmbackup.VMID = "vm-a"
	vmB kvmbackup.VMID = "vm-b"
)

// long is the TTL of leases that don't expire within a rule.
const long = time.Hour

// epoch is when the rules' backups started. It is no clock's time, in another zone than UTC and at microseconds.
var epoch = time.Date(2026, 11, 23, 7, 4, 50, 123456000, time.FixedZone("", 2*3600))

// full is a new running full backup with a checkpoint.
func full(vm kvmbackup.VMID, n int) kvmbackup.Backup {
	stamp := fmt.Sprintf("2026.11.23.07.%02d.%02d", n/60, n%60)
	return kvmbackup.Backup{
		ID: kvmbackup.NewBackupID(), VM: vm, Domain: "i-2-" + string(vm),
		DomainUUID: "5c1a0000-0000-4000-8000-000000000001", Kind: kvmbackup.KindFull, Status: kvmbackup.StatusRunning,
		ChainID: kvmbackup.NewChainID(), Checkpoint: kvmbackup.CheckpointName("backup." + stamp),
		Repository: "nas-1", Path: string(vm) + "/" + stamp, StartedAt: epoch.Add(time.Duration(n) * time.Second),
		Consistency: kvmbackup.ConsistencyCrash,
		Reasons:     []kvmbackup.Reason{{Code: kvmbackup.ReasonNoActiveCheckpoint, Detail: "first \"backup\" ümläut"}},
		Volumes: []kvmbackup.VolumeBackup{
			{VolumeID: "vol-0", Device: "vda", Kind: kvmbackup.KindFull, File: "root.vol-0.qcow2", VirtualSize: 1 << 40,
				SourceFormat: "qcow2", Tracked: true,
				Layers: []string{"/images/vm.snap1", "/images/vm, \"base\".qcow2"}},
			{VolumeID: "vol-1", Device: "vdb", Kind: kvmbackup.KindFull, File: "datadisk.vol-1.qcow2",
				VirtualSize: 1 << 30, SourceFormat: "raw"},
		},
	}
}

// child is a new running incremental on the parent.
func child(parent kvmbackup.Backup, n int) kvmbackup.Backup {
	b := full(parent.VM, n)
	b.Kind, b.ChainID, b.Position, b.ParentID = kvmbackup.KindIncremental, parent.ChainID, parent.Position+1, parent.ID
	b.Volumes[0].Kind, b.Volumes[0].ParentFile = kvmbackup.KindIncremental, "../x/root.vol-0.qcow2"
	return b
}

// finished is the record as it is completed.
func finished(b kvmbackup.Backup) kvmbackup.Backup {
	b.Status, b.CompletedAt = kvmbackup.StatusCompleted, b.StartedAt.Add(90*time.Second+time.Microsecond)
	b.Transfer = kvmbackup.TransferPull
	b.Consistency, b.FrozenFor, b.GuestRan = kvmbackup.ConsistencyFilesystem, 1234567*time.Nanosecond, true
	b.Asked = kvmbackup.Asked{Secrets: true, Digests: true}
	b.Reasons = append(slices.Clone(b.Reasons), kvmbackup.Reason{Code: kvmbackup.ReasonIncremental, VolumeID: "vol-1"})
	b.Files = []kvmbackup.SideFile{{Name: "domain.xml", Size: 1 << 20, SHA256: strings.Repeat("0f", 32)}}
	b.Volumes = slices.Clone(b.Volumes)
	for i := range b.Volumes {
		b.Volumes[i].StoredSize, b.Volumes[i].DirtyBytes = 1<<33+7, 1<<32+5
		b.Volumes[i].Digest, b.Volumes[i].FileDigest = "sha256:00ff", "sha256:ff00"
		b.Volumes[i].Compression = kvmbackup.CompressionZstd
	}
	return b
}

// dressed has every field set that a record can have.
func dressed(b kvmbackup.Backup) kvmbackup.Backup {
	b = finished(b)
	b.Error, b.Pinned = "survived: line 1\nline 2 \x00 'quoted'", true
	b.Holds = []kvmbackup.Hold{{ID: "h1", Purpose: "open", Since: epoch}}
	b.Verification = &kvmbackup.Verification{At: epoch, Content: true, Problem: "none"}
	b.KeyIDs = []string{"age1ümläut", "passphrase"}
	for i := range b.Volumes { // content of sealed volumes has no digest
		b.Volumes[i].FileEncryption, b.Volumes[i].Digest = kvmbackup.EncryptionLUKS, ""
	}
	return b
}

// lease takes the VM's lease for long.
func (r *run) lease(vm kvmbackup.VMID) kvmbackup.Lease {
	l, err := r.AcquireLease(r.ctx, vm, "first", long)
	r.ok(err, "acquire the free lease of %q", vm)
	return l
}

// running begins the record.
func (r *run) running(l kvmbackup.Lease, b kvmbackup.Backup) kvmbackup.Backup {
	b, err := r.Begin(r.ctx, l, b)
	r.ok(err, "begin a backup")
	return b
}

// completed begins and completes the record.
func (r *run) completed(l kvmbackup.Lease, b kvmbackup.Backup) kvmbackup.Backup {
	b = finished(r.running(l, b))
	r.ok(r.Complete(r.ctx, l, b), "complete the running backup")
	return b
}

// failed begins and fails the record.
func (r *run) failed(l kvmbackup.Lease, b kvmbackup.Backup) kvmbackup.Backup {
	b = r.running(l, b)
	r.ok(r.Fail(r.ctx, l, b.ID, "why"), "fail the running backup")
	return r.backup(b.ID)
}

// pending begins, completes and marks the record.
func (r *run) pending(l kvmbackup.Lease, b kvmbackup.Backup) kvmbackup.Backup {
	b = r.completed(l, b)
	r.ok(r.MarkDeletePending(r.ctx, l, b.ID), "mark the completed backup")
	return r.backup(b.ID)
}

func (r *run) backup(id kvmbackup.BackupID) kvmbackup.Backup {
	b, err := r.Backup(r.ctx, id)
	r.ok(err, "read backup %s", id)
	return b
}

func (r *run) record(vm kvmbackup.VMID) kvmbackup.VMRecord {
	v, err := r.VM(r.ctx, vm)
	r.ok(err, "read the VM")
	return v
}

func (r *run) list(q kvmbackup.Query) []kvmbackup.Backup {
	list, err := r.List(r.ctx, q)
	r.ok(err, "list %+v", q)
	return list
}

func (r *run) removals(limit int) []kvmbackup.Removal {
	list, err := r.Removals(r.ctx, limit)
	r.ok(err, "read the removals")
	return list
}

// status ends the rule unless the record has that status.
func (r *run) status(id kvmbackup.BackupID, want kvmbackup.Status) {
	if got := r.backup(id).Status; got != want {
		r.fatalf("backup %s is %v, want %v", id, got, want)
	}
}

// active ends the rule unless that is VM A's active checkpoint.
func (r *run) active(want kvmbackup.CheckpointName) {
	if got := r.record(vmA).ActiveCheckpoint; got != want {
		r.fatalf("the active checkpoint is %q, want %q", got, want)
	}
}

// children ends the rule unless exactly those are the backup's children, in that order.
func (r *run) children(id kvmbackup.BackupID, want ...kvmbackup.Backup) {
	list, err := r.Children(r.ctx, id)
	r.ok(err, "read the children of %s", id)
	r.sameIDs("children", list, want...)
}

func (r *run) sameIDs(what string, got []kvmbackup.Backup, want ...kvmbackup.Backup) {
	if g, w := ids(got), ids(want); !slices.Equal(g, w) {
		r.fatalf("%s: got %q, want %q", what, g, w)
	}
}

func ids(list []kvmbackup.Backup) []string {
	out := []string{}
	for _, b := range list {
		out = append(out, fmt.Sprintf("%s#%d %s", b.VM, b.Sequence, b.ID))
	}
	return out
}

// same ends the rule unless both records are equal, times compared at microseconds.
func (r *run) same(what string, got, want kvmbackup.Backup) {
	if g, w := text(got), text(want); g != w {
		r.fatalf("%s is not as it was given:\n got %s\nwant %s", what, g, w)
	}
}

func text(b kvmbackup.Backup) string {
	b.StartedAt, b.CompletedAt = micros(b.StartedAt), micros(b.CompletedAt)
	b.Holds = slices.Clone(b.Holds)
	for i := range b.Holds {
		b.Holds[i].Since = micros(b.Holds[i].Since)
	}
	if b.Verification != nil {
		v := *b.Verification
		v.At = micros(v.At)
		b.Verification = &v
	}
	return jsonText(b)
}

func micros(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

func jsonText(v any) string {
	out, err := json.Marshal(v)
	if err != nil {
		panic(failure{fmt.Errorf("a record has no JSON form: %w", err)})
	}
	return string(out)
}

// snapshot is all that can be read of the store.
func (r *run) snapshot() string {
	return jsonText([]any{r.record(vmA), r.record(vmB), r.list(kvmbackup.Query{}), r.removals(0)})
}

// unchanged ends the rule unless all that can be read is as it was.
func (r *run) unchanged(before, what string) {
	if now := r.snapshot(); now != before {
		r.fatalf("%s was refused and changed something:\n  was %s\n  now %s", what, before, now)
	}
}
