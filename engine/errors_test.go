package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// words are the codes of all sentinels that the error matches.
func words(t *testing.T, err error) []string {
	t.Helper()
	source, readErr := os.ReadFile("../codes.go")
	lab.OK(t, readErr)
	var found []string
	for _, m := range regexp.MustCompile(`(?m)^\t\{"([a-z-]+)", \w`).FindAllStringSubmatch(string(source), -1) {
		if errors.Is(err, kvmbackup.ErrorOf(m[1])) {
			found = append(found, m[1])
		}
	}
	return found
}

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
	lab.Same(t, words(t, err), []string{kvmbackup.Code(sentinel)})
}

// unreached is a hypervisor that doesn't answer.
type unreached struct{ kvmbackup.Executor }

func (unreached) Inspect(context.Context, kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	return kvmbackup.DomainStatus{}, fmt.Errorf("%w: %w: libvirt doesn't answer", kvmbackup.ErrBusy, kvmbackup.ErrUnavailable)
}

func (unreached) DropCheckpoint(context.Context, kvmbackup.DomainRef, kvmbackup.CheckpointName) error {
	return kvmbackup.ErrUnavailable
}

// methods are all of the engine that can fail, on a backup and a VM.
func methods(e *engine.Engine, dir string) map[string]func(ctx context.Context, id kvmbackup.BackupID, vm kvmbackup.VMID) error {
	return map[string]func(context.Context, kvmbackup.BackupID, kvmbackup.VMID) error{
		"Get": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Get(ctx, id)
			return err
		},
		"Chain": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error {
			_, err := e.Chain(ctx, id)
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
		"Unpin":      func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error { return e.Unpin(ctx, id) },
		"Pin":        func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error { return e.Pin(ctx, id) },
		"AddDigests": func(ctx context.Context, id kvmbackup.BackupID, _ kvmbackup.VMID) error { return e.AddDigests(ctx, id) },
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

// overall are the methods that take no ID or every VM.
func overall(e *engine.Engine) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"List":       func(ctx context.Context) error { _, err := e.List(ctx, kvmbackup.Query{}); return err },
		"Import":     func(ctx context.Context) error { _, err := e.Import(ctx, ""); return err },
		"Export":     func(ctx context.Context) error { _, err := e.Export(ctx, ""); return err },
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
	files, err := fs.Glob(os.DirFS("."), "*.go")
	lab.OK(t, err)
	for _, file := range files {
		source, err := os.ReadFile(file)
		lab.OK(t, err)
		for _, m := range regexp.MustCompile(`(?m)^func \(e \*Engine\) ([A-Z]\w*)\(`).FindAllStringSubmatch(string(source), -1) {
			if _, ok := tested[m[1]]; !ok {
				t.Errorf("%s: no test of the errors of %s", file, m[1])
			}
		}
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
		if text := err.Error(); !strings.Contains(text, "empty") || !strings.Contains(text, "VM") && !strings.Contains(text, "backup ID") {
			t.Errorf("%s doesn't say which name is empty: %v", name, err)
		}
	}
	if _, err := e.Browse(t.Context(), lab.BackupID("A"), "", "/socket"); !strings.Contains(fmt.Sprint(err), "volume ID is empty") {
		t.Errorf("Browse: %v", err)
	}
	if _, err := e.Browse(t.Context(), lab.BackupID("A"), "v1", ""); !strings.Contains(fmt.Sprint(err), "socket is empty") {
		t.Errorf("Browse: %v", err)
	}
}

// TestDeadStore: whatever is asked of an engine whose store is gone, or hypervisor doesn't answer, the host sees one sentinel.
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

// below are what the packages below the engine may return, and what a host sees of it.
var below = map[string]struct{ err, want error }{
	"repository.ErrNotRepository":   {repository.ErrNotRepository, kvmbackup.ErrNotRepository},
	"repository.ErrOtherRepository": {fmt.Errorf("%w: %w", repository.ErrUnavailable, repository.ErrOtherRepository), kvmbackup.ErrOtherRepository},
	"repository.ErrVersion":         {repository.ErrVersion, kvmbackup.ErrVersion},
	"repository.ErrUnavailable":     {repository.ErrUnavailable, kvmbackup.ErrUnavailable},
	"repository.ErrHung":            {fmt.Errorf("%w: %w", repository.ErrHung, context.DeadlineExceeded), kvmbackup.ErrUnavailable},
	"repository.ErrReadOnly":        {repository.ErrReadOnly, kvmbackup.ErrReadOnly},
	"repository.ErrNoSpace":         {&repository.Error{Op: "publish", Err: repository.ErrNoSpace}, kvmbackup.ErrNoSpace},
	"repository.ErrNotFound":        {repository.ErrNotFound, kvmbackup.ErrMissingFile},
	"repository.ErrExist":           {repository.ErrExist, kvmbackup.ErrTargetExists},
	"repository.ErrForeign":         {repository.ErrForeign, kvmbackup.ErrForeign},
	"repository.ErrDenied":          {repository.ErrDenied, kvmbackup.ErrDenied},
	"repository.ErrUnsafe":          {repository.ErrUnsafe, kvmbackup.ErrDamaged},
	"repository.ErrTooLarge":        {repository.ErrTooLarge, kvmbackup.ErrDamaged},
	"repository.ErrInUse":           {repository.ErrInUse, kvmbackup.ErrBusy},
	"repository.ErrFlush":           {fmt.Errorf("%w: %w", repository.ErrFlush, repository.ErrUnavailable), kvmbackup.ErrFlush},
	"repository.ErrManifest":        {repository.ErrManifest, kvmbackup.ErrDamaged},
	"repository.ErrManifestVersion": {repository.ErrManifestVersion, kvmbackup.ErrDamaged},
	"repository.ErrMisplaced":       {repository.ErrMisplaced, kvmbackup.ErrDamaged},

	"qcow2.ErrInvalidOption":      {qcow2.ErrInvalidOption, kvmbackup.ErrInvalid},
	"qcow2.ErrBadName":            {qcow2.ErrBadName, kvmbackup.ErrInvalid},
	"qcow2.ErrExist":              {qcow2.ErrExist, kvmbackup.ErrTargetExists},
	"qcow2.ErrToolMissing":        {qcow2.ErrToolMissing, kvmbackup.ErrToolMissing},
	"qcow2.ErrNotFound":           {errors.Join(qcow2.ErrNotFound, qcow2.ErrBackingFile), kvmbackup.ErrMissingFile},
	"qcow2.ErrPermission":         {qcow2.ErrPermission, kvmbackup.ErrDenied},
	"qcow2.ErrLocked":             {errors.Join(qcow2.ErrLocked, qcow2.ErrBackingFile), kvmbackup.ErrImageLocked},
	"qcow2.ErrNoLocks":            {qcow2.ErrNoLocks, kvmbackup.ErrNoLocks},
	"qcow2.ErrNoSpace":            {errors.Join(qcow2.ErrNoSpace, syscall.EFBIG), kvmbackup.ErrNoSpace},
	"qcow2.ErrIO":                 {errors.Join(qcow2.ErrIO, syscall.ESTALE), kvmbackup.ErrUnavailable},
	"qcow2.ErrBackingFile":        {qcow2.ErrBackingFile, kvmbackup.ErrDamaged},
	"qcow2.ErrFormat":             {qcow2.ErrFormat, kvmbackup.ErrDamaged},
	"qcow2.ErrTooNew":             {qcow2.ErrTooNew, kvmbackup.ErrUnsupported},
	"qcow2.ErrCorrupt":            {qcow2.ErrCorrupt, kvmbackup.ErrDamaged},
	"qcow2.ErrDifferent":          {qcow2.ErrDifferent, kvmbackup.ErrDamaged},
	"qcow2.ErrSizeMismatch":       {qcow2.ErrSizeMismatch, kvmbackup.ErrTooSmall},
	"qcow2.ErrShrink":             {qcow2.ErrShrink, kvmbackup.ErrInvalid},
	"qcow2.ErrUnsupported":        {qcow2.ErrUnsupported, kvmbackup.ErrUnsupported},
	"qcow2.ErrBitmapNotFound":     {qcow2.ErrBitmapNotFound, kvmbackup.ErrCheckpointInconsistent},
	"qcow2.ErrBitmapExists":       {qcow2.ErrBitmapExists, kvmbackup.ErrCheckpointExists},
	"qcow2.ErrBitmapInconsistent": {qcow2.ErrBitmapInconsistent, kvmbackup.ErrCheckpointInconsistent},
	"qcow2.ErrBitmapUnsupported":  {qcow2.ErrBitmapUnsupported, kvmbackup.ErrUnsupported},
	"qcow2.ErrTimeout":            {qcow2.ErrTimeout, kvmbackup.ErrUnavailable},
	"qcow2.ErrHung":               {qcow2.ErrHung, kvmbackup.ErrUnavailable},
	"qcow2.ErrOutputTooLarge":     {qcow2.ErrOutputTooLarge, kvmbackup.ErrDamaged},
	"qcow2.ErrAborted":            {qcow2.ErrAborted, kvmbackup.ErrJobFailed},
	"qcow2.ErrProtocol":           {qcow2.ErrProtocol, kvmbackup.ErrOther},
	"qcow2.ErrHeader":             {qcow2.ErrHeader, kvmbackup.ErrDamaged},
	"qcow2.ErrNotRegular":         {qcow2.ErrNotRegular, kvmbackup.ErrDamaged},
	"qcow2.ErrBackingMismatch":    {qcow2.ErrBackingMismatch, kvmbackup.ErrDamaged},
	"qcow2.ErrDataFile":           {qcow2.ErrDataFile, kvmbackup.ErrDamaged},
	"qcow2.ErrEncrypted":          {qcow2.ErrEncrypted, kvmbackup.ErrUnsupported},

	"the system: full":            {&fs.PathError{Op: "write", Err: syscall.EDQUOT}, kvmbackup.ErrNoSpace},
	"the system: dead":            {&fs.PathError{Op: "stat", Err: syscall.EIO}, kvmbackup.ErrUnavailable},
	"the system: refused":         {&fs.PathError{Op: "open", Err: syscall.EACCES}, kvmbackup.ErrDenied},
	"work that piles up":          {leave.ErrPiled, kvmbackup.ErrUnavailable},
	"a limit of the engine's":     {fmt.Errorf("settle: %w", context.DeadlineExceeded), kvmbackup.ErrUnavailable},
	"another backup is running":   {kvmbackup.ErrRunning, kvmbackup.ErrBusy},
	"a job without space":         {errors.Join(kvmbackup.ErrJobFailed, kvmbackup.ErrNoSpace), kvmbackup.ErrNoSpace},
	"libvirt that doesn't answer": {errors.Join(kvmbackup.ErrBusy, kvmbackup.ErrUnavailable), kvmbackup.ErrUnavailable},
	"a driver's own":              {errInjected, kvmbackup.ErrOther},
}

// TestTranslate: each matches one sentinel of the root, with the text that it had, and still what it was.
func TestTranslate(t *testing.T) {
	for name, c := range below {
		t.Run(name, func(t *testing.T) {
			wrapped := fmt.Errorf("read: %w", c.err)
			err := engine.Translate(t.Context(), wrapped)
			lab.Same(t, words(t, err), []string{kvmbackup.Code(c.want)})
			lab.Equal(t, "the text", err.Error(), wrapped.Error())
			if kvmbackup.Code(c.err) == "other" && !errors.Is(err, c.err) {
				t.Errorf("it is no longer %v", c.err)
			}
		})
	}
	var path *fs.PathError
	if err := engine.Translate(t.Context(), &fs.PathError{Op: "stat", Path: "/x", Err: syscall.EIO}); !errors.As(err, &path) || path.Path != "/x" {
		t.Errorf("it hides the error of the system: %v", err)
	}
}

// TestTranslateKnowsAll: a new sentinel of a package below is to be in the table.
func TestTranslateKnowsAll(t *testing.T) {
	for _, pkg := range []string{"repository", "qcow2"} {
		source, err := os.ReadFile("../" + pkg + "/errors.go")
		lab.OK(t, err)
		found := regexp.MustCompile(`(?m)^\t(Err\w+) += `).FindAllStringSubmatch(string(source), -1)
		if len(found) == 0 {
			t.Errorf("%s has no sentinels", pkg)
		}
		for _, m := range found {
			if _, ok := below[pkg+"."+m[1]]; !ok {
				t.Errorf("nobody says what a host sees of %s.%s", pkg, m[1])
			}
		}
	}
}

// TestTranslateEnded: an operation that its caller has ended matches the context's error and its cause.
func TestTranslateEnded(t *testing.T) {
	errHost := errors.New("the host shuts down")
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(errHost)
	late, stop := context.WithDeadlineCause(t.Context(), time.Unix(0, 0), errHost)
	defer stop()
	for name, c := range map[string]struct {
		ctx  context.Context //nolint:containedctx // a row of a table
		err  error
		code []string
	}{
		"the cause":          {cancelled, fmt.Errorf("copy: %w", errHost), []string{"interrupted"}},
		"the context":        {cancelled, fmt.Errorf("copy: %w", context.Canceled), []string{"interrupted"}},
		"a killed tool":      {cancelled, errors.New("signal: killed"), []string{"interrupted"}},
		"a cancelled job":    {cancelled, errors.Join(errHost, kvmbackup.ErrJobFailed), []string{"interrupted"}},
		"a deadline":         {late, fmt.Errorf("copy: %w", errHost), []string{"timeout"}},
		"a wait":             {late, fmt.Errorf("%w (gave up waiting: %w)", kvmbackup.ErrBusy, errHost), []string{"busy", "timeout"}},
		"a job that hangs":   {cancelled, errors.Join(errHost, kvmbackup.ErrJobStuck), []string{"job-stuck", "interrupted"}},
		"storage that hangs": {cancelled, errors.Join(errHost, kvmbackup.ErrUnavailable), []string{"unavailable", "interrupted"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := engine.Translate(c.ctx, c.err)
			lab.Fails(t, err, errHost, c.ctx.Err())
			lab.Same(t, words(t, err), c.code)
			lab.Equal(t, "the code", kvmbackup.Code(err), c.code[0])
		})
	}
	other := engine.Translate(cancelled, fmt.Errorf("check: %w", kvmbackup.ErrInvalid)) // it had failed before
	lab.Same(t, words(t, other), []string{"invalid"})
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
