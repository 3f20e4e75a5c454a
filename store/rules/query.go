package rules

import (
	"cmp"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// Matches says whether the query selects the record, its Limit and Leaves aside, of which a record alone can't tell.
func Matches(q kvmbackup.Query, b kvmbackup.Backup) bool {
	return (q.VM == "" || b.VM == q.VM) && After(q, b.VM, b.Sequence) &&
		(q.Chain == "" || b.ChainID == q.Chain) &&
		(len(q.Statuses) == 0 || slices.Contains(q.Statuses, b.Status))
}

// After says whether a record of the VM with that sequence is on the query's page, or on one after it.
func After(q kvmbackup.Query, vm kvmbackup.VMID, sequence int64) bool {
	if q.AfterVM == "" || vm == q.AfterVM {
		return sequence > q.AfterSequence
	}
	return vm > q.AfterVM
}

// List answers a query over the states of any number of VMs.
func List(q kvmbackup.Query, states ...*State) []kvmbackup.Backup {
	var out []kvmbackup.Backup
	for _, s := range states {
		parents := s.parents(q.Leaves)
		out = append(out, s.filter(func(b kvmbackup.Backup) bool { return Matches(q, b) && !parents[b.ID] })...)
	}
	slices.SortFunc(out, func(a, b kvmbackup.Backup) int {
		return cmp.Or(cmp.Compare(a.VM, b.VM), cmp.Compare(a.Sequence, b.Sequence))
	})
	return limited(out, q.Limit)
}

// parents are the records that others name as their parent, for a query that asks for those.
func (s *State) parents(asked bool) map[kvmbackup.BackupID]bool {
	if !asked {
		return nil
	}
	parents := map[kvmbackup.BackupID]bool{}
	for _, b := range s.Backups {
		parents[b.ParentID] = true
	}
	return parents
}

// Removals returns up to limit removals (0: all) over the states of any number of VMs, oldest first.
func Removals(limit int, states ...*State) []kvmbackup.Removal {
	var out []kvmbackup.Removal
	for _, s := range states {
		out = append(out, s.Removals...)
	}
	slices.SortStableFunc(out, func(a, b kvmbackup.Removal) int { return a.At.Compare(b.At) })
	return limited(out, limit)
}

func limited[T any](list []T, limit int) []T {
	if limit > 0 && len(list) > limit {
		return list[:limit]
	}
	return list
}
