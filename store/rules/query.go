package rules

import (
	"cmp"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// Matches says whether the query selects the record, its Limit aside.
func Matches(q kvmbackup.Query, b kvmbackup.Backup) bool {
	return (q.VM == "" || b.VM == q.VM) &&
		(q.Chain == "" || b.ChainID == q.Chain) &&
		(len(q.Statuses) == 0 || slices.Contains(q.Statuses, b.Status)) &&
		b.Sequence > q.AfterSequence
}

// List answers a query over the states of any number of VMs.
func List(q kvmbackup.Query, states ...*State) []kvmbackup.Backup {
	var out []kvmbackup.Backup
	for _, s := range states {
		out = append(out, s.filter(func(b kvmbackup.Backup) bool { return Matches(q, b) })...)
	}
	slices.SortFunc(out, func(a, b kvmbackup.Backup) int {
		return cmp.Or(cmp.Compare(a.VM, b.VM), cmp.Compare(a.Sequence, b.Sequence))
	})
	return limited(out, q.Limit)
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
