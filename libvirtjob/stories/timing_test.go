package stories_test

import (
	"testing"
	"time"
"github.com/kvmbackup/kvmbackup"
)

func TestTiming(t *testing.T) {
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	tm := func(n string, f func()) { b := time.Now(); f(); t.Log(n, time.Since(b)) }
	tm("write", func() { s.write("vda", 0x11, 0, 4) })
	for range 2 {
		tm("backup only", func() { b, err := s.engine.Backup(s.ctx, s.request()); s.must(err); tk := taken{Backup: b, content: map[kvmbackup.VolumeID]*model{}}
			for _, v := range b.Volumes { tk.content[v.VolumeID] = s.guest.Model(v.Device).Snapshot() }
			s.taken = append(s.taken, tk) })
		tm("inOrder", func() { s.inOrder() })
		tm("bitmapsOf", func() { s.bitmapsOf(s.consumer, s.taken[0].Backup) })
		tm("restore", func() { s.restore(s.consumer, s.taken[len(s.taken)-1]) })
		tm("verify", func() { s.engine.Verify(s.ctx, s.taken[0].ID, false) })
	}
	tm("destroy", func() { s.guest.Destroy() })
	tm("create", func() { s.guest.Create() })
	tm("kill", func() { s.guest.Kill9() })
	tm("create", func() { s.guest.Create() })
}
