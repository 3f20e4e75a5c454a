package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
)

var (
	// ErrSchemaNewer is returned when a newer library has migrated the tables: this one can't know what
	// they mean. Update the program.
	ErrSchemaNewer = errors.New("the schema is newer than this library knows")
	// ErrSchemaOlder is returned by CheckSchema when migrations are missing, and by what doesn't find its tables then.
	// Call Migrate.
	ErrSchemaOlder = errors.New("the schema lacks migrations")
)

// SchemaError is an ErrSchemaNewer or ErrSchemaOlder with both versions.
type SchemaError struct {
	Have int // the database's version; 0: no tables
	Want int // the library's
}

func (e *SchemaError) Error() string {
	return fmt.Sprintf("%v: the database has version %d, the library %d", e.Unwrap(), e.Have, e.Want)
}

// Unwrap returns ErrSchemaNewer or ErrSchemaOlder.
func (e *SchemaError) Unwrap() error {
	if e.Have > e.Want {
		return ErrSchemaNewer
	}
	return ErrSchemaOlder
}

// SchemaVersion is the version that this library needs.
func (s *Store) SchemaVersion() int { return s.migrations[len(s.migrations)-1].Version }

// CheckSchema returns a *SchemaError unless the tables are of exactly the version that the library needs.
func (s *Store) CheckSchema(ctx context.Context) error {
	have, err := read(ctx, s, "read the schema's version", func() (int, error) { return s.version(ctx) })
	if err != nil {
		return err
	}
	if have != s.SchemaVersion() {
		return &SchemaError{Have: have, Want: s.SchemaVersion()}
	}
	return nil
}

// version is 0 without tables.
func (s *Store) version(ctx context.Context) (int, error) {
	there, err := s.exists(ctx, s.db, s.cfg.TablePrefix+"migrations")
	if err != nil || !there {
		return 0, err
	}
	var v int
	err = s.db.QueryRowContext(ctx, s.q.version).Scan(&v)
	return v, err
}

// exists asks for a table of the store's schema.
func (s *Store) exists(ctx context.Context, db querier, table string) (bool, error) {
	var n int
	args := []any{table}
	if s.cfg.Dialect != DialectSQLite && s.cfg.Schema != "" {
		args = append(args, s.cfg.Schema)
	}
	err := db.QueryRowContext(ctx, s.q.exists, args...).Scan(&n)
	return n > 0, err
}

// Migrate brings the tables to the version that the library needs. Any number of processes may call it at once:
// each step is applied once, in a transaction of its own. It returns a *SchemaError when the tables are newer.
func (s *Store) Migrate(ctx context.Context) error {
	err := s.retry(ctx, func() error {
		return s.transact(ctx, func(c *txConn) error { return s.prepareSchema(ctx, c) })
	})
	if err != nil {
		return fmt.Errorf("prepare the schema: %w", err)
	}
	for _, m := range s.migrations {
		err := s.retry(ctx, func() error {
			return s.transact(ctx, func(c *txConn) error { return s.apply(ctx, c, m) })
		})
		if err != nil {
			return fmt.Errorf("migration %s: %w", m.Name, err)
		}
	}
	return s.CheckSchema(ctx)
}

// prepareSchema creates the schema and the table of migrations.
func (s *Store) prepareSchema(ctx context.Context, c *txConn) error {
	if err := s.lockSchema(ctx, c); err != nil {
		return err
	}
	if s.cfg.Schema != "" {
		// Asked first, because CREATE SCHEMA needs a right that the host may not have.
		var n int
		if err := c.QueryRowContext(ctx, s.q.schemaExists, s.cfg.Schema).Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			if _, err := c.ExecContext(ctx, `CREATE SCHEMA `+quote(s.cfg.Schema)); err != nil {
				return err
			}
		}
	}
	if there, err := s.exists(ctx, c, s.cfg.TablePrefix+"migrations"); there || err != nil {
		return err
	}
	create, err := BookkeepingSQL(s.cfg)
	if err != nil {
		return err
	}
	_, err = c.ExecContext(ctx, create)
	return err
}

// apply runs the step unless somebody has. With a newer schema it finds nothing to do.
func (s *Store) apply(ctx context.Context, c *txConn, m Migration) error {
	if err := s.lockSchema(ctx, c); err != nil {
		return err
	}
	var have int
	if err := c.QueryRowContext(ctx, s.q.version).Scan(&have); err != nil || have >= m.Version {
		return err
	}
	if _, err := c.ExecContext(ctx, s.q.applied, m.Version, m.Name); err != nil {
		return err
	}
	for _, statement := range m.SQL {
		if _, err := c.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// lockSchema lets one process migrate at a time. SQLite's transaction does that by itself.
func (s *Store) lockSchema(ctx context.Context, c *txConn) error {
	if s.cfg.Dialect != DialectPostgreSQL {
		return nil
	}
	h := fnv.New64a()
	h.Write([]byte("kvmbackup " + s.cfg.table("migrations")))
	_, err := c.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(h.Sum64()))
	return err
}
