package stories_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// A restore over the VM's own volumes, also where an image is gone or damaged; the backup after it is full, because the
// bitmaps know nothing of it.
func TestRestoreInPlace(t *testing.T) {
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: persistent})
		s.policy.OfflineIncremental = true
		s.write("vda", 0x11, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.write("vdb", 0x21, 1, 4)
		s.incremental()
		good := s.taken[1]
		s.write("vda", 0x31, 2, 4)
		s.incremental()

		over := engine.RestoreRequest{Backup: good.ID, InPlace: &engine.InPlace{Disks: s.request().Disks, Volumes: s.volumes}}
		_, err := s.engine.Restore(s.ctx, over)
		s.wantErr(err, kvmbackup.ErrDomainRunning)
		s.guest.Destroy()

		back := func() {
			t.Helper()
			_, err := s.engine.Restore(s.ctx, over)
			s.must(err)
			s.same(good)
			s.inOrder()
			left, err := filepath.Glob(s.guest.Image("vda") + "?*")
			if s.must(err); len(left) > 0 {
				t.Errorf("the restore has left %q", left)
			}
		}
		back()
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.must(os.Remove(s.guest.Image("vdb")))
		required := s.request()
		required.RequireAllDisks = true
		_, err = s.engine.Backup(s.ctx, required)
		s.wantErr(err, kvmbackup.ErrDiskLeftOut)
		back()
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.must(os.WriteFile(s.guest.Image("vda"), []byte("this was an image"), 0o666))
		back()
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.start()
		s.write("vda", 0x41, 3, 4)
		s.incremental()
		s.restoreAll()
		if persistent {
			dom := s.guest.Domain()
			s.must(dom.ManagedSave(0))
			_, err = s.engine.Restore(s.ctx, over)
			s.wantErr(err, kvmbackup.ErrDomainRunning)
			s.Log(err)
			s.must(dom.ManagedSaveRemove(0))
			back()
		}
	}
}

// same checks that the stopped guest's images hold what they held at that backup, and lets the models go on from there.
func (s *story) same(t taken) {
	s.Helper()
	for _, v := range t.Volumes {
		was := t.content[v.VolumeID].Path()
		s.must(s.images.Compare(s.ctx, was, s.guest.Image(v.Device), qcow2.CompareOptions{
			FormatA: qcow2.FormatRaw, FormatB: qcow2.Format(s.disk(v.Device).Format),
		}))
		s.run("cp", "--sparse=always", was, s.guest.Model(v.Device).Path())
	}
}
