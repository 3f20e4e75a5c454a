package sqlstore

import (
	"context"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// HotQueries returns the statements that have to cost the same with ten and with a million backups, by the
// method that runs them, with arguments that fit.
func (s *Store) HotQueries(vm kvmbackup.VMID, id kvmbackup.BackupID) map[string]Query {
	put := s.q.put
	list, args := s.listQuery(kvmbackup.Query{VM: vm, AfterSequence: 5, Limit: 10})
	running, runningArgs := s.listQuery(kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
	return map[string]Query{
		"vm":           {s.q.vm, []any{vm}},
		"vm, locked":   {s.q.vmLocked, []any{vm}},
		"vm, set":      {s.q.vmSet, []any{"", 1, "", 1, "", 1, vm}},
		"backup":       {s.q.backup, []any{id}},
		"put":          {put, []any{id, vm, 1, "completed", "c", nil, "{}"}},
		"remove":       {s.q.remove, []any{id}},
		"running":      {s.q.running, []any{vm}},
		"has children": {s.q.hasChildren, []any{id}},
		"sequence":     {s.q.sequence, []any{vm, 5}},
		"newest":       {s.q.newest, []any{vm, vm, vm}},
		"children":     {s.q.children, []any{id}},
		"no status":    {s.q.noStatus, []any{vm, vm}},
		"parentless":   {s.q.parentless, []any{id}},
		"page":         {list, args},
		"all running":  {running, runningArgs},
		"ack":          {s.q.removalAck, []any{id}},
	}
}

// Query is a statement with its arguments.
type Query struct {
	SQL  string
	Args []any
}

// Apply runs one migration, as an older library did.
func (s *Store) Apply(ctx context.Context, m Migration) error {
	return s.transact(ctx, func(c *txConn) error { return s.apply(ctx, c, m) })
}

// Prepare makes the table of migrations.
func (s *Store) Prepare(ctx context.Context) error {
	return s.transact(ctx, func(c *txConn) error { return s.prepareSchema(ctx, c) })
}

// Table returns a table's full name.
func (s *Store) Table(name string) string { return s.cfg.table(name) }

// Retryable is what the store thinks of a driver's error.
func (s *Store) Retryable(err error) bool { return s.retryable(err) }

// Plain says whether every table of the statement is named in the store's own way.
func Plain(sql string) bool { return !strings.Contains(sql, "{") }
