package engine

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// FindingCode says what kind of difference a diagnosis found. Codes are stable.
type FindingCode string

// The differences between the four truths: store, libvirt's checkpoints, bitmaps, files in the repository.
const (
	FindingRunningRecord   FindingCode = "running-record"    // a crash left a running record
	FindingDeletePending   FindingCode = "removable-pending" // a delete-pending backup that nothing needs any more
	FindingStaleCheckpoint FindingCode = "stale-checkpoint"  // a checkpoint or bitmap of ours that no longer counts
	FindingActiveNotNewest FindingCode = "active-not-newest" // the active checkpoint is not the newest backup's
	// Libvirt doesn't list the active checkpoint; its bitmaps are there.
	FindingActiveUnlisted FindingCode = "active-unlisted"
	// The active checkpoint has no bitmap on a volume it tracked.
	FindingBitmapMissing FindingCode = "bitmap-missing"
	FindingBitmapBroken  FindingCode = "bitmap-inconsistent" // QEMU marked it inconsistent
	FindingBitmapUnknown FindingCode = "bitmap-unknown"      // the bitmaps could not be listed
	// It begins in a file that the volume had not at its last backup.
	FindingBitmapMoved FindingCode = "bitmap-moved"
	FindingShrank      FindingCode = "volume-shrank"   // a volume is smaller than at its last backup
	FindingUnreadable  FindingCode = "unreadable-disk" // a disk's image is missing or can't be read
	// It can't have a bitmap, so that it is full in every backup: worth knowing.
	FindingUntrackable  FindingCode = "untrackable-disk"
	FindingMissingFile  FindingCode = "missing-file"      // a recorded backup lacks a file
	FindingUnrecorded   FindingCode = "unrecorded-folder" // a published folder without a record
	FindingLeftPartial  FindingCode = "left-partial"      // a partial folder of a record that is not running
	FindingLeftDeleting FindingCode = "left-deleting"     // a folder whose removal was begun
	// A job's folder in a scratch, and its record is not running.
	FindingLeftScratch FindingCode = "left-scratch"
	FindingScratch     FindingCode = "scratch-unusable" // a configured scratch can't be used
	// Backups of another VM, which had the name before: left alone.
	FindingOtherDomain FindingCode = "other-domain"
	// The VM's last stamp is ahead of the clock, which was wrong then or is now.
	FindingStampAhead        FindingCode = "stamp-ahead"
	FindingForeignPartial    FindingCode = "foreign-partial"    // a partial folder that this store knows nothing of
	FindingForeignCheckpoint FindingCode = "foreign-checkpoint" // another consumer's checkpoint or bitmap: left alone
	// Something in the VM's folder that is no backup: left alone.
	FindingForeignFolder FindingCode = "foreign-folder"
)

// Finding is one difference, what it means for the next backup, and whether Repair mends it.
type Finding struct {
	Code    FindingCode              `json:"code"`
	Detail  string                   `json:"detail"`
	Effect  string                   `json:"effect"`
	Repair  string                   `json:"repair,omitempty"` // what Repair does about it; empty: nothing
	Backup  kvmbackup.BackupID       `json:"backup,omitempty"`
	Device  string                   `json:"device,omitempty"`
	Path    string                   `json:"path,omitempty"`
	Name    kvmbackup.CheckpointName `json:"checkpoint,omitempty"`
	Foreign bool                     `json:"foreign,omitempty"` // it isn't ours, and is left alone
	Advice  bool                     `json:"advice,omitempty"`  // nothing is wrong, and something could be better
}

// String returns the finding as lines for people.
func (f Finding) String() string {
	s := fmt.Sprintf("%s: %s", f.Code, f.Detail)
	if f.Effect != "" {
		s += "\n    effect: " + f.Effect
	}
	if f.Repair != "" {
		s += "\n    repair: " + f.Repair
	}
	return s
}

// Diagnosis is what Inspect found about one VM.
type Diagnosis struct {
	VM       kvmbackup.VMID          `json:"vm"`
	Record   kvmbackup.VMRecord      `json:"record"`
	Domain   *kvmbackup.DomainStatus `json:"domain,omitempty"` // nil when the hypervisor doesn't know it
	Findings []Finding               `json:"findings"`
	Complete bool                    `json:"complete"` // all four truths were looked at
}

// MarshalJSON writes the fields and what can be said of them: whether the VM is healthy, the domain's state and the
// active checkpoint.
func (d Diagnosis) MarshalJSON() ([]byte, error) {
	type fields Diagnosis
	if d.Findings == nil {
		d.Findings = []Finding{}
	}
	return json.Marshal(struct {
		fields
		Healthy          bool                     `json:"healthy"`
		State            kvmbackup.DomainState    `json:"state"`
		ActiveCheckpoint kvmbackup.CheckpointName `json:"active_checkpoint"`
	}{fields(d), d.Healthy(), d.State(), d.Record.ActiveCheckpoint})
}

// State is the domain's, or DomainUnknown when the hypervisor doesn't know it.
func (d Diagnosis) State() kvmbackup.DomainState {
	if d.Domain == nil {
		return kvmbackup.DomainUnknown
	}
	return d.Domain.State
}

// String returns the diagnosis as lines for people.
func (d Diagnosis) String() string {
	verdict := "healthy"
	switch {
	case !d.Complete:
		verdict = "not everything could be looked at"
	case !d.Healthy():
		verdict = "not healthy"
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%s: %v, %s\n", d.VM, d.State(), verdict)
	for _, f := range d.Findings {
		fmt.Fprintf(&s, "  %s\n", f)
	}
	return s.String()
}

// Healthy says whether everything was looked at and there is nothing to repair. What is foreign doesn't count, nor do
// disks that can't have bitmaps. It is false beside an error.
func (d Diagnosis) Healthy() bool {
	return d.Complete && !slices.ContainsFunc(d.Findings, func(f Finding) bool { return !f.Foreign && !f.Advice })
}

// add takes a finding whose texts may have names from the share in them.
func (d *Diagnosis) add(f Finding) {
	f.Detail, f.Effect = kvmbackup.Printable(f.Detail), kvmbackup.Printable(f.Effect)
	d.Findings = append(d.Findings, f)
}
