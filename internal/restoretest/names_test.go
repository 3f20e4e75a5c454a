package restoretest_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestLongestNames: a VM and a volume whose identities are as long as they may be, and a prefix that is, go through
// everything.
func TestLongestNames(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	l.cfg.Prefix = strings.Repeat("p", 64)
	l.open()
	name := strings.Repeat("ä", 128/2)
	vol := kvmbackup.VolumeID(strings.Repeat("ö", 128/2))
	l.ok(l.h.Define(kvmbackuptest.Domain{
		Name: name, Disks: []kvmbackuptest.Disk{l.disk("sda", disk), l.disk("sdb", disk)},
	}))
	l.ok(l.h.Start(name))
	req := engine.BackupRequest{VM: kvmbackup.VMID(name), Volumes: []engine.Volume{
		{ID: vol, Device: "sda"}, {ID: vol[:len(vol)-2] + "o.", Device: "sdb"},
	}}
	_, err := l.engine.Backup(t.Context(), req) // it would end in a dot
	l.fails(err, kvmbackup.ErrInvalid)
	req.Volumes[1].ID = vol[:len(vol)-2] + "oo"
	var b kvmbackup.Backup
	for i := range int64(2) {
		for _, device := range []string{"sda", "sdb"} {
			l.ok(l.h.Write(name, device, i*cluster, kvmbackuptest.Pattern(uint64(7+i), 3*cluster)))
		}
		b, err = l.engine.Backup(t.Context(), req)
		l.ok(err)
	}
	l.held[b.ID] = contents{}
	for _, v := range req.Volumes {
		l.held[b.ID][v.ID], err = l.h.Content(name, v.Device)
		l.ok(err)
	}
	if b.Kind != kvmbackup.KindIncremental || len(b.Checkpoint) > 255 {
		t.Fatalf("%v with the checkpoint %s", b.Kind, b.Checkpoint)
	}
	_, err = l.engine.Verify(t.Context(), b.ID, engine.VerifyOptions{Content: true})
	l.ok(err)
	for _, format := range []qcow2.Format{qcow2.FormatQcow2, qcow2.FormatRaw} {
		l.restore(engine.RestoreRequest{Backup: b.ID, Format: format})
	}
	opened, err := l.engine.Open(t.Context(), engine.OpenRequest{Backup: b.ID, Dir: l.out()})
	l.ok(err)
	l.ok(l.engine.CloseRestorePoint(t.Context(), b.ID, opened.HoldID))
	l.ok(l.h.Shutdown(name))
	l.restore(engine.RestoreRequest{Backup: b.ID, InPlace: &engine.InPlace{Volumes: req.Volumes}})
	for _, id := range []kvmbackup.BackupID{b.ID, b.ParentID} {
		_, err = l.engine.Delete(t.Context(), id, kvmbackup.DeleteOptions{})
		l.ok(err)
	}
}

// TestTooLongNames are refused before anything is done, with the name.
func TestTooLongNames(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	long := strings.Repeat("x", 128+1)
	refused := func(err error) {
		t.Helper()
		l.fails(err, kvmbackup.ErrInvalid)
		if !strings.Contains(err.Error(), long) {
			t.Errorf("it doesn't name it: %v", err)
		}
	}
	_, err := l.engine.Backup(t.Context(), engine.BackupRequest{VM: kvmbackup.VMID(long), Domain: vm})
	refused(err)
	_, err = l.engine.Backup(t.Context(), engine.BackupRequest{
		VM: vm, Volumes: []engine.Volume{{ID: kvmbackup.VolumeID(long), Device: "vda"}},
	})
	refused(err)
	all, err := l.engine.List(t.Context(), kvmbackup.Query{})
	if l.ok(err); len(all) > 0 {
		t.Errorf("recorded: %v", all)
	}
	b := l.backup()
	long = strings.Repeat("x", 256)
	dir := l.out()
	_, err = l.engine.Restore(t.Context(), one(b, "v-vda", filepath.Join(dir, long)))
	refused(err)
	l.empty(dir)
	long = strings.Repeat("x", 255)
	l.restore(one(b, "v-vda", filepath.Join(dir, long)))
}
