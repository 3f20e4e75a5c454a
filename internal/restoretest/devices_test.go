package restoretest_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// onDevice wants the content on the device, and what was there before behind it.
func (l *world) onDevice(dev string, b kvmbackup.Backup, id kvmbackup.VolumeID) {
	l.Helper()
	got, err := os.ReadFile(dev)
	l.ok(err)
	want := make([]byte, l.held[b.ID][id].SizeBytes())
	_, err = l.held[b.ID][id].ReadAt(want, 0)
	l.ok(err)
	if !bytes.Equal(got[:len(want)], want) {
		l.Fatalf("%s doesn't hold volume %s of the backup", dev, id)
	}
	if !bytes.Equal(got[len(want):], filled(int64(len(got)-len(want)))) {
		l.Fatalf("%s was written behind the volume's end", dev)
	}
}

func untouched(t testing.TB, dev string) {
	t.Helper()
	got, err := os.ReadFile(dev)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, filled(int64(len(got)))) {
		t.Fatalf("%s was written to", dev)
	}
}

func TestBlockDevices(t *testing.T) {
	t.Parallel()
	exact, larger := loop(t, disk), loop(t, disk+4*cluster)
	l := newWorld(t)
	chain := l.chain(3)
	for _, b := range []kvmbackup.Backup{chain[2], chain[0], chain[1]} { // each must overwrite all of the one before
		r := l.restore(engine.RestoreRequest{Backup: b.ID, Dir: l.out(), Volumes: []engine.RestoreVolume{
			{ID: "v-vda", Path: exact}, {ID: "v-vdb"},
		}})
		if r.Volumes[0].Format != qcow2.FormatRaw || r.Volumes[0].Path != exact {
			t.Errorf("restored %+v", r.Volumes[0])
		}
		l.onDevice(exact, b, "v-vda")
	}
	link := filepath.Join(l.out(), "vg-lv")
	l.ok(os.Symlink(larger, link))
	_, err := l.engine.Restore(t.Context(), one(chain[1], "v-vda", link))
	l.ok(err)
	l.onDevice(larger, chain[1], "v-vda")
}

// TestRefusedDevices: nothing is written to any target when one of them is refused.
func TestRefusedDevices(t *testing.T) {
	t.Parallel()
	small, large := loop(t, disk-4096), loop(t, disk)
	l := newWorld(t)
	b := l.chain(2)[1]
	dir := l.out()
	link := filepath.Join(l.out(), "link")
	l.ok(os.Symlink(large, link))
	for name, c := range map[string]struct {
		first, second engine.RestoreVolume
		want          error
	}{
		"too small": {engine.RestoreVolume{Path: large}, engine.RestoreVolume{Path: small}, kvmbackup.ErrTooSmall},
		"twice":     {engine.RestoreVolume{Path: large}, engine.RestoreVolume{Path: link}, kvmbackup.ErrInvalid},
		"qcow2": {
			engine.RestoreVolume{}, engine.RestoreVolume{Path: large, Format: qcow2.FormatQcow2}, kvmbackup.ErrUnsupported,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.first.ID, c.second.ID = "v-vda", "v-vdb"
			_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{
				Backup: b.ID, Dir: dir, Volumes: []engine.RestoreVolume{c.first, c.second},
			})
			l.fails(err, c.want)
			untouched(t, small)
			untouched(t, large)
			l.empty(dir)
		})
	}
}

// TestSimulatedDigestOfADevice is the real one's.
func TestSimulatedDigestOfADevice(t *testing.T) {
	t.Parallel()
	const size = 9<<20 + 512
	dev := loop(t, size+4096)
	l := newWorld(t)
	l.ok(os.WriteFile(dev, kvmbackuptest.Pattern(1, size), 0o600))
	tool, err := qcow2.New(qcow2.Config{})
	l.ok(err)
	want, err := tool.DeviceDigest(t.Context(), dev, size)
	l.ok(err)
	if has, err := (kvmbackuptest.Images{}).DeviceDigest(t.Context(), dev, size); err != nil || has != want {
		t.Errorf("%s, %v, want %s", has, err, want)
	}
	_, err = kvmbackuptest.Images{}.DeviceDigest(t.Context(), dev, size+8192)
	l.fails(err, qcow2.ErrIO)
}

// TestMountedDevice: a device that holds a mounted file system is not overwritten.
func TestMountedDevice(t *testing.T) {
	t.Parallel()
	dev := loop(t, 4<<20)
	l := newWorld(t)
	b := l.backup()
	run(t, "mkfs.ext4", "-q", dev)
	at := t.TempDir()
	run(t, "mount", dev, at)
	t.Cleanup(func() { run(t, "umount", at) })
	l.ok(os.WriteFile(filepath.Join(at, "mine"), []byte("precious"), 0o600))
	_, err := l.engine.Restore(t.Context(), one(b, "v-vda", dev))
	l.fails(err, kvmbackup.ErrImageLocked)
	if data, err := os.ReadFile(filepath.Join(at, "mine")); err != nil || string(data) != "precious" {
		t.Errorf("the file on it: %q, %v", data, err)
	}
}

func TestReadOnlyFolder(t *testing.T) {
	t.Parallel()
	dir := lab.Tmpfs(t, "ro")
	l := newWorld(t)
	b := l.backup()
	_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
	l.fails(err, kvmbackup.ErrTargetAccess)
	l.empty(dir)
}

func TestFullFileSystem(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	l.write("vda", 0, 1)
	l.write("vdb", 0, 14)
	b := l.backup()
	for _, format := range []qcow2.Format{qcow2.FormatQcow2, qcow2.FormatRaw} {
		dir := lab.Tmpfs(t, "size=640k")
		_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{
			Backup: b.ID, Dir: dir, Format: format, IgnoreSpace: true,
		})
		l.fails(err, kvmbackup.ErrNoSpace)
		l.empty(dir)
	}
}

// TestVanishedFolder takes the target's folder away when everything was checked already.
func TestVanishedFolder(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.backup()
	dir := l.out()
	l.images.before = func(call, _ string) error {
		if call == "convert" {
			return os.RemoveAll(dir)
		}
		return nil
	}
	_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
	l.fails(err, os.ErrNotExist)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder came back: %v", err)
	}
}

// TestDeviceThatLosesWrites: below the device there is no space, as in a thin pool that is full. QEMU is told when it
// closes the device, and says nothing.
func TestDeviceThatLosesWrites(t *testing.T) {
	t.Parallel()
	thin := filepath.Join(lab.Tmpfs(t, "size=512k"), "thin")
	l := newWorld(t)
	l.ok(os.WriteFile(thin, nil, 0o600))
	l.ok(os.Truncate(thin, disk))
	l.write("vda", 0, 14)
	b := l.backup(full)
	_, err := l.engine.Restore(t.Context(), one(b, "v-vda", lab.LoopDevice(t, thin)))
	if !errors.Is(err, qcow2.ErrIO) && !errors.Is(err, kvmbackup.ErrNoSpace) {
		t.Errorf("got the error %v, want ErrIO or ErrNoSpace", err)
	}
}
