package engine

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// newestOf returns the newest backup that was completed, deleted or not.
func newestOf(records []kvmbackup.Backup) *kvmbackup.Backup {
	var newest *kvmbackup.Backup
	for _, b := range records {
		taken := b.Status == kvmbackup.StatusCompleted || b.Status == kvmbackup.StatusDeletePending
		if taken && (newest == nil || b.Sequence > newest.Sequence) {
			newest = &b
		}
	}
	return newest
}

func (d *Diagnosis) addRecords(records []kvmbackup.Backup) {
	children := map[kvmbackup.BackupID]bool{}
	for _, b := range records {
		children[b.ParentID] = true
	}
	for _, b := range records {
		switch {
		case b.Status == kvmbackup.StatusRunning:
			d.add(Finding{Code: FindingRunningRecord, Backup: b.ID,
				Detail: fmt.Sprintf("backup %s is recorded as running since %v", b.ID, b.StartedAt),
				Effect: "the next backup settles it first", Repair: "finish it or undo it"})
		case b.Status == kvmbackup.StatusDeletePending && !children[b.ID] && len(b.Holds) == 0:
			d.add(Finding{Code: FindingDeletePending, Backup: b.ID,
				Detail: fmt.Sprintf("backup %s was deleted and nothing needs it", b.ID),
				Effect: "none; it takes space", Repair: "remove it"})
		}
	}
	newest := newestOf(records)
	if a := d.Record.ActiveCheckpoint; a != "" && (newest == nil || newest.Checkpoint != a && newest.Tracked()) {
		d.add(Finding{Code: FindingActiveNotNewest, Name: a,
			Detail: fmt.Sprintf("the active checkpoint %s is not the newest backup's", a),
			Effect: "the next backup is full", Repair: "empty the active checkpoint"})
	}
}

// maxDrift is by how much the clocks of hosts that share a store may differ.
const maxDrift = time.Hour

// addStamps tells of a clock that was ahead of this one when a backup began.
func (d *Diagnosis) addStamps(records []kvmbackup.Backup, now time.Time) {
	newest := newestOf(records)
	if newest == nil {
		return
	}
	for _, b := range records {
		if b.Status != kvmbackup.StatusRunning && b.Status != kvmbackup.StatusFailed &&
			path.Base(b.Path) > path.Base(newest.Path) {
			newest = &b
		}
	}
	s, err := kvmbackup.ParseStamp(path.Base(newest.Path))
	if err != nil || !s.Time().After(now.Add(maxDrift)) {
		return
	}
	d.add(Finding{Code: FindingStampAhead, Backup: newest.ID, Path: newest.Path,
		Detail: fmt.Sprintf("the newest stamp is %s, and this host's clock says %s: it is wrong, or was when that "+
			"backup began", s, now.Format(time.RFC3339)),
		Effect: "later backups get stamps just after that one, and by age none of them counts as old until then; if " +
			"the clock is wrong now, set it"})
}

// ofOther says whether a UUID is not that of the domain as it is now.
func (d *Diagnosis) ofOther(uuid string) bool {
	return d.Domain != nil && (kvmbackup.Backup{DomainUUID: uuid}).OtherDomain(d.Domain.UUID)
}

// addOtherDomain tells of the recorded backups of VMs that had the name before.
func (d *Diagnosis) addOtherDomain(records []kvmbackup.Backup) {
	count := map[string]int{}
	for _, b := range records {
		if b.Status == kvmbackup.StatusCompleted && d.ofOther(b.DomainUUID) {
			count[b.DomainUUID]++
		}
	}
	for _, uuid := range slices.Sorted(maps.Keys(count)) {
		d.add(Finding{Code: FindingOtherDomain, Foreign: true,
			Detail: fmt.Sprintf("%d backups are of the domain with UUID %s, which had this name", count[uuid], uuid),
			Effect: "they are kept as those of a VM of its own; delete them by their IDs when nobody needs them"})
	}
}
