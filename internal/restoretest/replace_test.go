package restoretest_test

import (
	"context"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// otherwise tells of the world's disks what the simulator doesn't have.
type otherwise struct {
	kvmbackup.Executor
	change func(d *kvmbackup.DiskStatus)
}

func (e otherwise) Inspect(ctx context.Context, ref kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	st, err := e.Executor.Inspect(ctx, ref)
	for i := range st.Disks {
		if st.Disks[i].Device == "vdb" && st.State == kvmbackup.DomainStopped {
			e.change(&st.Disks[i])
		}
	}
	return st, err
}

// A disk that can't be replaced is refused by its device before anything is changed; the others are restored.
func TestDisksThatAreNotReplaced(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(d *kvmbackup.DiskStatus)
		words  string
	}{
		"a description": {func(d *kvmbackup.DiskStatus) { d.Source, d.Path = "volume web.qcow2 of pool p", "" },
			"volume web.qcow2 of pool p"},
		"one taken for it": {func(d *kvmbackup.DiskStatus) { d.Path = "nbd:e at h" }, "no file or block device"},
		"encrypted":        {func(d *kvmbackup.DiskStatus) { d.Encryption = "luks" }, "encrypted (luks)"},
		"with snapshots": {func(d *kvmbackup.DiskStatus) { d.Snapshots = []string{"before the update", "x"} },
			"before the update, x"},
		"of another format": {func(d *kvmbackup.DiskStatus) { d.Format = "vmdk" }, "vmdk"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newWorld(t)
			b := l.backup()
			l.write("vda", 0, 4)
			l.write("vdb", 0, 4)
			newest := l.backup()
			l.ok(l.h.Shutdown(vm))
			now := l.now()
			l.cfg.Executor = otherwise{l.h.Executor(), c.change}
			e, err := engine.New(l.cfg)
			l.ok(err)
			_, err = e.Restore(t.Context(), l.inPlace(b))
			l.fails(err, kvmbackup.ErrUnsupported)
			if !strings.Contains(err.Error(), "disk vdb") || !strings.Contains(err.Error(), c.words) {
				t.Errorf("the refusal is %v", err)
			}
			if l.active() != newest.Checkpoint {
				t.Errorf("the active checkpoint is %q, was %q", l.active(), newest.Checkpoint)
			}
			l.sees(now)
			l.tidy()
			_, err = e.Restore(t.Context(), l.inPlace(b, "vda"))
			l.ok(err)
			l.nextIsFull(contents{"v-vda": l.held[b.ID]["v-vda"], "v-vdb": now["v-vdb"]})
		})
	}
}

// Snapshots in an image go with it, where the request says so.
func TestDropSnapshots(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.backup()
	l.ok(l.h.InternalSnapshot(vm, "vdb", "s1"))
	l.ok(l.h.Shutdown(vm))
	req := l.inPlace(b)
	_, err := l.engine.Restore(t.Context(), req)
	l.fails(err, kvmbackup.ErrUnsupported)
	req.InPlace.DropSnapshots = true
	l.restore(req)
	l.restore(l.inPlace(b)) // nothing is left to drop
	l.nextIsFull(l.held[b.ID])
}

// Each backup of an encrypted disk says so, also in its manifest, and an incremental stands on one that was encrypted
// alike.
func TestEncryptedIsSaid(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	encrypted := l.disk("vdc", disk)
	encrypted.Encryption = "luks"
	l.ok(l.h.Attach(vm, encrypted))
	l.volumes = append(l.volumes, volume("vdc"))
	b := l.backup()
	var reasons []string
	for _, r := range b.Reasons {
		if r.Code == engine.ReasonDiskEncrypted {
			reasons = append(reasons, string(r.VolumeID)+" "+r.Detail)
		}
	}
	if len(reasons) != 1 || !strings.HasPrefix(reasons[0], "v-vdc vdc: ") {
		t.Errorf("reasons are %v", b.Reasons)
	}
	l.write("vdc", 1, 1)
	if next := l.backup(); next.Kind != kvmbackup.KindIncremental || next.Volumes[2].Kind != kvmbackup.KindIncremental ||
		next.Volumes[2].Encryption != "luks" {
		t.Errorf("the next backup is %v: %v", next.Kind, next.Volumes)
	}
	m, err := l.repo.ReadManifest(t.Context(), b.Path)
	l.ok(err)
	if v, _ := m.Volume("v-vdc"); v.Encryption != "luks" {
		t.Errorf("the manifest has %+v", v)
	}
	l.restore(engine.RestoreRequest{Backup: b.ID})
}
