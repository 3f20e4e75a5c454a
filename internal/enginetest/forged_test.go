package enginetest_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// TestForgedManifest: after a crash a backup is completed from its manifest, but from none that says something else
// than was on record when it was begun. Its folder is kept.
func TestForgedManifest(t *testing.T) {
	for name, forge := range map[string]func(*kvmbackup.Backup){
		"as it was": nil,
		"size":      func(b *kvmbackup.Backup) { b.Volumes[0].VirtualSize *= 2 },
		"file":      func(b *kvmbackup.Backup) { b.Volumes = b.Volumes[:1] },
		"checkpoint": func(b *kvmbackup.Backup) {
			b.Checkpoint = "kvmbackup-2026.11.22.07.04.50-00000000"
		},
	} {
		w := newWorld(t)
		h := kvmbackuptest.NewHypervisor()
		lab.OK(t, h.Define(kvmbackuptest.Domain{
			Name: lab.VM.String(), Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 20}},
		}))
		b := w.begin("A", "")
		forged := b
		forged.Volumes = append([]kvmbackup.VolumeBackup{}, b.Volumes...)
		if forge != nil {
			forge(&forged)
		}
		w.publish(forged)
		e := w.newEngine(engine.Config{Executor: h.Executor(), Images: kvmbackuptest.Images{}})
		_, err := e.Recover(t.Context(), engine.Target{VM: lab.VM})
		lab.OK(t, err)
		status := kvmbackup.StatusFailed
		if forge == nil {
			status = kvmbackup.StatusCompleted
		}
		lab.Equal(t, name, w.get("A").Status, status)
		_, there, err := w.repo.Published(t.Context(), b.Path, b.ID)
		lab.OK(t, err)
		lab.Equal(t, name+": folder", there, true)
	}
}
