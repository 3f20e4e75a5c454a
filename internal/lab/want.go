package lab

import (
	"context"
	"errors"
	"slices"
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
