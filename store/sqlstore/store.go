package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// Store is a kvmbackup.Store in an SQL database. All its methods may be called concurrently, by any number of
// stores and processes on the same tables.
//
// Every write is one transaction, which locks the VM's row (with SQLite: the file) for a few statements.
// What loses a conflict in the database is repeated until the context ends. A context that ends in mid-call
// rolls back; only a commit that has begun is waited for, up to 30 seconds.
type Store struct {
	rules.Writer
	db         *sql.DB
	cfg        Config
	q          queries
	migrations []Migration
	gate       gate
	timeouts   timeouts
}

var _ kvmbackup.Store = (*Store)(nil)

// New returns a store over the host's database, which stays the host's to close. It asks the database for its
// dialect, unless the Config has it, and for its schema: tables that a newer library has migrated are refused
// with a *SchemaError; older or missing ones are left for Migrate. A Config that is wrong is an ErrInvalid.
func New(ctx context.Context, db *sql.DB, c Config) (*Store, error) {
	if db == nil {
		return nil, fmt.Errorf("%w: no database", kvmbackup.ErrInvalid)
	}
	s := &Store{db: db, cfg: c}
	if c.Dialect == DialectUnknown {
		var err error
		if s.cfg.Dialect, err = s.detect(ctx); err != nil {
			return nil, rules.StoreError(ctx, err)
		}
	}
	var err error
	if s.migrations, err = Migrations(s.cfg); err != nil {
		return nil, err
	}
	if s.cfg, err = s.cfg.withDefaults(); err != nil {
		return nil, err
	}
	s.gate = newGate(s.cfg.Connections)
	s.q, s.Writer = newQueries(s.cfg), rules.NewWriter(s.update)
	var schema *SchemaError
	if err := s.CheckSchema(ctx); errors.Is(err, ErrSchemaNewer) || err != nil && !errors.As(err, &schema) {
		return nil, err
	}
	return s, nil
}

func (s *Store) update(ctx context.Context, vm kvmbackup.VMID, fn func(rules.Tx) error) error {
	return s.retry(ctx, func() error {
		return s.transact(ctx, func(c *txConn) error {
			t := &tx{c: c, q: &s.q, vm: vm}
			if err := fn(t); err != nil {
				return err
			}
			return t.end(ctx)
		})
	})
}

// read repeats what lost a conflict and names the step in errors.
func read[T any](ctx context.Context, s *Store, what string, fn func() (T, error)) (T, error) {
	var out T
	err := ctx.Err()
	if err == nil {
		err = s.retry(ctx, func() (err error) {
			leave, err := s.enter(ctx, false)
			if err != nil {
				return err
			}
			defer leave()
			out, err = fn()
			return err
		})
	}
	if err != nil {
		var zero T
		return zero, fmt.Errorf("%s: %w", what, rules.StoreError(ctx, err))
	}
	return out, nil
}

// VM implements kvmbackup.Store.
func (s *Store) VM(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.VMRecord, error) {
	return read(ctx, s, "read the VM", func() (kvmbackup.VMRecord, error) {
		v, err := scanVM(s.db.QueryRowContext(ctx, s.q.vm, vm), vm)
		if errors.Is(err, sql.ErrNoRows) {
			err = nil
		}
		return v.VMRecord, err
	})
}

// Backup implements kvmbackup.Store.
func (s *Store) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	return read(ctx, s, "read a backup", func() (kvmbackup.Backup, error) {
		return oneBackup(ctx, s.db, rules.NotFound(id), s.q.backup, id)
	})
}

// Newest implements kvmbackup.Store.
func (s *Store) Newest(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	return read(ctx, s, "read the newest backup", func() (kvmbackup.Backup, error) {
		if err := checkStatuses(ctx, s.db, &s.q, vm); err != nil {
			return kvmbackup.Backup{}, err
		}
		return oneBackup(ctx, s.db, rules.NoneYet(vm), s.q.newest, vm, vm, vm)
	})
}

// Children implements kvmbackup.Store. An unknown backup has none.
func (s *Store) Children(ctx context.Context, id kvmbackup.BackupID) ([]kvmbackup.Backup, error) {
	return read(ctx, s, "read the children", func() ([]kvmbackup.Backup, error) {
		if _, err := manyBackups(ctx, s.db, s.q.parentless, id); err != nil {
			return nil, err
		}
		return manyBackups(ctx, s.db, s.q.children, id)
	})
}

// List implements kvmbackup.Store.
func (s *Store) List(ctx context.Context, q kvmbackup.Query) ([]kvmbackup.Backup, error) {
	query, args := s.listQuery(q)
	return read(ctx, s, "list backups", func() ([]kvmbackup.Backup, error) {
		if len(q.Statuses) > 0 && !atOnce(q) {
			if err := checkStatuses(ctx, s.db, &s.q, q.VM); err != nil {
				return nil, err
			}
		}
		return manyBackups(ctx, s.db, query, args...)
	})
}

// listQuery composes the statement from fixed parts; all that the caller gives goes into arguments.
func (s *Store) listQuery(q kvmbackup.Query) (string, []any) {
	var where []string
	var args []any
	and := func(condition string, values ...any) {
		where, args = append(where, condition), append(args, values...)
	}
	if q.VM != "" && (len(q.Statuses) == 0 || !atOnce(q)) {
		and(`vm_id = ?`, q.VM)
	}
	if q.Chain != "" {
		and(`chain_id = ?`, q.Chain)
	}
	if len(q.Statuses) > 0 {
		var values []any
		for _, status := range q.Statuses {
			values = append(values, status.String())
		}
		condition := `status IN (?` + strings.Repeat(`, ?`, len(values)-1) + `)`
		if atOnce(q) {
			condition, values = s.withNoStatus(condition, q.VM, values)
		}
		and(condition, values...)
	}
	switch {
	case q.AfterVM != "":
		and(`(vm_id, sequence) > (?, ?)`, q.AfterVM, q.AfterSequence)
	case q.AfterSequence != 0:
		and(`sequence > ?`, q.AfterSequence)
	}
	if q.Leaves {
		// An index is asked for each record; for NOT EXISTS PostgreSQL reads the whole table into a hash.
		and(`(SELECT 1 FROM {backups} AS child WHERE child.parent_id = b.backup_id LIMIT 1) IS NULL`)
	}
	query := s.q.list
	if len(where) > 0 {
		query += ` WHERE ` + strings.Join(where, ` AND `)
	}
	query += ` ORDER BY vm_id, sequence`
	if q.Limit > 0 {
		query += ` LIMIT ?`
		args = append(args, q.Limit)
	}
	return s.cfg.expand(query), args
}

// atOnce says whether one statement also finds the rows whose status isn't one. A page's order, and that of all VMs, is
// that of an index which such a statement doesn't use.
func atOnce(q kvmbackup.Query) bool { return q.VM != "" && q.Limit == 0 }

// withNoStatus also selects the VM's rows whose status isn't one: they make the list an ErrInvalid.
func (s *Store) withNoStatus(condition string, vm kvmbackup.VMID, values []any) (string, []any) {
	condition, values = condition+` AND vm_id = ?`, append(values, vm)
	return `((` + condition + `) OR ` + noStatusOf() + `)`, append(values, times(noStatusArgs, vm)...)
}

// Removals implements kvmbackup.Store.
func (s *Store) Removals(ctx context.Context, limit int) ([]kvmbackup.Removal, error) {
	query, args := s.q.removals, []any(nil)
	if limit > 0 {
		query, args = s.cfg.expand(query+` LIMIT ?`), []any{limit}
	}
	return read(ctx, s, "read the removals", func() ([]kvmbackup.Removal, error) {
		return many(ctx, s.db, scanRemoval, query, args...)
	})
}

// AckRemoval implements kvmbackup.Store.
func (s *Store) AckRemoval(ctx context.Context, id kvmbackup.BackupID) error {
	err := ctx.Err()
	if err == nil {
		err = s.retry(ctx, func() error {
			return s.transact(ctx, func(c *txConn) error {
				_, err := c.ExecContext(ctx, s.q.removalAck, id)
				return err
			})
		})
	}
	if err != nil {
		return fmt.Errorf("acknowledge a removal: %w", rules.StoreError(ctx, err))
	}
	return nil
}
