package kvmbackup_test

import (
	"encoding"
	"errors"
	"fmt"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// readable is what every enum can do.
type readable[T any] interface {
	*T
	encoding.TextUnmarshaler
}

// speaks wants the values from 0 on to have these words, both ways, and what is no value to say so without a panic.
func speaks[T interface {
	~int
	fmt.Stringer
	encoding.TextMarshaler
}, P readable[T]](t *testing.T, words ...string) {
	t.Helper()
	for i, w := range words {
		text, err := T(i).MarshalText()
		if T(i).String() != w || string(text) != w || err != nil {
			t.Errorf("%T(%d) is %q, %q, %v; want %q", T(i), i, T(i).String(), text, err, w)
		}
		var back T
		if err := P(&back).UnmarshalText([]byte(w)); err != nil || back != T(i) {
			t.Errorf("%q is %T(%d), %v", w, back, int(back), err)
		}
	}
	for _, v := range []T{-1, T(len(words))} {
		if v.String() == "" {
			t.Errorf("%T(%d) says nothing", v, int(v))
		}
		if _, err := v.MarshalText(); !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", v, err)
		}
	}
	var v T
	if err := P(&v).UnmarshalText([]byte("nothing of it")); !errors.Is(err, kvmbackup.ErrInvalid) {
		t.Errorf("%T: got %v, want ErrInvalid", v, err)
	}
}

func TestEnumsSpeak(t *testing.T) {
	speaks[kvmbackup.Kind](t, "unknown", "full", "incremental")
	speaks[kvmbackup.Status](t, "unknown", "running", "completed", "failed", "delete-pending")
	speaks[kvmbackup.Consistency](t, "unknown", "crash", "filesystem")
	speaks[kvmbackup.DomainState](t, "unknown", "running", "paused", "stopped")
	speaks[kvmbackup.JobState](t, "unknown", "none", "backup", "other")
	speaks[kvmbackup.BitmapState](t, "unknown", "usable", "missing", "inconsistent")
	speaks[kvmbackup.Transfer](t, "auto", "push", "pull", "offline")
	speaks[engine.Quiesce](t, "no", "try", "require")
}
