package kvmbackuptest_test

import (
	"errors"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// four takes F I I I and returns them.
func (s *teller) four() (bs []kvmbackup.Backup) {
	s.t.Helper()
	for i := range int64(4) {
		s.must(s.write("vda", i, 1))
		bs = append(bs, s.backup(everyday))
	}
	return bs
}

func (s *teller) delete(b kvmbackup.Backup, force bool) kvmbackup.DeletePlan {
	s.t.Helper()
	p, err := s.engine.Delete(s.t.Context(), b.ID, kvmbackup.DeleteOptions{Subtree: force})
	s.must(err)
	s.must(s.checkClean())
	return p
}

func (s *teller) status(b kvmbackup.Backup) kvmbackup.Status {
	s.t.Helper()
	now, err := s.store.Backup(s.t.Context(), b.ID)
	if errors.Is(err, kvmbackup.ErrNotFound) {
		return kvmbackup.StatusUnknown
	}
	s.must(err)
	return now.Status
}

func (s *teller) statuses(bs []kvmbackup.Backup, want ...kvmbackup.Status) {
	s.t.Helper()
	for i, b := range bs {
		if got := s.status(b); got != want[i] {
			s.t.Errorf("backup %d is %v, want %v", i, got, want[i])
		}
	}
}

const (
	gone      = kvmbackup.StatusUnknown
	pending   = kvmbackup.StatusDeletePending
	completed = kvmbackup.StatusCompleted
)

func TestDeleteMiddle(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		bs := s.four()
		if p := s.delete(bs[1], false); len(p.Pending) != 1 || p.ClearsActive {
			t.Errorf("plan: %v", p)
		}
		s.statuses(bs, completed, pending, completed, completed)
		_, err := s.engine.Restore(t.Context(), engine.RestoreRequest{Backup: bs[1].ID, Dir: s.dir})
		if !errors.Is(err, kvmbackup.ErrStatus) {
			t.Errorf("restore of what was deleted: %v", err)
		}
		s.backup(everyday)
		s.want("FIII")
	})
}

func TestDeleteFirst(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		bs := s.four()
		s.delete(bs[0], false)
		s.statuses(bs, pending, completed, completed, completed)
		s.delete(bs[0], false) // again
		s.want("III")
	})
}

func TestDeleteNewest(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		bs := s.four()
		if p := s.delete(bs[3], false); !p.ClearsActive {
			t.Errorf("plan: %v", p)
		}
		s.statuses(bs, completed, completed, completed, gone)
		if ours, _, _ := s.names("vda"); len(ours) != 0 {
			t.Errorf("checkpoints of ours: %v", ours)
		}
		if b := s.backup(everyday); b.Kind != kvmbackup.KindFull || reasonOf(b, "") != kvmbackup.ReasonNoActiveCheckpoint {
			t.Errorf("%v: %v", b.Kind, b.Reasons)
		}
		s.want("FIIF")
	})
}

// The last child takes its delete-pending ancestors along.
func TestDeleteCascade(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		bs := s.four()
		for _, i := range []int{0, 2, 1} {
			s.delete(bs[i], false)
		}
		s.statuses(bs, pending, pending, pending, completed)
		s.want("I")
		s.delete(bs[3], false)
		s.statuses(bs, gone, gone, gone, gone)
		removed := map[kvmbackup.BackupID]bool{}
		s.must(s.engine.Accounting(t.Context(), func(r kvmbackup.Removal) error {
			removed[r.Backup] = r.Bytes > 0
			return nil
		}))
		for i, b := range bs {
			if !removed[b.ID] {
				t.Errorf("backup %d is not accounted for", i)
			}
		}
		s.backup(everyday)
		s.want("F")
	})
}

func TestDeleteForced(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		bs := s.four()
		s.delete(bs[1], true)
		s.statuses(bs, completed, gone, gone, gone)
		s.backup(everyday)
		s.want("FF")
	})
}
