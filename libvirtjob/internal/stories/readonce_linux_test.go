package stories_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestReadOnce: digests are made of the bytes on their way. Once they are written nobody reads them again: until the
// backup is complete no more is read than the tables of the images, not even of what an incremental stands on. What
// this process reads is counted, with the tools that it runs, so that no test runs beside it.
func TestReadOnce(t *testing.T) {
	lab.Further(t)
	const written = 24
	s := compare(t, config{
		Disks:      []disk{{Device: "vda", SizeBytes: 64 * mib}, {Device: "vdb", SizeBytes: 16 * mib, Format: "raw"}},
		Persistent: true,
	})
	s.digests, s.policy = true, kvmbackup.Policy{FullEvery: 100, OfflineIncremental: true}
	read := int64(0)
	s.consumer.cfg.OnEvent = func(e engine.Event) {
		switch {
		case e.Type != engine.EventStep:
		case e.Step == "check targets":
			read = -readHere(t)
		case e.Step == "commit":
			read += readHere(t)
		}
	}
	var err error
	s.engine, err = engine.New(s.consumer.cfg)
	s.must(err)
	number := byte(1)
	backup := func(name string, kind kvmbackup.Kind, way kvmbackup.Transfer, readAgain bool) {
		t.Helper()
		if number++; way != kvmbackup.TransferOffline {
			s.write("vda", number, 2, written)
			s.write("vda", number, 50, 1)
		}
		b, err := s.engine.Backup(s.ctx, s.request())
		s.must(err)
		s.consumer.keep(s, b)
		lab.Equal(t, name+": kind", b.Kind, kind)
		lab.Equal(t, name+": way", b.Transfer, way)
		for _, v := range b.Volumes {
			if v.Digest == "" || (v.FileDigest == "") == readAgain {
				t.Errorf("%s: %s has the digests %q and %q", name, v.Device, v.Digest, v.FileDigest)
			}
		}
		t.Logf("%s: %d KiB are read", name, read>>10)
		if least := int64(written * mib); (read >= least) != readAgain || !readAgain && read > 4*mib {
			t.Errorf("%s: %d bytes are read of %d", name, read, least)
		}
	}
	s.policy.Transfer = kvmbackup.TransferPush
	backup("pushed", kvmbackup.KindFull, kvmbackup.TransferPush, true)
	s.policy.Transfer, s.policy.ForceFull = kvmbackup.TransferPull, true
	backup("a full", kvmbackup.KindFull, kvmbackup.TransferPull, false)
	s.policy.ForceFull = false
	backup("an incremental", kvmbackup.KindIncremental, kvmbackup.TransferPull, false)
	s.policy.ForceCompare = true
	backup("compared", kvmbackup.KindIncremental, kvmbackup.TransferPull, false)
	s.policy.ForceCompare = false
	s.write("vda", 77, 30, written)
	s.guest.Destroy()
	backup("an incremental of the stopped VM", kvmbackup.KindIncremental, kvmbackup.TransferOffline, false)
	s.policy.ForceFull = true
	backup("a full of the stopped VM", kvmbackup.KindFull, kvmbackup.TransferOffline, false)
	s.restoreAll()
}

// readHere is what this process and those that it waited for have read so far, in bytes.
func readHere(t *testing.T) (n int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(text)) {
		if found, _ := fmt.Sscanf(line, "rchar: %d", &n); found == 1 {
			return n
		}
	}
	t.Errorf("no count in %s", text)
	return 0
}
