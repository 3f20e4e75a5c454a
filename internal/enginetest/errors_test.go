package enginetest_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// wantOne wants an *OpError in one line, with a step, that matches the sentinel and no other.
func wantOne(t *testing.T, err, sentinel error) {
	t.Helper()
	op, ok := err.(*kvmbackup.OpError) //nolint:errorlint // it is to be the error itself
	switch {
	case !ok:
		t.Fatalf("%T, want an *OpError: %v", err, err)
	case op.Op == "" || op.Step == "" || strings.ContainsAny(op.Error(), "\r\n"):
		t.Errorf("it lacks its operation or step, or has two lines: %q", op)
	}
	lab.Fails(t, err, sentinel)
	lab.Same(t, lab.Codes(t, err), []string{kvmbackup.Code(sentinel)})
}

// unreached is a hypervisor that doesn't answer.
type unreached struct{ kvmbackup.Executor }

func (unreached) Inspect(context.Context, kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	return kvmbackup.DomainStatus{},
		fmt.Errorf("%w: %w: libvirt doesn't answer", kvmbackup.ErrBusy, kvmbackup.ErrUnavailable)
}

func (unreached) DropCheckpoint(context.Context, kvmbackup.DomainRef, kvmbackup.CheckpointName) error {
	return kvmbackup.ErrUnavailable
}

// methods are all of the engine that can fail, on a backup and a VM.
func methods(e *engine.Engine, dir string) map[string]func(ctx context.Context, id kvmbackup.BackupID,
	vm kvmbackup.VMID) error {
	return map[string]func(context.Context, kvmbackup.BackupID, kvmbackup.VMID) error{
		"Get": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Get(ctx, id)
			return err
		},
		"Chain": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Chain(ctx, id)
			return err
		},
		"Recipe": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Recipe(ctx, id)
			return err
		},
		"PlanDelete": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.PlanDelete(ctx, id, kvmbackup.DeleteOptions{})
			return err
		},
		"Delete": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Delete(ctx, id, kvmbackup.DeleteOptions{})
			return err
		},
		"Newest": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			_, err := e.Newest(ctx, vm)
			return err
		},
		"Unpin": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error { return e.Unpin(ctx, id) },
		"Pin":   func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error { return e.Pin(ctx, id) },
		"AddDigests": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			return e.AddDigests(ctx, id)
		},
		"Verify": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Verify(ctx, id, engine.VerifyOptions{})
			return err
		},
		"Restore": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Restore(ctx, engine.RestoreRequest{Backup: id, Dir: dir})
			return err
		},
		"Open": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Open(ctx, engine.OpenRequest{Backup: id, Dir: dir})
			return err
		},
		"Browse": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Browse(ctx, id, "v1", dir+"/socket")
			return err
		},
		"CloseRestorePoint": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			return e.CloseRestorePoint(ctx, id, "hold")
		},
		"Backup": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			_, err := e.Backup(ctx, engine.BackupRequest{VM: vm})
			return err
		},
		"Plan": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			_, err := e.Plan(ctx, engine.BackupRequest{VM: vm})
			return err
		},
		"Definition": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Definition(ctx, id)
			return err
		},
		"PlanWith": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			_, err := e.PlanWith(ctx, engine.BackupRequest{VM: vm}, kvmbackup.DomainStatus{
				State: kvmbackup.DomainStopped,
				Disks: []kvmbackup.DiskStatus{{Device: "vda", Source: "/a", Path: "/a", Format: "qcow2", VirtualSize: 1 << 20}},
			})
			return err
		},
		"Inspect": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			_, err := e.Inspect(ctx, engine.Target{VM: vm})
			return err
		},
		"Repair": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			_, err := e.Repair(ctx, engine.Target{VM: vm})
			return err
		},
		"Recover": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			_, err := e.Recover(ctx, engine.Target{VM: vm})
			return err
		},
		"Forget": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			return e.Forget(ctx, engine.Target{VM: vm})
		},
		"RequireFull": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			return e.RequireFull(ctx, engine.Target{VM: vm})
		},
		"PlanRetain": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			_, err := e.PlanRetain(ctx, vm, kvmbackup.RetentionPolicy{Last: 1})
			return err
		},
		"Retain": func(ctx context.Context, _ kvmbackup.BackupID, vm kvmbackup.VMID) error {
			_, err := e.Retain(ctx, vm, kvmbackup.RetentionPolicy{Last: 1})
			return err
		},
	}
}

// anybody is a recipient.
type anybody struct{ engine.Keys }

func (anybody) WrapKey(context.Context, kvmbackup.DataKey) ([]kvmbackup.WrappedKey, error) {
	return []kvmbackup.WrappedKey{{KeyID: "anybody", Wrapped: []byte{1}}}, nil
}

// overall are the methods that take no ID or every VM.
func overall(e *engine.Engine) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"List":   func(ctx context.Context) error { _, err := e.List(ctx, kvmbackup.Query{}); return err },
		"Import": func(ctx context.Context) error { _, err := e.Import(ctx, ""); return err },
		"Export": func(ctx context.Context) error { _, err := e.Export(ctx, ""); return err },
		"Rekey": func(ctx context.Context) error {
			_, err := e.Rekey(ctx, engine.RekeyRequest{To: anybody{}})
			return err
		},
		"All": func(ctx context.Context) (last error) {
			for _, err := range e.All(ctx, kvmbackup.Query{}) {
				last = err
			}
			return last
		},
		"RecoverAll": func(ctx context.Context) error { _, err := e.RecoverAll(ctx); return err },
		"Accounting": func(ctx context.Context) error {
			return e.Accounting(ctx, func(kvmbackup.Removal) error { return nil })
		},
	}
}

// TestEveryMethodIsTested: an exported method of the engine is in one of the two lists.
func TestEveryMethodIsTested(t *testing.T) {
	tested := methods(nil, "")
	for name := range overall(nil) {
		tested[name] = nil
	}
	const dir = "../../engine"
	files, err := fs.Glob(os.DirFS(dir), "*.go")
	lab.OK(t, err)
	found := 0
	for _, file := range files {
		source, err := os.ReadFile(filepath.Join(dir, file))
		lab.OK(t, err)
		for _, m := range regexp.MustCompile(`(?m)^func \(e \*Engine\) ([A-Z]\w*)\(`).
			FindAllStringSubmatch(string(source), -1) {
			found++
			if _, ok := tested[m[1]]; !ok {
				t.Errorf("%s: no test of the errors of %s", file, m[1])
			}
		}
	}
	if found < len(tested) {
		t.Errorf("%s has %d methods, and %d are tested", dir, found, len(tested))
	}
}

// TestEmptyNames: what names nothing is refused before anything is asked, and the error says which name it is.
func TestEmptyNames(t *testing.T) {
	st := memstore.New()
	w := newWorldOn(t, st)
	lab.OK(t, st.Close()) // whatever asks it fails with something else
	e := w.newEngine(engine.Config{Images: fakeImages{store: st}, Executor: unreached{}})
	for name, call := range methods(e, t.TempDir()) {
		err := call(t.Context(), "", "")
		wantOne(t, err, kvmbackup.ErrInvalid)
		if text := err.Error(); !strings.Contains(text, "empty") ||
			!strings.Contains(text, "VM") && !strings.Contains(text, "backup ID") {
			t.Errorf("%s doesn't say which name is empty: %v", name, err)
		}
	}
	_, err := e.Browse(t.Context(), lab.BackupID("A"), "", "/socket")
	if !strings.Contains(fmt.Sprint(err), "volume ID is empty") {
		t.Errorf("Browse: %v", err)
	}
	_, err = e.Browse(t.Context(), lab.BackupID("A"), "v1", "")
	if !strings.Contains(fmt.Sprint(err), "socket is empty") {
		t.Errorf("Browse: %v", err)
	}
}

// TestDeadStore: whatever is asked of an engine whose store is gone, or hypervisor doesn't answer, the host sees one
// sentinel.
func TestDeadStore(t *testing.T) {
	st := memstore.New()
	w := newWorldOn(t, st)
	w.build("A B<A")
	w.begin("C", "B")
	lab.OK(t, st.Close())
	e := w.newEngine(engine.Config{Images: fakeImages{store: st}, Executor: unreached{}})
	for name, call := range methods(e, t.TempDir()) {
		t.Run(name, func(t *testing.T) {
			wantOne(t, call(t.Context(), lab.BackupID("A"), lab.VM), kvmbackup.ErrUnavailable)
		})
	}
	for name, call := range overall(e) {
		t.Run(name, func(t *testing.T) {
			wantOne(t, call(t.Context()), kvmbackup.ErrUnavailable)
		})
	}
}

// TestUnknownBackup: an ID that the store doesn't know.
func TestUnknownBackup(t *testing.T) {
	w := newWorld(t)
	for name, call := range methods(w.opener(), t.TempDir()) {
		if err := call(t.Context(), lab.BackupID("nobody's"), lab.VM); errors.Is(err, kvmbackup.ErrNotFound) {
			wantOne(t, err, kvmbackup.ErrNotFound)
			if n := strings.Count(err.Error(), "not found"); n != 1 {
				t.Errorf("%s says it %d times: %v", name, n, err)
			}
		}
	}
}

// TestStepIsWhatFailed: what is done after a failure doesn't take its place.
func TestStepIsWhatFailed(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	b := w.get("B")
	folder := filepath.Join(w.dir, b.Path)
	lab.OK(t, os.Rename(folder, folder+".away"))
	lab.OK(t, os.WriteFile(folder, nil, 0o600))
	_, err := w.newEngine(engine.Config{Executor: unreached{}}).Delete(t.Context(), b.ID, kvmbackup.DeleteOptions{})
	var op *kvmbackup.OpError
	if !errors.As(err, &op) || op.Step != "delete" {
		t.Errorf("got %#v: %v", op, err)
	}
}

// TestAccountingKeepsTheHostsError: what the host's own function returns comes back to it.
func TestAccountingKeepsTheHostsError(t *testing.T) {
	w := newWorld(t)
	w.build("A")
	_, err := w.engine.Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	err = w.engine.Accounting(t.Context(), func(kvmbackup.Removal) error { return errInjected })
	wantOne(t, err, kvmbackup.ErrOther)
	lab.Fails(t, err, errInjected)
}
