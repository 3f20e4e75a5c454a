package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// below are what the packages below the engine may return, and what a host sees of it.
var below = map[string]struct{ err, want error }{
	"repository.ErrNotRepository": {repository.ErrNotRepository, kvmbackup.ErrNotRepository},
	"repository.ErrOtherRepository": {fmt.Errorf("%w: %w", repository.ErrUnavailable, repository.ErrOtherRepository),
		kvmbackup.ErrOtherRepository},
	"repository.ErrVersion":     {repository.ErrVersion, kvmbackup.ErrVersion},
	"repository.ErrUnavailable": {repository.ErrUnavailable, kvmbackup.ErrUnavailable},
	"repository.ErrHung": {fmt.Errorf("%w: %w", repository.ErrHung, context.DeadlineExceeded),
		kvmbackup.ErrUnavailable},
	"repository.ErrReadOnly": {repository.ErrReadOnly, kvmbackup.ErrReadOnly},
	"repository.ErrNoSpace":  {&repository.Error{Op: "publish", Err: repository.ErrNoSpace}, kvmbackup.ErrNoSpace},
	"repository.ErrNotFound": {repository.ErrNotFound, kvmbackup.ErrMissingFile},
	"repository.ErrExist":    {repository.ErrExist, kvmbackup.ErrTargetExists},
	"repository.ErrForeign":  {repository.ErrForeign, kvmbackup.ErrForeign},
	"repository.ErrDenied":   {repository.ErrDenied, kvmbackup.ErrDenied},
	"repository.ErrUnsafe":   {repository.ErrUnsafe, kvmbackup.ErrDamaged},
	"repository.ErrTooLarge": {repository.ErrTooLarge, kvmbackup.ErrDamaged},
	"repository.ErrInUse":    {repository.ErrInUse, kvmbackup.ErrBusy},
	"repository.ErrFlush": {fmt.Errorf("%w: %w", repository.ErrFlush, repository.ErrUnavailable),
		kvmbackup.ErrFlush},
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
	"qcow2.ErrUnsupported":        {qcow2.ErrUnsupported, kvmbackup.ErrUnsupported},
	"qcow2.ErrBitmapNotFound":     {qcow2.ErrBitmapNotFound, kvmbackup.ErrCheckpointInconsistent},
	"qcow2.ErrBitmapExists":       {qcow2.ErrBitmapExists, kvmbackup.ErrCheckpointExists},
	"qcow2.ErrBitmapInconsistent": {qcow2.ErrBitmapInconsistent, kvmbackup.ErrCheckpointInconsistent},
	"qcow2.ErrBitmapUnsupported":  {qcow2.ErrBitmapUnsupported, kvmbackup.ErrUnsupported},
	"qcow2.ErrTimeout":            {qcow2.ErrTimeout, kvmbackup.ErrUnavailable},
	"qcow2.ErrHung":               {qcow2.ErrHung, kvmbackup.ErrUnavailable},
	"qcow2.ErrOutputTooLarge":     {qcow2.ErrOutputTooLarge, kvmbackup.ErrDamaged},
	"qcow2.ErrMemory":             {qcow2.ErrMemory, kvmbackup.ErrDamaged},
	"qcow2.ErrProtocol":           {qcow2.ErrProtocol, kvmbackup.ErrOther},
	"qcow2.ErrHeader":             {qcow2.ErrHeader, kvmbackup.ErrDamaged},
	"qcow2.ErrNotRegular":         {qcow2.ErrNotRegular, kvmbackup.ErrDamaged},
	"qcow2.ErrBackingMismatch":    {qcow2.ErrBackingMismatch, kvmbackup.ErrDamaged},
	"qcow2.ErrDataFile":           {qcow2.ErrDataFile, kvmbackup.ErrDamaged},
	"qcow2.ErrEncrypted":          {qcow2.ErrEncrypted, kvmbackup.ErrUnsupported},
	"qcow2.ErrLUKS":               {qcow2.ErrLUKS, kvmbackup.ErrDamaged},
	"qcow2.ErrSecret":             {qcow2.ErrSecret, kvmbackup.ErrDamaged},

	"the system: full":            {&fs.PathError{Op: "write", Err: syscall.EDQUOT}, kvmbackup.ErrNoSpace},
	"the system: dead":            {&fs.PathError{Op: "stat", Err: syscall.EIO}, kvmbackup.ErrUnavailable},
	"the system: refused":         {&fs.PathError{Op: "open", Err: syscall.EACCES}, kvmbackup.ErrDenied},
	"work that piles up":          {leave.ErrPiled, kvmbackup.ErrUnavailable},
	"a limit of the engine's":     {fmt.Errorf("settle: %w", context.DeadlineExceeded), kvmbackup.ErrUnavailable},
	"another backup is running":   {kvmbackup.ErrRunning, kvmbackup.ErrBusy},
	"a job without space":         {errors.Join(kvmbackup.ErrJobFailed, kvmbackup.ErrNoSpace), kvmbackup.ErrNoSpace},
	"libvirt that doesn't answer": {errors.Join(kvmbackup.ErrBusy, kvmbackup.ErrUnavailable), kvmbackup.ErrUnavailable},
	"a driver's own":              {errors.New("injected"), kvmbackup.ErrOther},
}

// TestTranslate: each matches one sentinel of the root, with the text that it had, and still what it was.
func TestTranslate(t *testing.T) {
	for name, c := range below {
		t.Run(name, func(t *testing.T) {
			wrapped := fmt.Errorf("read: %w", c.err)
			err := engine.Translate(t.Context(), wrapped)
			lab.Same(t, lab.Codes(t, err), []string{kvmbackup.Code(c.want)})
			lab.Equal(t, "the text", err.Error(), wrapped.Error())
			if kvmbackup.Code(c.err) == "other" && !errors.Is(err, c.err) {
				t.Errorf("it is no longer %v", c.err)
			}
		})
	}
	var path *fs.PathError
	err := engine.Translate(t.Context(), &fs.PathError{Op: "stat", Path: "/x", Err: syscall.EIO})
	if !errors.As(err, &path) || path.Path != "/x" {
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
		"the cause":       {cancelled, fmt.Errorf("copy: %w", errHost), []string{"interrupted"}},
		"the context":     {cancelled, fmt.Errorf("copy: %w", context.Canceled), []string{"interrupted"}},
		"a killed tool":   {cancelled, errors.New("signal: killed"), []string{"interrupted"}},
		"a cancelled job": {cancelled, errors.Join(errHost, kvmbackup.ErrJobFailed), []string{"interrupted"}},
		"a deadline":      {late, fmt.Errorf("copy: %w", errHost), []string{"timeout"}},
		"a wait": {late, fmt.Errorf("%w (gave up waiting: %w)", kvmbackup.ErrBusy, errHost),
			[]string{"busy", "timeout"}},
		"a job that hangs": {cancelled, errors.Join(errHost, kvmbackup.ErrJobStuck), []string{"job-stuck", "interrupted"}},
		"storage that hangs": {cancelled, errors.Join(errHost, kvmbackup.ErrUnavailable),
			[]string{"unavailable", "interrupted"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := engine.Translate(c.ctx, c.err)
			lab.Fails(t, err, errHost, c.ctx.Err())
			lab.Same(t, lab.Codes(t, err), c.code)
			lab.Equal(t, "the code", kvmbackup.Code(err), c.code[0])
		})
	}
	other := engine.Translate(cancelled, fmt.Errorf("check: %w", kvmbackup.ErrInvalid)) // it had failed before
	lab.Same(t, lab.Codes(t, other), []string{"invalid"})
}
