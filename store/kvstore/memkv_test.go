package kvstore_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/kvmbackup/kvmbackup/store/kvstore"
)

// table is a host's table of details in memory.
type table struct {
	mu   sync.Mutex
	rows map[kvstore.Object]map[string]string
	now  time.Time
	max  int
	dead error // what every call returns, once it is closed
}

// Close ends the table, as a database that is gone.
func (t *table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dead = errors.New("connection lost")
	return nil
}

// alive is the first thing that a call asks.
func (t *table) alive(ctx context.Context) error { return cmp.Or(ctx.Err(), t.dead) }

func newTable() *table {
	return &table{
		rows: map[kvstore.Object]map[string]string{}, now: time.Date(2026, 11, 23, 7, 0, 0, 0, time.UTC), max: 1000,
	}
}

// clock is the table's own, in the role of a database's.
func (t *table) clock(context.Context) (time.Time, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now, t.dead
}

func (t *table) Advance(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now = t.now.Add(d)
}

// details returns a copy of an object's details.
func (t *table) details(o kvstore.Object) map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.rows[o])
}

func (t *table) check(ctx context.Context, key, value string) error {
	switch {
	case t.alive(ctx) != nil:
		return t.alive(ctx)
	case len(value) > t.max || !utf8.ValidString(value) || value == "" || len(key) > 64:
		return fmt.Errorf("the table can't hold %q=%q", key, value)
	}
	return nil
}

func (t *table) Get(ctx context.Context, o kvstore.Object, key string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rows[o][key], t.alive(ctx)
}

func (t *table) Set(ctx context.Context, o kvstore.Object, key, value string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.check(ctx, key, value); err != nil {
		return err
	}
	t.set(o, key, value)
	return nil
}

func (t *table) set(o kvstore.Object, key, value string) {
	if t.rows[o] == nil {
		t.rows[o] = map[string]string{}
	}
	t.rows[o][key] = value
}

func (t *table) Remove(ctx context.Context, o kvstore.Object, key string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.alive(ctx) == nil {
		delete(t.rows[o], key)
	}
	return t.alive(ctx)
}

func (t *table) List(ctx context.Context, o kvstore.Object) (map[string]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.rows[o]), t.alive(ctx)
}

func (t *table) CompareAndSet(ctx context.Context, o kvstore.Object, key, old, value string) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.check(ctx, key, value); err != nil {
		return false, err
	}
	if t.rows[o][key] != old {
		return false, nil
	}
	t.set(o, key, value)
	return true, nil
}

func (t *table) Find(ctx context.Context, kind kvstore.ObjectKind, key string) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for o, row := range t.rows {
		if o.Kind == kind && row[key] != "" {
			out = append(out, o.ID)
		}
	}
	return out, t.alive(ctx)
}

var errKilled = errors.New("killed")

// dying is a table as a process sees it that is killed at its n-th write, before or after that took effect.
type dying struct {
	*table
	left   int
	after  bool
	killed bool
	stall  func() // instead of dying: called once at the n-th write
}

// write runs one write, unless the process is dead.
func (d *dying) write(do func() error) error {
	if d.killed {
		return errKilled
	}
	d.left--
	switch {
	case d.left != 0:
		return do()
	case d.stall != nil:
		d.stall()
		return do()
	case d.after:
		_ = do()
	}
	d.killed = true
	return errKilled
}

func (d *dying) Set(ctx context.Context, o kvstore.Object, key, value string) error {
	return d.write(func() error { return d.table.Set(ctx, o, key, value) })
}

func (d *dying) Remove(ctx context.Context, o kvstore.Object, key string) error {
	return d.write(func() error { return d.table.Remove(ctx, o, key) })
}

func (d *dying) CompareAndSet(ctx context.Context, o kvstore.Object, key, old, value string) (ok bool, err error) {
	err = d.write(func() (err error) {
		ok, err = d.table.CompareAndSet(ctx, o, key, old, value)
		return err
	})
	return ok, err
}

func (d *dying) Get(ctx context.Context, o kvstore.Object, key string) (string, error) {
	if d.killed {
		return "", errKilled
	}
	return d.table.Get(ctx, o, key)
}

func (d *dying) List(ctx context.Context, o kvstore.Object) (map[string]string, error) {
	if d.killed {
		return nil, errKilled
	}
	return d.table.List(ctx, o)
}
