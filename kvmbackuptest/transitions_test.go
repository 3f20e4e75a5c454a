package kvmbackuptest_test

import (
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestTransitions tells how a VM's settings change, from its first backup to the deletion of its last: what is taken
// after each change, that every backup restores as long as it is there, in whatever order they go, and that nothing is
// left when the last one has gone.
func TestTransitions(t *testing.T) {
	off := kvmbackup.Policy{DisableIncremental: true}
	every := func(n int) kvmbackup.Policy { return kvmbackup.Policy{FullEvery: n} }
	orders := []struct {
		name string
		sort func([]kvmbackup.Backup)
	}{
		{"oldest first", func([]kvmbackup.Backup) {}},
		{"newest first", slices.Reverse[[]kvmbackup.Backup]},
		{"from the middle", func(bs []kvmbackup.Backup) { slices.Reverse(bs[:len(bs)/2]) }},
	}
	first, stride := lab.Every(t, len(orders)) // in the quick tier each story has one of the orders
	for n, r := range []struct {
		name     string
		policies []kvmbackup.Policy
		kinds    string
	}{
		{name: "off and on", policies: []kvmbackup.Policy{everyday, everyday, off, off, everyday, everyday, off, everyday},
			kinds: "FIFFFIFF"},
		{name: "only untracked ones before", policies: []kvmbackup.Policy{off, off, everyday, everyday}, kinds: "FFFI"},
		{name: "never on", policies: []kvmbackup.Policy{off, off, off}, kinds: "FFF"},
		{name: "off at the end", policies: []kvmbackup.Policy{everyday, everyday, off}, kinds: "FIF"},
		{
			name: "fewer to a chain in mid-chain", policies: []kvmbackup.Policy{everyday, everyday, everyday, everyday, every(3),
				every(3), every(3), every(3)}, kinds: "FIIIFIIF",
		},
		{name: "fewer, and the chain is short enough", policies: []kvmbackup.Policy{everyday, everyday, every(3), every(3)},
			kinds: "FIIF"},
		{
			name: "more to a chain in mid-chain", policies: []kvmbackup.Policy{every(2), every(2), every(2), every(4), every(4),
				every(4), every(4)}, kinds: "FIFIIIF",
		},
		{name: "more, and the chain was complete", policies: []kvmbackup.Policy{every(2), every(2), every(3), every(3)},
			kinds: "FIIF"},
		{
			name: "fulls alone, and incrementals again", policies: []kvmbackup.Policy{every(1), every(1), everyday, every(1),
				everyday}, kinds: "FFIFI",
		},
		{
			name: "all at once", policies: []kvmbackup.Policy{off, every(2), every(2), off, every(3), every(3), every(1),
				every(4), off, everyday}, kinds: "FFIFFIFIFF",
		},
	} {
		for i := (first + n) % stride; i < len(orders); i += stride {
			t.Run(r.name+", deleted "+orders[i].name, func(t *testing.T) {
				story(t, false, func(t *testing.T, s *teller) {
					var bs []kvmbackup.Backup
					for i, p := range r.policies {
						s.must(s.write("vda", int64(i%8), 1))
						b := s.backup(p)
						if b.Tracked() == p.DisableIncremental {
							t.Errorf("backup %d is tracked: %v", i, b.Tracked())
						}
						bs = append(bs, b)
					}
					s.want(r.kinds)
					orders[i].sort(bs)
					s.deleteAll(bs)
					s.nothingLeft(bs)
					if b := s.backup(everyday); b.Kind != kvmbackup.KindFull || reasonOf(b, "") != kvmbackup.ReasonNoActiveCheckpoint {
						t.Errorf("the first backup of a new life is %v: %v", b.Kind, b.Reasons)
					}
				})
			})
		}
	}
}

// deleteAll deletes one after the other; what is still offered restores each time.
func (s *teller) deleteAll(bs []kvmbackup.Backup) {
	s.t.Helper()
	for _, b := range bs {
		s.delete(b, false)
		s.must(s.restoreAll())
	}
}

// nothingLeft looks for anything that the backups may have left: in the store, the repository, libvirt and the images.
func (s *teller) nothingLeft(bs []kvmbackup.Backup) {
	s.t.Helper()
	ctx := s.t.Context()
	records, err := s.store.List(ctx, kvmbackup.Query{})
	s.must(err)
	v, err := s.store.VM(ctx, vm)
	s.must(err)
	if len(records) > 0 || v.ActiveCheckpoint != "" {
		s.t.Errorf("the store has %d records and the active checkpoint %q", len(records), v.ActiveCheckpoint)
	}
	folders, err := s.repo.List(ctx, vm)
	s.must(err)
	if len(folders) > 0 {
		s.t.Errorf("the repository has %v", folders)
	}
	for _, d := range s.volumes {
		ours, _, err := s.names(d.Device)
		s.must(err)
		if len(ours) > 0 {
			s.t.Errorf("libvirt or %s has %v", d.Device, ours)
		}
	}
	removed := map[kvmbackup.BackupID]int{}
	count := func(r kvmbackup.Removal) error { removed[r.Backup]++; return nil }
	s.must(s.engine.Accounting(ctx, count))
	s.must(s.engine.Accounting(ctx, count)) // each was acknowledged
	for _, b := range bs {
		if removed[b.ID] != 1 {
			s.t.Errorf("backup %s was accounted for %d times", b.ID, removed[b.ID])
		}
	}
}

// TestTransitionsBetweenDeletes: the settings change and backups are deleted in turn, down to the last one, and each
// backup in between is what the checkpoint that is left allows.
func TestTransitionsBetweenDeletes(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		off := kvmbackup.Policy{DisableIncremental: true}
		var all []kvmbackup.Backup
		take := func(p kvmbackup.Policy, kind kvmbackup.Kind, reason kvmbackup.ReasonCode) kvmbackup.Backup {
			t.Helper()
			s.must(s.write("vda", int64(len(all)%8), 1))
			b := s.backup(p)
			if b.Kind != kind || reasonOf(b, "") != reason {
				t.Errorf("backup %d is %v: %v", len(all), b.Kind, b.Reasons)
			}
			all = append(all, b)
			return b
		}
		const full, inc = kvmbackup.KindFull, kvmbackup.KindIncremental
		old := take(off, full, kvmbackup.ReasonIncrementalDisabled)
		take(everyday, full, kvmbackup.ReasonNoActiveCheckpoint)
		s.delete(old, false) // an untracked one has no part in the chain
		middle := take(everyday, inc, kvmbackup.ReasonIncremental)
		s.delete(middle, false) // the newest goes, and with it the checkpoint
		take(everyday, full, kvmbackup.ReasonNoActiveCheckpoint)
		top := take(everyday, inc, kvmbackup.ReasonIncremental)
		untracked := take(off, full, kvmbackup.ReasonIncrementalDisabled)
		s.delete(untracked, false) // it hid the chain, which can go on now
		next := take(everyday, inc, kvmbackup.ReasonIncremental)
		s.delete(top, false) // the next one needs it
		s.statuses([]kvmbackup.Backup{top, next}, pending, completed)
		take(kvmbackup.Policy{FullEvery: 3}, full, kvmbackup.ReasonChainComplete)
		take(kvmbackup.Policy{FullEvery: 3}, inc, kvmbackup.ReasonIncremental)
		s.must(s.restoreAll())
		for _, b := range slices.Backward(all) {
			if st := s.status(b); st == completed {
				s.delete(b, false)
				s.must(s.restoreAll())
			}
		}
		s.nothingLeft(all)
	})
}
