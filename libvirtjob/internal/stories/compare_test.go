package stories_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// compare tells a story whose policy has contents compared, by pull while the guest runs.
func compare(t *testing.T, cfg config) *story {
	t.Helper()
	s := tell(t, cfg)
	s.policy.Compare = true
	scratch, err := os.MkdirTemp("", "kb") //nolint:usetesting // sockets have short paths
	s.must(err)
	t.Cleanup(func() {
		if err := os.Remove(scratch); err != nil {
			t.Errorf("the scratch isn't empty: %v", err)
		}
	})
	s.must(os.Chmod(scratch, 0o777))
	other := repository.Options{NoSync: true, Space: func(at repository.Space) repository.Space { at.Device++; return at }}
	s.consumer.cfg.Scratch = []string{scratch}
	s.consumer.cfg.Repository, err = repository.Open(s.ctx, s.dir, other)
	s.must(err)
	s.engine, err = engine.New(s.consumer.cfg)
	s.must(err)
	return s
}

// compared takes an incremental in which just these volumes are compared, and have so many MiB to be stored.
func (s *story) compared(changed map[string]int64) kvmbackup.Backup {
	s.Helper()
	b := s.incremental()
	var got []string
	for _, v := range b.Volumes {
		want, compared := changed[v.Device]
		is := slices.ContainsFunc(b.Reasons, func(r kvmbackup.Reason) bool {
			return r.VolumeID == v.VolumeID && r.Code == kvmbackup.ReasonVolumeCompared
		})
		if is {
			got = append(got, v.Device)
		}
		if is != compared {
			s.Errorf("%s was compared: %v, because %v", v.Device, is, b.Reasons)
		}
		if want *= mib; compared && (v.DirtyBytes != want || v.StoredSize > want*105/100+mib) {
			s.Errorf("%s: %d bytes differ and %d are stored, want %d", v.Device, v.DirtyBytes, v.StoredSize, want)
		}
	}
	s.Logf("compared %q because %v", got, b.Reasons)
	return b
}

// powerCut is a crash after the guest's own flush.
func (s *story) powerCut() {
	s.Helper()
	for _, d := range s.disks {
		s.guest.Flush(d.Device)
	}
	s.crash()
}

// A power cut costs an incremental of what changed, whichever disks it hits, and the bitmaps go on.
func TestCompareAfterPowerCut(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := compare(t, config{Disks: disks("vda", "vdb"), Persistent: persistent})
		s.write("vda", 0x11, 0, 12)
		s.write("vdb", 0x12, 4, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.write("vda", 0x21, 3, 2)
		s.powerCut() // before any bitmap was stored
		s.start()
		s.guest.WriteZeroes("vda", 8*mib, mib)
		s.compared(map[string]int64{"vda": 3, "vdb": 0})
		s.write("vdb", 0x31, 0, 1)
		s.compared(nil)
		s.guest.Destroy()
		s.start()
		s.write("vda", 0x41, 1, 1)
		s.powerCut() // with stored ones
		s.compared(map[string]int64{"vda": 1, "vdb": 0})
		s.start()
		s.write("vda", 0x51, 6, 1)
		s.compared(nil)
		s.restoreAll()
	}
}

// Of two disks one is hit: the other goes by its bitmap.
func TestCompareOneOfTwoDisks(t *testing.T) {
	t.Parallel()
	s := compare(t, config{Disks: disks("vda", "vdb"), Persistent: true, Stopped: true})
	s.hitOne(s.powerCut)
	s.compared(map[string]int64{"vda": 2})
	s.write("vda", 0x41, 4, 2)
	s.compared(nil)
	s.restoreAll()
}

// The backup after a restore in place is of what the restore has changed.
func TestCompareAfterRestore(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := compare(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 8)
	first := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 2, 3)
	s.write("vda", 0x22, 12, 2)
	s.compared(nil)
	s.guest.Destroy()
	_, err := s.engine.Restore(s.ctx, s.overIt(first))
	s.must(err)
	s.same(s.taken[0])
	s.start()
	s.write("vdb", 0x31, 0, 1)
	s.compared(map[string]int64{"vda": 5, "vdb": 1})
	s.write("vda", 0x41, 0, 1)
	s.compared(nil)
	s.restoreAll()
}

// Disks without bitmaps: raw files, block devices and those of a network, beside one with; they grow, too.
func TestCompareWithoutBitmaps(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	backing := filepath.Join(t.TempDir(), "device.img")
	lab.CreateImage(t, "-f", "raw", backing, sprint(16*mib))
	device := lab.LoopDevice(t, backing)
	_, source := nbd(t)
	s := compare(t, config{Persistent: true, Disks: append(disks("vda"), disk{
		Device: "vdb", Format: "raw", SizeBytes: 24 * mib,
	},
		disk{Device: "vdc", Format: "raw", Type: "network", SourceXML: source, SizeBytes: 16 * mib},
		disk{Device: "vdd", Format: "raw", SizeBytes: 16 * mib, Block: true, Path: device})})
	for _, device := range []string{"vda", "vdb", "vdc", "vdd"} {
		s.write(device, 0x11, 0, 6)
	}
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 1)
	s.write("vdb", 0x22, 5, 2)
	s.guest.WriteZeroes("vdc", 2*mib, mib)
	s.write("vdd", 0x23, 15, 1)
	s.compared(map[string]int64{"vdb": 2, "vdc": 1, "vdd": 1})
	s.guest.Resize("vdb", 40*mib)
	s.write("vdb", 0x31, 38, 1)
	s.compared(map[string]int64{"vdb": 1, "vdc": 0, "vdd": 0})
	s.guest.Destroy()
	s.policy.OfflineIncremental = true
	req := s.request()
	req.Exclude = []string{"vdc"} // which has no path here
	req.Volumes = slices.DeleteFunc(slices.Clone(s.volumes), func(v engine.Volume) bool { return v.Device == "vdc" })
	off, err := s.engine.Backup(s.ctx, req)
	s.must(err)
	for _, v := range off.Volumes {
		if v.Kind != kvmbackup.KindIncremental || v.DirtyBytes != 0 {
			t.Errorf("off it is %v, and %d bytes have changed on %s: %v", v.Kind, v.DirtyBytes, v.Device, off.Reasons)
		}
	}
	s.restoreAll()
}

// What another program writes while the VM is off no bitmap shows. The pass that compares finds it, and says so.
func TestCompareFindsWhatWasWrittenBehind(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := compare(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 8)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Destroy()
	s.behind("vda", 0x77, 2)
	s.start()
	s.write("vda", 0x21, 5, 1)
	s.policy.ForceCompare = true
	b := s.compared(map[string]int64{"vda": 2, "vdb": 0})
	if !slices.ContainsFunc(b.Reasons, func(r kvmbackup.Reason) bool {
		return r.Code == engine.ReasonBitmapMissed && r.VolumeID == "vol-vda"
	}) {
		t.Errorf("it isn't on record: %v", b.Reasons)
	}
	s.policy.ForceCompare = false
	s.write("vda", 0x31, 1, 1)
	s.compared(nil)
	s.restoreAll()
}

// With digests each backup has an index, made from its parent's. It spares reading; one that is damaged, another
// backup's or gone only costs. Every restore compares the digests that came of them.
func TestCompareByIndex(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := compare(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.digests = true
	s.write("vda", 0x11, 0, 12)
	s.write("vdb", 0x12, 4, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 3, 1)
	s.guest.Resize("vdb", 27*mib)
	s.write("vdb", 0x22, 26, 1)
	s.compared(nil)
	for i, spoil := range []func(path, other string){
		func(string, string) {},
		func(path, _ string) { s.flip(path) },
		func(path, other string) { s.run("cp", other, path) },
		func(path, _ string) { s.must(os.Remove(path)) },
	} {
		whole := map[string][]byte{}
		last, before := s.taken[len(s.taken)-1], s.taken[len(s.taken)-2]
		for _, v := range last.Volumes {
			index := func(b kvmbackup.Backup) string {
				if !slices.ContainsFunc(b.Files, func(f kvmbackup.SideFile) bool { return f.Name == v.File+".index" }) {
					t.Errorf("backup %d has no index of %s: %v", b.Sequence, v.File, b.Files)
				}
				file := s.repo.FilePath(b.Path, v.File) + ".index"
				data, err := os.ReadFile(file)
				s.must(err)
				whole[file] = data
				return file
			}
			spoil(index(last.Backup), index(before.Backup))
		}
		s.write("vda", byte(0x31+i), int64(i), 2)
		s.powerCut()
		s.start()
		b, err := s.engine.Backup(s.ctx, s.request())
		s.must(err)
		for file, data := range whole {
			s.must(os.WriteFile(file, data, 0o600))
		}
		if v, _ := b.Volume("vol-vda"); b.Kind != kvmbackup.KindIncremental || v.DirtyBytes != 2*mib || v.Digest == "" {
			t.Errorf("it is %v, with %+v", b.Kind, v)
		}
		s.consumer.keep(s, b)
	}
	s.restoreAll()
}

// flip changes a bit in the middle of a file.
func (s *story) flip(path string) {
	s.Helper()
	data, err := os.ReadFile(path)
	s.must(err)
	data[len(data)/2] ^= 4
	s.must(os.WriteFile(path, data, 0o600))
}

// A chain that is compressed, and one in which some backups are, are compared like any other; their digests go by the
// index.
func TestCompareCompressed(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := compare(t, config{Disks: disks("vda"), Persistent: true})
	s.digests = true
	s.policy.Compression = kvmbackup.CompressionZstd
	s.write("vda", 0x11, 0, 8)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	for i, compression := range []kvmbackup.Compression{kvmbackup.CompressionZstd, "", kvmbackup.CompressionZstd} {
		s.policy.Compression = compression
		s.write("vda", byte(0x21+i), int64(2*i), 1)
		s.powerCut()
		s.start()
		s.compared(map[string]int64{"vda": 1})
		s.write("vda", byte(0x31+i), int64(2*i+1), 1)
		s.compared(nil)
	}
	s.restoreAll()
}

// What of the parent can't be read is in the new backup, told and on record: the next one is a full.
func TestCompareWithAnUnreadableParent(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := compare(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.policy.Compression = kvmbackup.CompressionZstd
	var told []engine.Event
	s.consumer.cfg.OnEvent = func(ev engine.Event) {
		if ev.Type == engine.EventParentUnreadable {
			told = append(told, ev)
		}
	}
	var err error
	s.engine, err = engine.New(s.consumer.cfg)
	s.must(err)
	s.write("vda", 0x11, 0, 8)
	s.write("vdb", 0x12, 0, 4)
	first := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	v, _ := first.Volume("vol-vda")
	file := s.repo.FilePath(first.Path, v.File)
	data, err := os.ReadFile(file)
	s.must(err)
	frame := bytes.Index(data, []byte{0x28, 0xb5, 0x2f, 0xfd}) // begins what is compressed, RFC 8878
	spoiled := slices.Clone(data)
	copy(spoiled[frame:], []byte{0, 0, 0, 0})
	s.must(os.WriteFile(file, spoiled, 0o600))
	s.powerCut()
	s.start()
	b, err := s.engine.Backup(s.ctx, s.request())
	s.must(err)
	if v, _ := b.Volume("vol-vda"); b.Kind != kvmbackup.KindIncremental || v.DirtyBytes == 0 || v.DirtyBytes > 2*mib {
		t.Errorf("it is %v, and has %d bytes", b.Kind, v.DirtyBytes)
	}
	if len(told) != 1 || told[0].Bytes == 0 || !hasReason(b, engine.ReasonParentUnreadable) {
		t.Errorf("told %v, and on record is %v", told, b.Reasons)
	}
	damaged, err := s.engine.Get(s.ctx, first.ID)
	s.must(err)
	if v := damaged.Verification; v == nil || v.OK || !v.Content {
		t.Errorf("on record of the parent is %+v", v)
	}
	s.consumer.keep(s, b)
	s.unproved = 0
	s.restore(s.consumer, s.taken[1])
	next := s.backup()
	if next.Kind != kvmbackup.KindFull || next.Reasons[0].Code != kvmbackup.ReasonParentDamaged {
		t.Errorf("the next is %v: %v", next.Kind, next.Reasons)
	}
	s.unproved = 0
	s.restore(s.consumer, s.taken[2])
}

// A disk that was moved to another path is compared once.
func TestCompareMoved(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := compare(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Destroy()
	moved := s.TempDir() + "/moved.qcow2"
	s.run("mv", s.guest.Image("vda"), moved)
	s.rebuild(part{"vol-vda", disk{Device: "vda", Path: moved}}, part{"vol-vdb", disk{Device: "vdb"}})
	s.start()
	s.write("vda", 0x21, 3, 2)
	s.write("vdb", 0x22, 1, 1)
	s.compared(map[string]int64{"vda": 2})
	s.write("vda", 0x31, 0, 1)
	s.compared(nil)
	s.restoreAll()
}

// A clone of a template is compared through its layers.
func TestCompareClone(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	template := filepath.Join(t.TempDir(), "template.qcow2")
	lab.CreateImage(t, "-f", "qcow2", template, sprint(32*mib))
	s := compare(t, config{
		Persistent: true, Disks: []disk{{Device: "vda", SizeBytes: 32 * mib, Backing: template, BackingFormat: "qcow2"}},
	})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 3, 2)
	s.powerCut()
	s.start()
	s.compared(map[string]int64{"vda": 2})
	s.guest.Snapshot("vda", "s1")
	s.write("vda", 0x31, 9, 1)
	s.powerCut()
	s.start()
	s.compared(map[string]int64{"vda": 1})
	s.restoreAll()
}
