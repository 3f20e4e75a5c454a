package stories_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// A chain of backups over two disks, with writes that overlap and a restart in between.
func TestChain(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.write("vdb", 0x12, 2, 6)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)

	s.write("vda", 0x21, 2, 4)
	s.incremental()

	s.write("vda", 0x31, 3, 1)
	s.write("vdb", 0x32, 0, 4)
	s.guest.WriteZeroes("vdb", 6*mib, mib)
	s.incremental()

	s.guest.Destroy()
	s.start()
	s.write("vdb", 0x42, 3, 3)
	s.incremental()

	s.write("vda", 0x51, 5, 3)
	s.write("vdb", 0x52, 15, 1)
	s.incremental()
	s.incremental() // nothing was written

	s.restoreAll()
}

// The feature is switched on, off and on again, and the length of chains is changed in mid-chain: untracked fulls
// neither break nor join a chain. When the last backup is deleted nothing is left of any.
func TestTransitions(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	s.policy.DisableIncremental = true
	s.write("vda", 0x01, 0, 8)
	s.full(kvmbackup.ReasonIncrementalDisabled)
	s.policy = kvmbackup.Policy{FullEvery: 3}
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 4)
	s.incremental()
	s.policy.DisableIncremental = true
	s.write("vda", 0x31, 2, 4)
	if b := s.full(kvmbackup.ReasonIncrementalDisabled); b.Tracked() {
		t.Errorf("backup has the checkpoint %s", b.Checkpoint)
	}
	s.policy.DisableIncremental = false
	s.full(kvmbackup.ReasonNotNewest)
	s.write("vda", 0x51, 4, 4)
	s.incremental()
	s.incremental()
	s.full(kvmbackup.ReasonChainComplete)
	s.incremental()
	s.policy.FullEvery = 2
	s.full(kvmbackup.ReasonChainComplete)
	s.incremental()
	s.policy.FullEvery = 4
	s.write("vda", 0x61, 5, 4)
	s.incremental()
	s.restoreAll()
	s.deleteAll()
}

// deleteAll deletes the oldest backup, then the newest and so on to the last one. What is still offered restores each
// time, and in the end nothing is left; inOrder compares the folders with the records.
func (s *story) deleteAll() {
	s.Helper()
	first, stride := lab.Every(s, 4)
	for newest, n := false, 0; len(s.taken) > 0; newest, n = !newest, n+1 {
		at := 0
		if newest {
			at = len(s.taken) - 1
		}
		_, err := s.engine.Delete(s.ctx, s.taken[at].ID, kvmbackup.DeleteOptions{})
		s.must(err)
		s.taken = slices.Delete(s.taken, at, at+1)
		s.inOrder()
		if n%stride == first {
			s.restoreAll()
		}
	}
	records, err := s.consumer.cfg.Store.List(s.ctx, kvmbackup.Query{VM: s.vm()})
	s.must(err)
	if got := s.owned(s.consumer); len(got) > 0 || len(records) > 0 || s.record().ActiveCheckpoint != "" {
		s.Errorf("left are %q, %d records and the active checkpoint %q", got, len(records), s.record().ActiveCheckpoint)
	}
}

// Digests are of what the disks held, also through a chain.
func TestDigests(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	req := s.request()
	req.Digests = true
	for i := range int64(3) {
		s.write("vda", byte(0x11+i), 2*i, 4)
		b := s.backupBy(s.consumer, req)
		report, err := s.engine.Verify(s.ctx, b.ID, engine.VerifyOptions{Content: true})
		if s.must(err); !report.OK() || report.Digests == 0 {
			t.Errorf("report is %+v", report)
		}
	}
	s.restoreAll()
	// A byte is flipped in the newest file, where nothing but a digest can tell.
	b := s.taken[2]
	s.run("qemu-io", "-c", "write -q -P 0x99 5M 512", s.dir+"/"+b.Path+"/"+b.Volumes[0].File)
	report, err := s.engine.Verify(s.ctx, b.ID, engine.VerifyOptions{Content: true})
	if !errors.Is(err, kvmbackup.ErrDamaged) || report.OK() {
		t.Errorf("report is %+v, %v", report, err)
	}
}

// Several VMs are backed up at once by one application.
func TestManyGuests(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	first := tell(t, config{Disks: disks("vda")})
	all := []*story{first}
	for range 3 {
		s := tell(t, config{Disks: disks("vda")})
		s.consumer, s.consumers = first.consumer, first.consumers
		all = append(all, s)
	}
	for round := range int64(3) {
		done := make(chan error, len(all))
		for i, s := range all {
			s.write("vda", byte(int64(i)<<4+round), round, 4)
			go func() {
				_, err := s.engine.Backup(s.ctx, s.request())
				done <- err
			}()
		}
		for range all {
			first.must(<-done)
		}
	}
	for _, s := range all {
		s.inOrder()
		list, err := s.engine.List(s.ctx, kvmbackup.Query{
			VM: s.vm(), Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted},
		})
		if s.must(err); len(list) != 3 || list[2].Position != 2 {
			t.Errorf("%s has %d backups", s.vm(), len(list))
		}
		s.restore(s.consumer, taken{Backup: list[2], content: map[kvmbackup.VolumeID]*model{"vol-vda": s.guest.Model("vda")}})
	}
}
