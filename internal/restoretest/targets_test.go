package restoretest_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

func TestRestoreToNewFiles(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda", "vdb", "vdc")
	for _, b := range l.chain(3) {
		for _, format := range []qcow2.Format{"", qcow2.FormatQcow2, qcow2.FormatRaw} {
			r := l.restore(engine.RestoreRequest{Backup: b.ID, Format: format})
			if len(r.Volumes) != 3 {
				t.Fatalf("restored %v", r.Volumes)
			}
		}
	}
}

// TestSubsets restores every subset of the volumes, with the targets' formats and places mixed.
func TestSubsets(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda", "vdb", "vdc")
	b := l.chain(2)[1]
	for set := 1; set < 8; set++ {
		dir, elsewhere := l.out(), l.out()
		req := engine.RestoreRequest{Backup: b.ID, Dir: dir, Format: qcow2.FormatRaw}
		want := 0
		for i, v := range l.volumes {
			if set&(1<<i) == 0 {
				continue
			}
			want++
			rv := engine.RestoreVolume{ID: v.ID}
			if i == 1 {
				rv.Path, rv.Format = filepath.Join(elsewhere, "by hand"), qcow2.FormatQcow2
			}
			req.Volumes = append(req.Volumes, rv)
		}
		if r := l.restore(req); len(r.Volumes) != want {
			t.Fatalf("subset %b: restored %v", set, r.Volumes)
		}
	}
}

// TestFiveEqualDisks restores five data disks of one size while their devices and the order of requests change all the
// time.
func TestFiveEqualDisks(t *testing.T) {
	t.Parallel()
	devices := []string{"vda", "vdb", "vdc", "vdd", "vde", "vdf"}
	l := newWorld(t, devices...)
	var all []kvmbackup.Backup
	for round := range 5 {
		for i, v := range l.volumes {
			l.write(v.Device, int64((i+round)%14), 2)
		}
		all = append(all, l.backup())
		l.rotate(devices[1:])
		slices.Reverse(l.volumes[1:])
	}
	for round, b := range all {
		order := slices.Clone(l.volumes)
		for range round {
			order = append(order[1:], order[0])
		}
		req := engine.RestoreRequest{Backup: b.ID, Dir: l.out()}
		for i, v := range order {
			req.Volumes = append(req.Volumes, engine.RestoreVolume{
				ID: v.ID, Path: filepath.Join(req.Dir, fmt.Sprintf("disk%d", i)),
			})
		}
		r := l.restore(req)
		for _, v := range r.Volumes {
			at := slices.IndexFunc(req.Volumes, func(c engine.RestoreVolume) bool { return c.ID == v.VolumeID })
			if v.Path != req.Volumes[at].Path {
				t.Errorf("volume %s went to %s, want %s", v.VolumeID, v.Path, req.Volumes[at].Path)
			}
		}
	}
}

// rotate gives every disk of these devices the next one's place; volumes keep their identity.
func (l *world) rotate(devices []string) {
	l.Helper()
	l.ok(l.h.Shutdown(vm))
	paths := map[string]string{}
	for _, d := range devices {
		paths[d] = l.source(d)
		l.ok(l.h.Detach(vm, d))
	}
	for i, d := range devices {
		to := devices[(i+1)%len(devices)]
		s := l.disk(to, disk)
		s.Source = paths[d]
		l.ok(l.h.Attach(vm, s))
		for k := range l.volumes {
			if l.volumes[k].ID == l.identity(paths[d]) {
				l.volumes[k].Device = to
			}
		}
	}
	l.ok(l.h.Start(vm))
}

// identity is that of the volume whose image was made for the device in the file's name.
func (l *world) identity(path string) kvmbackup.VolumeID {
	name := filepath.Base(path)
	return volume(name[:len(name)-len(".qcow2")]).ID
}

func TestExistingFileIsRefused(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.backup()
	dir := l.out()
	there := filepath.Join(dir, "there")
	l.ok(os.WriteFile(there, []byte("mine"), 0o600))
	l.ok(os.Symlink("nowhere", filepath.Join(dir, "dangling")))
	l.ok(os.Symlink("there", filepath.Join(dir, "link")))
	for _, name := range []string{"there", "dangling", "link"} {
		_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir, Volumes: []engine.RestoreVolume{
			{ID: "v-vda"}, {ID: "v-vdb", Path: filepath.Join(dir, name)},
		}})
		l.fails(err, kvmbackup.ErrTargetExists)
	}
	if data, err := os.ReadFile(there); err != nil || string(data) != "mine" {
		t.Errorf("the file that was there: %q, %v", data, err)
	}
	left, err := os.ReadDir(dir)
	l.ok(err)
	if len(left) != 3 {
		t.Errorf("left: %v", left)
	}
}

// TestSameTargetTwice names one place for two volumes in several ways.
func TestSameTargetTwice(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.backup()
	dir := l.out()
	l.ok(os.Mkdir(filepath.Join(dir, "real"), 0o755))
	l.ok(os.Symlink("real", filepath.Join(dir, "alias")))
	for _, pair := range [][2]string{{"real/x", "real/x"}, {"real/x", "real/../real/x"}, {"real/x", "alias/x"}} {
		_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Volumes: []engine.RestoreVolume{
			{ID: "v-vda", Path: filepath.Join(dir, pair[0])}, {ID: "v-vdb", Path: dir + "/" + pair[1]},
		}})
		l.fails(err, kvmbackup.ErrInvalid)
		l.empty(filepath.Join(dir, "real"))
	}
	_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{
		Backup: b.ID, Dir: dir, Volumes: []engine.RestoreVolume{{ID: "v-vda"}, {ID: "v-vda"}},
	})
	l.fails(err, kvmbackup.ErrInvalid)
}

func TestUnknownVolumesAndTargets(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.backup()
	dir := l.out()
	run(t, "mkfifo", filepath.Join(dir, "fifo"))
	for name, c := range map[string]struct {
		req  engine.RestoreRequest
		want error
	}{
		"no such backup": {engine.RestoreRequest{Backup: kvmbackup.NewBackupID(), Dir: dir}, kvmbackup.ErrNotFound},
		"no such volume": {engine.RestoreRequest{Backup: b.ID, Dir: dir, Volumes: []engine.RestoreVolume{{ID: "v-vdz"}}},
			kvmbackup.ErrNoVolume},
		"no target":       {engine.RestoreRequest{Backup: b.ID}, kvmbackup.ErrInvalid},
		"no folder":       {engine.RestoreRequest{Backup: b.ID, Dir: filepath.Join(dir, "none")}, kvmbackup.ErrInvalid},
		"FIFO":            {one(b, "v-vda", filepath.Join(dir, "fifo")), kvmbackup.ErrUnsupported},
		"folder":          {one(b, "v-vda", dir), kvmbackup.ErrUnsupported},
		"character":       {one(b, "v-vda", "/dev/null"), kvmbackup.ErrUnsupported},
		"below a file":    {one(b, "v-vda", filepath.Join(dir, "fifo", "x")), kvmbackup.ErrInvalid},
		"unknown format":  {engine.RestoreRequest{Backup: b.ID, Dir: dir, Format: "vmdk2"}, kvmbackup.ErrInvalid},
		"guessed format":  {engine.RestoreRequest{Backup: b.ID, Dir: dir, Format: qcow2.FormatAuto}, kvmbackup.ErrInvalid},
		"negative speed":  {engine.RestoreRequest{Backup: b.ID, Dir: dir, BandwidthBytes: -1}, kvmbackup.ErrInvalid},
		"nothing to swap": {engine.RestoreRequest{Backup: b.ID, InPlace: &engine.InPlace{}}, kvmbackup.ErrDomainRunning},
	} {
		_, err := l.engine.Restore(t.Context(), c.req)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if op := (*kvmbackup.OpError)(nil); !errors.As(err, &op) || op.Op != "restore" {
			t.Errorf("%s: %v is no OpError of a restore", name, err)
		}
	}
	left, err := os.ReadDir(dir)
	l.ok(err)
	if len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func one(b kvmbackup.Backup, id kvmbackup.VolumeID, path string) engine.RestoreRequest {
	return engine.RestoreRequest{Backup: b.ID, Volumes: []engine.RestoreVolume{{ID: id, Path: path}}}
}
