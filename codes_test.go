package kvmbackup_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
)

// sentinels are all that the package exports. TestCodes compares them with the source.
var sentinels = map[string]error{
	"ErrNotFound": kvmbackup.ErrNotFound, "ErrNoDomain": kvmbackup.ErrNoDomain, "ErrNoVolume": kvmbackup.ErrNoVolume,
	"ErrInvalid": kvmbackup.ErrInvalid, "ErrNoChainData": kvmbackup.ErrNoChainData, "ErrOther": kvmbackup.ErrOther,
	"ErrBusy": kvmbackup.ErrBusy, "ErrLeaseLost": kvmbackup.ErrLeaseLost, "ErrRunning": kvmbackup.ErrRunning,
	"ErrHasChildren": kvmbackup.ErrHasChildren, "ErrHeld": kvmbackup.ErrHeld,
	"ErrDomainRunning": kvmbackup.ErrDomainRunning, "ErrDomainStopped": kvmbackup.ErrDomainStopped,
	"ErrUnavailable": kvmbackup.ErrUnavailable, "ErrToolMissing": kvmbackup.ErrToolMissing,
	"ErrNoHypervisor": kvmbackup.ErrNoHypervisor,
	"ErrStatus":       kvmbackup.ErrStatus, "ErrNoCheckpoint": kvmbackup.ErrNoCheckpoint,
	"ErrCheckpointInconsistent": kvmbackup.ErrCheckpointInconsistent, "ErrCheckpointExists": kvmbackup.ErrCheckpointExists,
	"ErrUnsupported": kvmbackup.ErrUnsupported, "ErrUnreadable": kvmbackup.ErrUnreadable,
	"ErrDiskLeftOut": kvmbackup.ErrDiskLeftOut, "ErrNothingToBackUp": kvmbackup.ErrNothingToBackUp,
	"ErrNoJob": kvmbackup.ErrNoJob, "ErrJobFailed": kvmbackup.ErrJobFailed, "ErrJobStuck": kvmbackup.ErrJobStuck,
	"ErrStalled": kvmbackup.ErrStalled, "ErrNoAgent": kvmbackup.ErrNoAgent, "ErrNotConsistent": kvmbackup.ErrNotConsistent,
	"ErrNotRepository": kvmbackup.ErrNotRepository, "ErrVersion": kvmbackup.ErrVersion,
	"ErrReadOnly": kvmbackup.ErrReadOnly, "ErrDenied": kvmbackup.ErrDenied, "ErrFlush": kvmbackup.ErrFlush,
	"ErrForeign": kvmbackup.ErrForeign, "ErrNoSpace": kvmbackup.ErrNoSpace, "ErrTargetAccess": kvmbackup.ErrTargetAccess,
	"ErrImageLocked": kvmbackup.ErrImageLocked, "ErrNoLocks": kvmbackup.ErrNoLocks,
	"ErrMissingFile": kvmbackup.ErrMissingFile, "ErrDamaged": kvmbackup.ErrDamaged, "ErrTooSmall": kvmbackup.ErrTooSmall,
	"ErrTargetExists": kvmbackup.ErrTargetExists, "ErrOtherDomain": kvmbackup.ErrOtherDomain,
	"ErrScratchFull": kvmbackup.ErrScratchFull, "ErrScratch": kvmbackup.ErrScratch, "ErrKey": kvmbackup.ErrKey,
	"ErrOtherRepository": kvmbackup.ErrOtherRepository, "ErrForeignFiles": kvmbackup.ErrForeignFiles,
}

// exportedErrors are the names of the package's exported variables that begin with Err.
func exportedErrors(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			vars, ok := decl.(*ast.GenDecl)
			if !ok || vars.Tok != token.VAR {
				continue
			}
			for _, spec := range vars.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					if strings.HasPrefix(name.Name, "Err") {
						names = append(names, name.Name)
					}
				}
			}
		}
	}
	return names
}

// TestCodes: every sentinel has a word of its own, also when it is wrapped, and the word leads back to it.
func TestCodes(t *testing.T) {
	names := exportedErrors(t)
	if len(names) != len(sentinels) {
		t.Errorf("the package exports %d errors, the test knows %d", len(names), len(sentinels))
	}
	word := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`)
	owner := map[string]string{}
	for _, name := range names {
		sentinel := sentinels[name]
		code := kvmbackup.Code(&kvmbackup.OpError{Op: "backup", Err: fmt.Errorf("step: %w", sentinel)})
		switch {
		case sentinel == nil:
			t.Errorf("the test doesn't know %s", name)
		case !word.MatchString(code) || owner[code] != "":
			t.Errorf("%s has the code %q, as %q", name, code, owner[code])
		case kvmbackup.ErrorOf(code) != sentinel: //nolint:errorlint // the sentinel itself
			t.Errorf("%q leads back to %v, not to %s", code, kvmbackup.ErrorOf(code), name)
		case code == "other" && name != "ErrOther":
			t.Errorf("%s has no code", name)
		}
		owner[code] = name
	}
}

func TestCodeOfOthers(t *testing.T) {
	for _, c := range []struct {
		err  error
		code string
		back error
	}{
		{nil, "", nil},
		{errors.New("something"), "other", kvmbackup.ErrOther},
		{context.Canceled, "interrupted", context.Canceled},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), "timeout", context.DeadlineExceeded},
		{&kvmbackup.BusyError{VM: "vm1"}, "busy", kvmbackup.ErrBusy},
		{&kvmbackup.SpaceError{}, "no-space", kvmbackup.ErrNoSpace},
		{&kvmbackup.ScratchFullError{}, "scratch-full", kvmbackup.ErrScratchFull},
		{errors.Join(kvmbackup.ErrJobFailed, kvmbackup.ErrScratchFull), "scratch-full", kvmbackup.ErrScratchFull},
		{&kvmbackup.NameError{}, "invalid", kvmbackup.ErrInvalid},
		{&kvmbackup.ForeignFilesError{}, "foreign-files", kvmbackup.ErrForeignFiles},
		{errors.Join(kvmbackup.ErrJobFailed, kvmbackup.ErrNoSpace), "no-space", kvmbackup.ErrNoSpace},
		{errors.Join(kvmbackup.ErrUnavailable, kvmbackup.ErrNotRepository), "no-repository", kvmbackup.ErrNotRepository},
		{errors.Join(context.Canceled, kvmbackup.ErrLeaseLost), "lease-lost", kvmbackup.ErrLeaseLost},
	} {
		if got := kvmbackup.Code(c.err); got != c.code {
			t.Errorf("the code of %v is %q, want %q", c.err, got, c.code)
		}
		if got := kvmbackup.ErrorOf(c.code); got != c.back { //nolint:errorlint // the sentinel itself
			t.Errorf("%q leads back to %v, want %v", c.code, got, c.back)
		}
	}
	got := kvmbackup.ErrorOf("of-a-later-version")
	if got != kvmbackup.ErrOther { //nolint:errorlint // the sentinel itself
		t.Errorf("an unknown code leads to %v", got)
	}
}

func TestErrorText(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errors.New("plain"), "plain"},
		{errors.Join(errors.New("first"), errors.New("second"), errors.New("first")), "first; second"},
		{fmt.Errorf("not found: %w", errors.New("not found: vm1")), "not found: vm1"},
		{&kvmbackup.NameError{What: "line\r\n  another\n\n"}, "line; another; is empty"},
		{&kvmbackup.OpError{
			Op: "delete", VM: "vm1", Backup: "b1", Step: "settle", Err: errors.Join(kvmbackup.ErrBusy, kvmbackup.ErrHeld),
		},
			`delete of "vm1" (backup b1): settle: busy; backup is held`},
	} {
		if got := kvmbackup.ErrorText(c.err); got != c.want {
			t.Errorf("%#v: %q, want %q", c.err, got, c.want)
		}
	}
}

// TestDocNamesErrors: the package's comment has every sentinel in one of its groups.
func TestDocNamesErrors(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(doc), "# Errors")
	words := strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune("[], .\n\t/", r) })
	for _, name := range exportedErrors(t) {
		if !slices.Contains(words, name) {
			t.Errorf("doc.go doesn't name %s", name)
		}
	}
}
