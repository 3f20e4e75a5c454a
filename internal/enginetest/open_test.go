package enginetest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// fakeImages takes every file for the image that its record says, so that restore points can be opened without any
// tool.
type fakeImages struct {
	engine.Images
	store      kvmbackup.Store
	failCreate error
}

// Header answers from the records.
func (f fakeImages) Header(ctx context.Context, path string, _ *qcow2.Secret) (qcow2.Header, error) {
	path = qcow2.FileName(path)
	all, err := f.store.List(ctx, kvmbackup.Query{})
	for _, b := range all {
		for _, v := range b.Volumes {
			if !strings.HasSuffix(path, filepath.Join(b.Path, v.File)) {
				continue
			}
			h := qcow2.Header{
				Version: 3, ClusterBits: 16, VirtualSizeBytes: v.VirtualSize, BackingFile: qcow2.StoredName(v.ParentFile),
			}
			if v.ParentFile != "" {
				h.BackingFormat = qcow2.FormatQcow2
			}
			return h, nil
		}
	}
	return qcow2.Header{}, fmt.Errorf("%s: %w: %w", path, qcow2.ErrNotFound, err)
}

func (fakeImages) Check(context.Context, string, qcow2.CheckOptions) (qcow2.CheckResult, error) {
	return qcow2.CheckResult{}, nil
}

func (f fakeImages) Create(_ context.Context, path string, o qcow2.CreateOptions) error {
	if f.failCreate != nil {
		return f.failCreate
	}
	return os.WriteFile(path, []byte(o.BackingFile), 0o600)
}

func (w *world) opener() *engine.Engine {
	return w.newEngine(engine.Config{Images: fakeImages{store: w.store}})
}

func TestHeldBackupStays(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C<B")
	e := w.opener()
	dir := t.TempDir()
	opened, err := e.Open(t.Context(), engine.OpenRequest{Backup: lab.BackupID("B"), Dir: dir, Purpose: "instant restore"})
	lab.OK(t, err)
	lab.Equal(t, "volumes", len(opened.Volumes), 2)
	for _, v := range opened.Volumes {
		below, err := os.ReadFile(v.Path)
		lab.OK(t, err)
		vol, _ := w.get("B").Volume(v.VolumeID)
		lab.Equal(t, "what the overlay stands on", string(below), filepath.Join(w.dir, w.get("B").Path, vol.File))
	}
	second, err := e.Open(t.Context(), engine.OpenRequest{Backup: lab.BackupID("B"), Dir: t.TempDir()})
	lab.OK(t, err)

	w.deleteAsPlanned("C", false)
	p := w.deleteAsPlanned("B", false)
	lab.Equal(t, "held", w.state(), "A B:delete-pending")
	if waits := strings.Join(p.Pending[0].NeededBy, "; "); !strings.Contains(waits, opened.HoldID) ||
		!strings.Contains(waits, "instant restore") {
		t.Errorf("the plan doesn't say who holds it: %q", waits)
	}
	w.deleteAsPlanned("A", false)
	_, err = w.engine.Recover(t.Context(), engine.Target{VM: lab.VM})
	lab.OK(t, err)
	lab.Equal(t, "ancestors of what is held stay", w.state(), "A:delete-pending B:delete-pending")
	_, err = e.Open(t.Context(), engine.OpenRequest{Backup: lab.BackupID("B"), Dir: t.TempDir()})
	lab.Fails(t, err, kvmbackup.ErrStatus) // what is deleted gets no new users
	for _, b := range []string{"A", "B"} {
		for _, v := range w.get(b).Volumes {
			_, err := w.repo.Stat(t.Context(), w.get(b).Path, v.File)
			lab.OK(t, err)
		}
	}

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	lab.Fails(t, second.Close(ended), context.Canceled)
	lab.OK(t, second.Close(t.Context())) // after an error it can be called again
	lab.OK(t, second.Close(t.Context()))
	lab.OK(t, e.CloseRestorePoint(t.Context(), lab.BackupID("B"), "no hold of that name"))
	lab.Equal(t, "one of two is still open", w.state(), "A:delete-pending B:delete-pending")
	lab.OK(t, e.CloseRestorePoint(t.Context(), lab.BackupID("B"), opened.HoldID))
	lab.Equal(t, "closed", w.state(), "")
	w.settled()
	lab.Fails(t, e.CloseRestorePoint(t.Context(), lab.BackupID("B"), opened.HoldID), kvmbackup.ErrNotFound)
	lab.OK(t, second.Close(t.Context())) // the backup is gone since
}

// startsOn is a hypervisor that starts domains on so many files below each other.
type startsOn struct {
	kvmbackup.Executor
	limit int
}

func (s startsOn) LayerLimit(context.Context) (int, error) { return s.limit, nil }

// TestOpenDeepChain: an overlay on which no domain would start isn't made.
func TestOpenDeepChain(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C<B")
	for limit, want := range map[int]error{3: kvmbackup.ErrUnsupported, 4: nil} { // three backups, and the overlay
		dir := t.TempDir()
		e := w.newEngine(engine.Config{Images: fakeImages{store: w.store}, Executor: startsOn{limit: limit}})
		opened, err := e.Open(t.Context(), engine.OpenRequest{Backup: lab.BackupID("C"), Dir: dir})
		if want == nil {
			lab.OK(t, err)
			lab.OK(t, opened.Close(t.Context()))
			continue
		}
		lab.Fails(t, err, want)
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 || len(w.get("C").Holds) != 0 {
			t.Errorf("left: overlays %v, holds %v, %v", left, w.get("C").Holds, err)
		}
	}
}

func TestRetainLeavesWhatIsHeld(t *testing.T) {
	w := newWorld(t)
	w.build("A B C")
	e := w.opener()
	opened, err := e.Open(t.Context(), engine.OpenRequest{Backup: lab.BackupID("A"), Dir: t.TempDir()})
	lab.OK(t, err)
	p, err := e.Retain(t.Context(), lab.VM, kvmbackup.RetentionPolicy{Last: 1})
	lab.OK(t, err)
	lab.Equal(t, "retained", w.state(), "A:delete-pending C")
	if !slices.Equal(p.Pending, []kvmbackup.BackupID{lab.BackupID("A")}) ||
		!slices.Equal(p.RemoveNow, []kvmbackup.BackupID{lab.BackupID("B")}) {
		t.Errorf("plan:\n%s", p)
	}
	lab.OK(t, opened.Close(t.Context()))
	lab.Equal(t, "closed", w.state(), "C")
}

// TestOpenFails: after an error there is neither a hold nor an overlay.
func TestOpenFails(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	dir := t.TempDir()
	full := w.newEngine(engine.Config{
		Images: fakeImages{store: w.store, failCreate: fmt.Errorf("create: %w", qcow2.ErrNoSpace)},
	})
	_, err := full.Open(t.Context(), engine.OpenRequest{Backup: lab.BackupID("B"), Dir: dir})
	lab.Fails(t, err, kvmbackup.ErrNoSpace)
	taken := w.newEngine(engine.Config{Images: fakeImages{store: w.store, failCreate: qcow2.ErrExist}})
	_, err = taken.Open(t.Context(), engine.OpenRequest{Backup: lab.BackupID("B"), Dir: dir})
	lab.Fails(t, err, kvmbackup.ErrTargetExists)
	_, err = w.opener().Open(t.Context(), engine.OpenRequest{Backup: lab.BackupID("B")})
	lab.Fails(t, err, kvmbackup.ErrInvalid)
	_, err = w.opener().Open(t.Context(), engine.OpenRequest{Backup: lab.BackupID("nobody"), Dir: dir})
	lab.Fails(t, err, kvmbackup.ErrNotFound)
	_, err = w.opener().Open(t.Context(), engine.OpenRequest{
		Backup: lab.BackupID("B"), Dir: dir, Volumes: []kvmbackup.VolumeID{"v9"},
	})
	lab.Fails(t, err, kvmbackup.ErrNoVolume)
	left, err := os.ReadDir(dir)
	lab.OK(t, err)
	if len(left) != 0 || len(w.get("B").Holds) != 0 {
		t.Errorf("left: overlays %v, holds %v", left, w.get("B").Holds)
	}
	lab.OK(t, os.Remove(filepath.Join(w.dir, w.get("A").Path, "root.v1.qcow2")))
	_, err = w.opener().Open(t.Context(), engine.OpenRequest{Backup: lab.BackupID("B"), Dir: dir})
	lab.Fails(t, err, kvmbackup.ErrMissingFile)
}
