package sqlstore

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// Dialect is the database's way of speaking SQL.
type Dialect int

// The dialects.
const (
	// DialectUnknown lets New ask the database.
	DialectUnknown Dialect = iota
	DialectSQLite
	DialectPostgreSQL
)

// String returns the dialect's name.
func (d Dialect) String() string {
	names := []string{"unknown", "SQLite", "PostgreSQL"}
	if d < 0 || int(d) >= len(names) {
		return fmt.Sprintf("Dialect(%d)", int(d))
	}
	return names[d]
}

// Config says where the tables are. New copies it.
type Config struct {
	// Dialect of the database. Defaults to asking the database.
	Dialect Dialect
	// Schema holds the tables. It must be empty with SQLite; otherwise defaults to the first of the
	// connection's search path. Migrate creates it when it is missing.
	Schema string
	// TablePrefix begins the name of every table and index. Up to 30 ASCII letters, digits and underscores,
	// not beginning with a digit. Defaults to "kvmbackup_".
	TablePrefix string
	// Connections is how many connections of the pool the store uses at once, at least 1; a call that finds none free
	// waits inside the store, as long as its context. A pool without SetMaxOpenConns opens as many as are asked for, and a
	// server refuses what is beyond its own limit. Processes on one database need this many each. Defaults to 16.
	Connections int
	// Retryable says of a driver's error that the transaction lost a conflict and can be repeated. The
	// store knows the errors of pgx and lib/pq (SQLSTATE 40001, 40P01) and of modernc.org/sqlite (SQLITE_BUSY,
	// SQLITE_LOCKED) by itself. Defaults to no others.
	Retryable func(error) bool
}

var (
	prefixPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,29}$`)
	schemaPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
)

// withDefaults fills in what is empty; errors are ErrInvalid.
func (c Config) withDefaults() (Config, error) {
	if c.TablePrefix == "" {
		c.TablePrefix = "kvmbackup_"
	}
	if c.Connections == 0 {
		c.Connections = defaultConnections
	}
	if c.Connections < 0 {
		return c, fmt.Errorf("%w: %d connections", kvmbackup.ErrInvalid, c.Connections)
	}
	if !prefixPattern.MatchString(c.TablePrefix) {
		return c, fmt.Errorf("%w table prefix %q: up to 30 letters, digits and underscores", kvmbackup.ErrInvalid,
			c.TablePrefix)
	}
	if c.Schema != "" && !schemaPattern.MatchString(c.Schema) {
		return c, fmt.Errorf("%w schema %q: up to 63 letters, digits and underscores", kvmbackup.ErrInvalid, c.Schema)
	}
	if c.Schema != "" && c.Dialect == DialectSQLite {
		return c, fmt.Errorf("%w schema %q: SQLite has none; use a table prefix", kvmbackup.ErrInvalid, c.Schema)
	}
	if c.Dialect < DialectSQLite || c.Dialect > DialectPostgreSQL {
		return c, fmt.Errorf("%w: %v can't be had", kvmbackup.ErrInvalid, c.Dialect)
	}
	return c, nil
}

// detect asks the database what it is.
func (s *Store) detect(ctx context.Context) (Dialect, error) {
	_, err := s.ask(ctx, `SELECT sqlite_version()`)
	if err == nil {
		return DialectSQLite, nil
	}
	version, errVersion := s.ask(ctx, `SELECT version()`)
	switch {
	case errVersion != nil && errVersion.Error() == err.Error():
		return DialectUnknown, fmt.Errorf("ask the database what it is: %w", err)
	case errVersion != nil:
		return DialectUnknown, fmt.Errorf("ask the database what it is: %w; %w", err, errVersion)
	case strings.HasPrefix(version, "PostgreSQL"):
		return DialectPostgreSQL, nil
	}
	return DialectUnknown, fmt.Errorf("database %q: %w: set Config.Dialect to the one that it speaks", version,
		kvmbackup.ErrUnsupported)
}

// ask returns the one value of a query.
func (s *Store) ask(ctx context.Context, query string) (value string, err error) {
	err = s.retry(ctx, func() error { return s.db.QueryRowContext(ctx, query).Scan(&value) })
	return value, err
}
