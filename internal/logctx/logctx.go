// Package logctx carries in a context what an operation is about, so that every line written for it says so, whichever
// package writes it.
package logctx

import (
	"context"
	"log/slog"
	"sync"
)

// Subject is what an operation is about now. It is safe for concurrent use.
type Subject struct {
	mu               sync.Mutex
	vm, backup, step string
}

// Set changes it. A backup is empty before there is one.
func (s *Subject) Set(vm, backup, step string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vm, s.backup, s.step = vm, backup, step
}

type key struct{}

// With returns a context for an operation on the subject.
func With(ctx context.Context, s *Subject) context.Context { return context.WithValue(ctx, key{}, s) }

// Logger returns l with the attributes vm, backup and step of the operation that ctx is of; l itself without one.
func Logger(ctx context.Context, l *slog.Logger) *slog.Logger {
	s, ok := ctx.Value(key{}).(*Subject)
	if !ok {
		return l
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.With("vm", s.vm, "backup", s.backup, "step", s.step)
}
