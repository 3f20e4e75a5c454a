package leave_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/leave"
)

var all = func(*leave.Work) bool { return true }

// hanging is work that returns its value when it is released.
func hanging(release <-chan struct{}) func(*leave.Work) (int, error) {
	return func(*leave.Work) (int, error) { <-release; return 7, nil }
}

func TestWorkIsAnswered(t *testing.T) {
	var r leave.Register
	failed := errors.New("failed")
	v, err := leave.Do(t.Context(), &r, leave.Options{}, func(*leave.Work) (int, error) { return 3, failed }, nil)
	lab.Fails(t, err, failed)
	lab.Equal(t, "value", v, 3)
}

// Work that hangs is left when the context ends, known to the register until it is back, and taken back then.
func TestWorkIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r leave.Register
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(gone) })
		release, late := make(chan struct{}), make(chan int, 1)
		start := time.Now()
		o := leave.Options{What: "write", Owner: "vm1", Places: []string{"/a", "/b"}, Grace: time.Second}
		_, err := leave.Do(ctx, &r, o, hanging(release), func(_ *leave.Work, v int, _ error) { late <- v })
		lab.Fails(t, err, gone)
		lab.Equal(t, "waited", time.Since(start), time.Minute+time.Second)
		away := r.First("/b", all)
		if away == nil || away.Owner != "vm1" || away.What != "write" || !errors.Is(away.Cause, gone) || away.Overdue() {
			t.Fatalf("the register has %+v", away)
		}
		if r.First("/c", all) != nil || r.First("/a", func(w *leave.Work) bool { return w.Owner != "vm1" }) != nil {
			t.Fatal("it stands in the way of what it has nothing to do with")
		}
		close(release)
		<-away.Over
		lab.Equal(t, "taken back", <-late, 7)
		if r.First("/a", all) != nil {
			t.Fatal("it was not forgotten")
		}
	})
}

// A step that exceeds its limit is left without an end of the context; a later step has its own limit.
func TestStepsHaveLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r leave.Register
		start, release := time.Now(), make(chan struct{})
		_, err := leave.Do(t.Context(), &r, leave.Options{Places: []string{"/a"}, Limit: time.Second},
			func(w *leave.Work) (int, error) {
				w.Arm(time.Hour)
				<-time.After(time.Minute)
				w.Arm(time.Second)
				<-release
				return 0, w.Check()
			}, nil)
		lab.Fails(t, err, context.DeadlineExceeded)
		lab.Equal(t, "waited", time.Since(start), time.Minute+time.Second)
		away := r.First("/a", (*leave.Work).Overdue)
		if away == nil || away.Limit() != time.Second {
			t.Fatalf("the register has %+v", away)
		}
		close(release)
		<-away.Over
	})
}

// After the end of the context, work that is to stop does no further step, and work that is not to finishes in its
// grace.
func TestEndOfContext(t *testing.T) {
	for _, c := range []struct {
		name string
		o    leave.Options
		want error
	}{
		{"stop", leave.Options{Grace: time.Minute, Stop: true}, leave.ErrLeft},
		{"finish", leave.Options{Grace: time.Minute}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				_, err := leave.Do(ctx, new(leave.Register), c.o, func(w *leave.Work) (int, error) {
					cancel()
					<-time.After(time.Second)
					return 0, w.Step(func() error { return nil })
				}, nil)
				if !errors.Is(err, c.want) {
					t.Fatalf("got %v, want %v", err, c.want)
				}
			})
		})
	}
}

// Once it was left, work does no further step, also when it was not to stop before.
func TestLeftWorkStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		release, late := make(chan struct{}), make(chan error, 1)
		work := func(w *leave.Work) (int, error) {
			<-release
			return 0, w.Step(func() error { t.Error("a step of work that was left"); return nil })
		}
		_, err := leave.Do(ctx, new(leave.Register), leave.Options{}, work, func(_ *leave.Work, _ int, err error) {
			late <- err
		})
		lab.Fails(t, err, context.Canceled)
		close(release)
		lab.Fails(t, <-late, leave.ErrLeft)
	})
}

// No more hangs at one place than the register allows, and as much again when it is back.
func TestWorkDoesNotPileUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := leave.Register{PerPlace: 2}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		release := make(chan struct{})
		for range 2 {
			_, err := leave.Do(ctx, &r, leave.Options{Places: []string{"/a"}}, hanging(release), nil)
			lab.Fails(t, err, context.Canceled)
		}
		_, err := leave.Do(ctx, &r, leave.Options{Places: []string{"/a"}}, hanging(release), nil)
		lab.Fails(t, err, leave.ErrPiled)
		_, err = leave.Do(t.Context(), &r, leave.Options{Places: []string{"/b"}},
			func(*leave.Work) (int, error) { return 1, nil }, nil)
		lab.OK(t, err)
		close(release)
		synctest.Wait()
		_, err = leave.Do(t.Context(), &r, leave.Options{Places: []string{"/a"}}, hanging(release), nil)
		lab.OK(t, err)
	})
}

func TestGoexitIsAnError(t *testing.T) {
	_, err := leave.Do(t.Context(), new(leave.Register), leave.Options{},
		func(*leave.Work) (int, error) { runtime.Goexit(); return 0, nil }, nil)
	lab.Fails(t, err)
}
