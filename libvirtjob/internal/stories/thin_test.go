package stories_test

import (
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// A disk of 16 TiB that holds 64 MiB is backed up with digests, and restored with a look at them, in the time that its
// 64 MiB take: by pull and while the VM is off, to qcow2 and to raw.
func TestThinDiskAndBack(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	const size = 16<<40 - mib // what a file on ext4 can have
	s := compare(t, config{Disks: []disk{{Device: "vda", SizeBytes: size}}, Persistent: true})
	s.digests, s.policy.Compare = true, false
	s.write("vda", 1, 0, 32)
	s.write("vda", 2, size/mib-32, 32)
	for _, way := range []kvmbackup.Transfer{kvmbackup.TransferPull, kvmbackup.TransferOffline} {
		if way == kvmbackup.TransferOffline {
			s.guest.Destroy()
		}
		began := time.Now()
		b, err := s.engine.Backup(s.ctx, s.request())
		s.must(err)
		took := time.Since(began)
		t.Logf("full by %v: %v, %d KiB stored", way, took, b.Volumes[0].StoredSize>>10)
		if b.Transfer != way || b.Kind != kvmbackup.KindFull || b.Volumes[0].Digest == "" ||
			b.Volumes[0].StoredSize > 70*mib || took > time.Minute {
			t.Errorf("it is %v after %v: %+v", b.Transfer, took, b.Volumes[0])
		}
		for _, format := range []qcow2.Format{qcow2.FormatQcow2, qcow2.FormatRaw} {
			began := time.Now()
			_, err := s.engine.Restore(s.ctx, engine.RestoreRequest{Backup: b.ID, Dir: t.TempDir(), Format: format})
			s.must(err)
			took := time.Since(began)
			t.Logf("restore to %s: %v", format, took)
			if took > time.Minute {
				t.Errorf("a restore to %s took %v", format, took)
			}
		}
		s.policy.ForceFull = true
	}
}
