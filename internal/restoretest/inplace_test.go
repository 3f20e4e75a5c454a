package restoretest_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// inPlace is the request to restore a backup over its own VM.
func (l *world) inPlace(b kvmbackup.Backup, devices ...string) engine.RestoreRequest {
	req := engine.RestoreRequest{Backup: b.ID, InPlace: &engine.InPlace{Volumes: l.volumes}}
	for _, d := range devices {
		req.Volumes = append(req.Volumes, engine.RestoreVolume{ID: volume(d).ID})
	}
	return req
}

// nextIsFull starts the VM, wants it to see exactly that, and its next backup to be full and right.
func (l *world) nextIsFull(want contents) {
	l.Helper()
	if cp := l.active(); cp != "" {
		l.Fatalf("the active checkpoint is still %s", cp)
	}
	l.ok(l.h.Start(vm))
	l.sees(want)
	l.write("vda", 3, 1)
	b := l.backup()
	if b.Kind != kvmbackup.KindFull {
		l.Fatalf("the next backup is %v: %v", b.Kind, b.Reasons)
	}
	l.restore(engine.RestoreRequest{Backup: b.ID})
	l.write("vda", 5, 1)
	if b = l.backup(); b.Kind != kvmbackup.KindIncremental {
		l.Fatalf("the one after it is %v: %v", b.Kind, b.Reasons)
	}
	l.restore(engine.RestoreRequest{Backup: b.ID})
}

func (l *world) sees(want contents) {
	l.Helper()
	for id, got := range l.now() {
		if diff := got.Diff(want[id]); diff != "" {
			l.Fatalf("the guest's volume %s: %s", id, diff)
		}
	}
}

// tidy wants nothing but the disks' images in their folder.
func (l *world) tidy() {
	l.Helper()
	entries, err := os.ReadDir(filepath.Join(l.dir, "images"))
	l.ok(err)
	for _, e := range entries {
		if !slices.ContainsFunc(l.volumes, func(v engine.Volume) bool {
			return l.source(v.Device) == filepath.Join(l.dir, "images", e.Name())
		}) {
			l.Fatalf("left beside the images: %s", e.Name())
		}
	}
}

func TestInPlace(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	chain := l.chain(3)
	for _, b := range []kvmbackup.Backup{chain[1], chain[0], chain[2]} {
		_, err := l.engine.Restore(t.Context(), l.inPlace(b))
		l.fails(err, kvmbackup.ErrDomainRunning)
		l.ok(l.h.Pause(vm))
		_, err = l.engine.Restore(t.Context(), l.inPlace(b))
		l.fails(err, kvmbackup.ErrDomainRunning)
		l.ok(l.h.Shutdown(vm))
		l.restore(l.inPlace(b))
		l.tidy()
		l.nextIsFull(l.held[b.ID])
	}
}

func TestInPlaceRefusedWhileRunningChangesNothing(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2)[0]
	before, cp := l.now(), l.active()
	_, err := l.engine.Restore(t.Context(), l.inPlace(b))
	l.fails(err, kvmbackup.ErrDomainRunning)
	l.sees(before)
	if l.active() != cp {
		t.Errorf("the active checkpoint went from %s to %q", cp, l.active())
	}
	if next := l.backup(); next.Kind != kvmbackup.KindIncremental {
		t.Errorf("the next backup is %v", next.Kind)
	}
}

// TestInPlaceRefusesSavedMemory: it belongs to the disks as they are.
func TestInPlaceRefusesSavedMemory(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2)[0]
	before, cp := l.now(), l.active()
	l.ok(l.h.ManagedSave(vm))
	_, err := l.engine.Restore(t.Context(), l.inPlace(b))
	l.fails(err, kvmbackup.ErrDomainRunning)
	l.ok(l.h.Start(vm))
	l.sees(before)
	if l.active() != cp {
		t.Errorf("the active checkpoint went from %s to %q", cp, l.active())
	}
}

// TestOneVolumeInPlace leaves the other as it is.
func TestOneVolumeInPlace(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2)[0]
	want := l.now()
	want["v-vdb"] = l.held[b.ID]["v-vdb"]
	l.ok(l.h.Shutdown(vm))
	l.restore(l.inPlace(b, "vdb"))
	l.tidy()
	l.nextIsFull(want)
}

// TestActiveCheckpointGoesBeforeTheFirstByte looks at the store when the first copy begins.
func TestActiveCheckpointGoesBeforeTheFirstByte(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2)[1]
	l.ok(l.h.Shutdown(vm))
	var at []kvmbackup.CheckpointName
	l.images.before = func(call, _ string) error {
		if call == "convert" {
			at = append(at, l.active())
		}
		return nil
	}
	req := l.inPlace(b)
	req.Parallel = 1
	l.restore(req)
	if want := []kvmbackup.CheckpointName{"", ""}; !slices.Equal(at, want) {
		t.Errorf("active checkpoints at the copies: %q", at)
	}
	if names, err := l.h.Checkpoints(vm); err != nil || len(names) > 0 {
		t.Errorf("checkpoints %v, %v", names, err)
	}
}

func TestOwnerAndMode(t *testing.T) {
	t.Parallel()
	lab.NeedRoot(t)
	l := newWorld(t)
	b := l.backup()
	l.ok(l.h.Shutdown(vm))
	l.ok(os.Chmod(l.source("vda"), 0o640))
	l.ok(os.Chown(l.source("vda"), 107, 36))
	l.ok(os.Chmod(l.source("vdb"), 0o600))
	l.restore(l.inPlace(b))
	for device, want := range map[string][3]uint32{"vda": {0o640, 107, 36}, "vdb": {0o600, 0, 0}} {
		info, err := os.Stat(l.source(device))
		l.ok(err)
		st := info.Sys().(*syscall.Stat_t)
		if got := [3]uint32{uint32(info.Mode().Perm()), st.Uid, st.Gid}; got != want {
			t.Errorf("%s has %o, want %o", device, got, want)
		}
	}
}

// TestLostImage restores over disks whose files are gone: one, or all.
func TestLostImage(t *testing.T) {
	t.Parallel()
	for _, lost := range [][]string{{"vda"}, {"vdb"}, {"vda", "vdb"}} {
		t.Run(strings.Join(lost, " "), func(t *testing.T) {
			l := newWorld(t)
			b := l.chain(2)[1]
			l.ok(l.h.Shutdown(vm))
			for _, d := range lost {
				l.ok(os.Remove(l.source(d)))
			}
			l.restore(l.inPlace(b))
			l.tidy()
			l.nextIsFull(l.held[b.ID])
		})
	}
}

// TestImageBehindLink restores where the file is, not where the link is.
func TestImageBehindLink(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.backup()
	l.ok(l.h.Shutdown(vm))
	pool := l.out()
	behind := filepath.Join(pool, "real.qcow2")
	l.ok(os.Rename(l.source("vda"), behind))
	l.ok(os.Symlink(behind, l.source("vda")))
	l.write2off("vda")
	l.restore(l.inPlace(b))
	if to, err := os.Readlink(l.source("vda")); err != nil || to != behind {
		t.Errorf("the link is %q, %v", to, err)
	}
	l.holds(behind, qcow2.FormatQcow2, l.held[b.ID]["v-vda"])
	entries, err := os.ReadDir(pool)
	l.ok(err)
	if len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
}

// write2off changes a volume in its file, as something outside would do while the VM is off.
func (l *world) write2off(device string) {
	l.Helper()
	l.ok(os.Truncate(l.source(device), 0))
}

// TestIntoAnotherVM restores two volumes over another VM's disks, by their devices.
func TestIntoAnotherVM(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2)[1]
	const other = "vm2"
	disks := []kvmbackuptest.Disk{l.disk("sda", disk), l.disk("sdb", disk), l.disk("sdc", disk)}
	l.ok(l.h.Define(kvmbackuptest.Domain{Name: other, Disks: disks}))
	l.ok(l.h.Start(other))
	l.ok(l.h.Write(other, "sdb", 0, kvmbackuptest.Pattern(99, 3*cluster)))
	first, err := l.engine.Backup(t.Context(), engine.BackupRequest{VM: other})
	l.ok(err)
	l.ok(l.h.Shutdown(other))

	req := engine.RestoreRequest{Backup: b.ID, InPlace: &engine.InPlace{VM: other}, Volumes: []engine.RestoreVolume{
		{ID: "v-vdb", Path: "sda"}, {ID: "v-vda", Path: "sdc"},
	}}
	ownActive := l.active()
	_, err = l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, InPlace: req.InPlace})
	l.fails(err, kvmbackup.ErrNoVolume) // the identities are not there
	twice := req
	twice.Volumes = []engine.RestoreVolume{{ID: "v-vdb", Path: "sda"}, {ID: "v-vda", Path: "sda"}}
	_, err = l.engine.Restore(t.Context(), twice)
	l.fails(err, kvmbackup.ErrInvalid)
	if rec, err := l.store.VM(t.Context(), other); err != nil || rec.ActiveCheckpoint != first.Checkpoint {
		t.Fatalf("a refused restore left %+v, %v", rec, err)
	}

	l.restore(req)
	rec, err := l.store.VM(t.Context(), other)
	l.ok(err)
	if rec.ActiveCheckpoint != "" || l.active() != ownActive {
		t.Fatalf("active checkpoints: %q of the target, %q of the source", rec.ActiveCheckpoint, l.active())
	}
	l.ok(l.h.Start(other))
	want := map[string]kvmbackuptest.Content{"sda": l.held[b.ID]["v-vdb"], "sdc": l.held[b.ID]["v-vda"]}
	next, err := l.engine.Backup(t.Context(), engine.BackupRequest{VM: other})
	l.ok(err)
	if next.Kind != kvmbackup.KindFull {
		t.Fatalf("the other VM's next backup is %v", next.Kind)
	}
	r, err := l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: next.ID, Dir: l.out()})
	l.ok(err)
	for _, v := range r.Volumes {
		c, err := l.h.Content(other, v.Device)
		l.ok(err)
		if w, ok := want[v.Device]; ok {
			c = w
		}
		l.holds(v.Path, v.Format, c)
	}
	l.write("vda", 1, 1)
	if b := l.backup(); b.Kind != kvmbackup.KindIncremental {
		t.Errorf("the source VM's next backup is %v", b.Kind)
	}
}

// TestDomainThatIsNotDefined restores over a VM that libvirt doesn't know, by its disks.
func TestDomainThatIsNotDefined(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2)[0]
	req := l.inPlace(b)
	for _, v := range l.volumes {
		req.InPlace.Disks = append(req.InPlace.Disks, kvmbackup.DiskRef{
			Device: v.Device, Source: l.source(v.Device), Format: "qcow2",
		})
	}
	l.ok(l.h.Undefine(vm))
	l.ok(l.h.Shutdown(vm))
	l.restore(req)
	for _, d := range req.InPlace.Disks {
		l.holds(d.Source, qcow2.FormatQcow2, l.held[b.ID][volume(d.Device).ID])
	}
}
