package sqlstore

import (
	"context"
	"sync"
)

// defaultConnections is Config.Connections where that is 0. PostgreSQL's own default is 100 for all of its clients.
const defaultConnections = 16

// gate bounds how many of the store's calls have a connection at once, and has those that write to SQLite take turns:
// SQLite has one writer, and who waits for it inside of it asks again and again.
type gate struct {
	places chan struct{}
	writer chan struct{}
}

func newGate(connections int) gate {
	return gate{make(chan struct{}, connections), make(chan struct{}, 1)}
}

// enter returns when a call may have a connection; it returns the context's error when that ends first.
func (s *Store) enter(ctx context.Context, alone bool) (leave func(), err error) {
	if alone {
		if err := take(ctx, s.gate.writer); err != nil {
			return nil, err
		}
	}
	if err := take(ctx, s.gate.places); err != nil {
		if alone {
			<-s.gate.writer
		}
		return nil, err
	}
	return func() {
		<-s.gate.places
		if alone {
			<-s.gate.writer
		}
	}, nil
}

func take(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// timeouts keeps SQLite's busy_timeout of each connection.
type timeouts struct {
	mu sync.Mutex
	of map[any]int
}

// mostTimeouts is how many connections are known; pools close some and open others.
const mostTimeouts = 256

func (t *timeouts) get(conn any) (ms int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ms, ok = t.of[conn]
	return ms, ok
}

func (t *timeouts) set(conn any, ms int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil || len(t.of) >= mostTimeouts {
		t.of = map[any]int{}
	}
	t.of[conn] = ms
}
