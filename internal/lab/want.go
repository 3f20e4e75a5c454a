package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// TB is what *testing.T and *rapid.T have in common.
type TB interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// OK wants no error.
func OK(t TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// Fails wants an error that is all of the targets.
func Fails(t TB, err error, targets ...error) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %v", targets)
	}
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Fatalf("got the error %v, want %v", err, target)
		}
	}
}

// Equal wants the same value.
func Equal[T comparable](t TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s:\ngot  %v\nwant %v", what, got, want)
	}
}

// Same wants the same strings in the same order.
func Same(t TB, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
}

// Codes returns the codes of all sentinels of the root that the error matches, in the order of codes.go.
func Codes(t TB, err error) (found []string) {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	source, readErr := os.ReadFile(filepath.Join(filepath.Dir(here), "..", "..", "codes.go"))
	OK(t, readErr)
	for _, m := range regexp.MustCompile(`(?m)^\t\{"([a-z-]+)", \w`).FindAllStringSubmatch(string(source), -1) {
		if errors.Is(err, kvmbackup.ErrorOf(m[1])) {
			found = append(found, m[1])
		}
	}
	return found
}
