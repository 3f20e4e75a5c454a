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

// tooLarge wants a restore to say before its first copy how much it needs and how much there is, and to leave
// everything as it was.
func (l *world) tooLarge(req engine.RestoreRequest) {
	l.Helper()
	l.images.before = func(call, _ string) error {
		if call == "convert" {
			return errors.New("a copy was begun")
		}
		return nil
	}
	defer func() { l.images.before = nil }()
	cp := l.active()
	_, err := l.engine.Restore(l.Context(), req)
	l.fails(err, kvmbackup.ErrNoSpace)
	var space *kvmbackup.SpaceError
	if !errors.As(err, &space) || space.NeedBytes <= space.FreeBytes || space.FreeBytes <= 0 || !space.Restore {
		l.Fatalf("figures %+v of %v", space, err)
	}
	if l.active() != cp {
		l.Fatalf("the active checkpoint went from %s to %q", cp, l.active())
	}
}

// TestRoomForAllVolumes sums those that go to one file system: each would fit.
func TestRoomForAllVolumes(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	l.write("vda", 0, 14)
	l.write("vdb", 0, 14)
	b := l.backup()
	for _, format := range []qcow2.Format{qcow2.FormatRaw, qcow2.FormatQcow2} {
		dir := lab.Tmpfs(t, "size=1500k")
		l.ok(os.Mkdir(filepath.Join(dir, "sub"), 0o755))
		req := engine.RestoreRequest{Backup: b.ID, Dir: dir, Format: format, Volumes: []engine.RestoreVolume{
			{ID: "v-vda"}, {ID: "v-vdb", Path: filepath.Join(dir, "sub", "vdb"), Format: format},
		}}
		l.tooLarge(req)
		l.ok(os.Remove(filepath.Join(dir, "sub"))) // nothing is in it
		l.empty(dir)
		req.Volumes[1].Path = filepath.Join(lab.Tmpfs(t, "size=1500k"), "vdb")
		l.restore(req)
	}
}

// TestRoomForACompressedBackup: a backup's files may have been compressed since, by qemu-img for instance.
func TestRoomForACompressedBackup(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	l.ok(l.h.Write(vm, "vda", 0, bytes.Repeat([]byte("compress"), 14*cluster/8)))
	b := l.backup()
	file := l.file(b, "v-vda")
	l.ok(l.images.Convert(t.Context(), file, file+".small", qcow2.ConvertOptions{Compress: true}))
	l.ok(os.Rename(file+".small", file))
	for _, format := range []qcow2.Format{qcow2.FormatRaw, qcow2.FormatQcow2} {
		l.tooLarge(engine.RestoreRequest{Backup: b.ID, Dir: lab.Tmpfs(t, "size=640k"), Format: format})
		_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{
			Backup: b.ID, Dir: lab.Tmpfs(t, "size=1500k"), Format: format,
		})
		l.ok(err)
	}
}

// TestIgnoreSpace copies until there is no room, and leaves nothing.
func TestIgnoreSpace(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	l.write("vda", 0, 14)
	b := l.backup()
	dir := lab.Tmpfs(t, "size=640k")
	req := engine.RestoreRequest{Backup: b.ID, Dir: dir}
	l.tooLarge(req)
	copies := 0
	l.images.before = func(call, _ string) error {
		if call == "convert" {
			copies++
		}
		return nil
	}
	req.IgnoreSpace = true
	_, err := l.engine.Restore(t.Context(), req)
	l.fails(err, kvmbackup.ErrNoSpace)
	l.empty(dir)
	if copies != 1 {
		t.Errorf("%d copies were begun", copies)
	}
}

// TestRoomIsNotAskedForTwice: not for holes, not for what a newer layer covers, and not for what a killed restore has
// left there.
func TestRoomIsNotAskedForTwice(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	var b kvmbackup.Backup
	for range 4 {
		l.write("vda", 2, 8)
		b = l.backup()
	}
	dir := lab.Tmpfs(t, "size=1000k")
	left := make([]byte, 700<<10)
	l.ok(os.WriteFile(waiting(filepath.Join(dir, "vda.v-vda.qcow2"), vm, "new"), left, 0o600))
	l.restore(engine.RestoreRequest{Backup: b.ID, Dir: dir})
	l.restore(engine.RestoreRequest{Backup: b.ID, Dir: lab.Tmpfs(t, "size=600k"), Format: qcow2.FormatRaw})

	l.ok(l.h.Attach(vm, l.disk("vdb", 4<<30)))
	l.volumes = append(l.volumes, volume("vdb"))
	l.write("vdb", 30000, 2)
	b = l.backup(full)
	_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{
		Backup: b.ID, Dir: lab.Tmpfs(t, "size=600k"), Format: qcow2.FormatRaw, Volumes: []engine.RestoreVolume{{ID: "v-vdb"}},
	})
	l.ok(err)
}

// TestRoomInPlace: the old image stays until the new one has its name.
func TestRoomInPlace(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	l.write("vda", 0, 14)
	dir := lab.Tmpfs(t, "size=1100k")
	path := filepath.Join(dir, "vda.qcow2")
	l.ok(l.h.Attach(vm, kvmbackuptest.Disk{Device: "vdb", Source: path, SizeBytes: disk}))
	l.volumes = append(l.volumes, volume("vdb"))
	l.write("vdb", 0, 14)
	b := l.backup()
	l.ok(l.h.Shutdown(vm))
	before := l.now()
	l.tooLarge(l.inPlace(b))
	l.sees(before)
	run(t, "mount", "-o", "remount,size=4m", dir)
	l.restore(l.inPlace(b))
}
