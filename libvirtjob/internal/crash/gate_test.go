package crash_test

import (
	"errors"
	"os"
	"sync"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// gate is what all calls of an engine to its five parts pass twice, before they do anything and after; and every step
// of the repository that changes a file, once. Each passage is a point. Nothing lists the points: they are found by
// running. Only the renewal of the lease, which follows the clock, isn't one.
type gate struct {
	mu     sync.Mutex
	armed  bool
	points []string
	at     func(n int, point string) error // what happens at the n-th point, counted from 1
}

// arm begins to count.
func (g *gate) arm(at func(n int, point string) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed, g.points, g.at = true, nil, at
}

// disarm lets everything through, and returns the points that were passed.
func (g *gate) disarm() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = false
	return g.points
}

func (g *gate) pass(point string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.armed {
		return nil
	}
	g.points = append(g.points, point)
	return g.at(len(g.points), point)
}

// kill ends this process as the kernel's out-of-memory killer does, and notes the point where it did.
func kill(note, point string) {
	_ = os.WriteFile(note, []byte(point), 0o644)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// through passes one call.
func through[T any](g *gate, call string, f func() (T, error)) (T, error) {
	if err := g.pass("before " + call); err != nil {
		var none T
		return none, err
	}
	v, err := f()
	return v, errors.Join(err, g.pass("after "+call))
}

// do is through for what has no result.
func do(g *gate, call string, f func() error) error {
	_, err := through(g, call, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// store has all calls of a store pass, except the renewal of the lease.
func (g *gate) store(in kvmbackup.Store) kvmbackup.Store {
	return lab.GatedStore{In: in, Around: func(method string, call func() error) error {
		if method == "RenewLease" {
			return call()
		}
		return do(g, "Store."+method, call)
	}}
}
