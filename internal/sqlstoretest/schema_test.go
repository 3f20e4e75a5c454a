package sqlstoretest_test

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

func newStore(t testing.TB, db *sql.DB, c sqlstore.Config) *sqlstore.Store {
	t.Helper()
	st, err := sqlstore.New(t.Context(), db, c)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// TestMigrateAtOnce: every step is applied once, however many processes begin with an empty database.
func TestMigrateAtOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		const n = 6
		errs := make(chan error, n)
		for range n {
			st := newStore(t, open(), c)
			go func() { errs <- st.Migrate(t.Context()) }()
		}
		for range n {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		st := newStore(t, open(), c)
		if err := st.CheckSchema(t.Context()); err != nil {
			t.Error(err)
		}
		var applied int
		if err := open().QueryRow(`SELECT count(*) FROM ` + table(c, "migrations")).Scan(&applied); err != nil {
			t.Fatal(err)
		}
		if applied != st.SchemaVersion() {
			t.Errorf("%d migrations are on record, want %d", applied, st.SchemaVersion())
		}
	})
}

// TestMigrateFromEach: a database that an older library has made, and used, is brought up to date with its data.
func TestMigrateFromEach(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		last := newStore(t, open(), c).SchemaVersion()
		for from := 1; from < last; from++ {
			c := c
			c.TablePrefix = fmt.Sprintf("from%d_", from)
			st := newStore(t, open(), c)
			applyByHand(t, open(), c, from)
			var older *sqlstore.SchemaError
			if err := st.CheckSchema(t.Context()); !errors.As(err, &older) || older.Have != from ||
				!errors.Is(err, sqlstore.ErrSchemaOlder) {
				t.Errorf("an older schema gives %v", err)
			}
			l, err := st.AcquireLease(t.Context(), "vm", "old", time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if err := st.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := st.SetActive(t.Context(), l, "backup.x"); err != nil {
				t.Errorf("the lease didn't survive the migration: %v", err)
			}
		}
	})
}

// dialect is known by the schema in these tests.
func dialect(t testing.TB, c sqlstore.Config) sqlstore.Dialect {
	t.Helper()
	if c.Schema == "" {
		return sqlstore.DialectSQLite
	}
	return sqlstore.DialectPostgreSQL
}

// TestNotMigrated: a host that has forgotten Migrate is told so, by reads and writes.
func TestNotMigrated(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		st := newStore(t, open(), c)
		_, readErr := st.List(t.Context(), kvmbackup.Query{})
		_, writeErr := st.AcquireLease(t.Context(), "vm", "holder", time.Minute)
		for _, err := range []error{readErr, writeErr} {
			if !errors.Is(err, sqlstore.ErrSchemaOlder) || kvmbackup.Code(err) != kvmbackup.Code(kvmbackup.ErrUnavailable) {
				t.Errorf("without its tables a store gives %v", err)
			}
		}
	})
}

// TestSchemaNewer: tables of a newer library are refused, by New and by a store that was there before.
func TestSchemaNewer(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		db := open()
		st := openStore(t, db, c)
		insert := fmt.Sprintf(`INSERT INTO %s (version, name, applied_at) VALUES (99, 'from the future', '')`,
			table(c, "migrations"))
		if _, err := db.Exec(insert); err != nil {
			t.Fatal(err)
		}
		_, err := sqlstore.New(t.Context(), db, c)
		for _, err := range []error{err, st.Migrate(t.Context()), st.CheckSchema(t.Context())} {
			var newer *sqlstore.SchemaError
			if !errors.As(err, &newer) || newer.Have != 99 || newer.Want != st.SchemaVersion() ||
				!errors.Is(err, sqlstore.ErrSchemaNewer) {
				t.Errorf("a newer schema gives %v", err)
			}
		}
	})
}

// applyByHand runs the steps up to a version as a host does with a tool of its own, or as an older library did.
func applyByHand(t *testing.T, db *sql.DB, c sqlstore.Config, version int) {
	t.Helper()
	c.Dialect = dialect(t, c)
	book, err := sqlstore.BookkeepingSQL(c)
	if err != nil {
		t.Fatal(err)
	}
	steps, err := sqlstore.Migrations(c)
	if err != nil {
		t.Fatal(err)
	}
	statements := []string{book}
	if c.Schema != "" {
		statements = []string{`CREATE SCHEMA IF NOT EXISTS ` + c.Schema, book}
	}
	for _, m := range steps[:version] {
		statements = append(statements, m.SQL...)
		statements = append(statements, fmt.Sprintf(`INSERT INTO %s (version, name, applied_at) VALUES (%d, '%s', 'now')`,
			table(c, "migrations"), m.Version, m.Name))
	}
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%v\n%s", err, s)
		}
	}
}

// TestHostsTool: the statements that a host runs with a tool of its own make what Migrate makes.
func TestHostsTool(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		db := open()
		c.TablePrefix = "nas_"
		applyByHand(t, db, c, newStore(t, db, c).SchemaVersion())
		st := newStore(t, db, c)
		if err := st.CheckSchema(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := st.AcquireLease(t.Context(), "vm", "holder", time.Hour); err != nil {
			t.Error(err)
		}
	})
}

// TestPrefixes: stores with other prefixes or schemas in one database know nothing of each other.
func TestPrefixes(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		db := open()
		a, b := c, c
		a.TablePrefix, b.TablePrefix = "a_", "B_"
		for _, c := range []sqlstore.Config{a, b} {
			if _, err := openStore(t, db, c).AcquireLease(t.Context(), "vm", "holder", time.Hour); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestConfigRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, _ sqlstore.Config) {
		for _, c := range []sqlstore.Config{
			{TablePrefix: `x"; DROP TABLE users; --`},
			{TablePrefix: `a b`},
			{TablePrefix: `1a`},
			{TablePrefix: `ä`},
			{TablePrefix: "a\nb"},
			{TablePrefix: strings.Repeat("a", 31)},
			{Schema: `public"."users`},
			{Schema: `a.b`},
			{Schema: strings.Repeat("a", 64)},
			{Dialect: sqlstore.DialectSQLite, Schema: "main"},
			{Dialect: 17},
			{Dialect: -1},
		} {
			if _, err := sqlstore.New(t.Context(), open(), c); !errors.Is(err, kvmbackup.ErrInvalid) {
				t.Errorf("%+v gives %v", c, err)
			}
		}
		if _, err := sqlstore.Migrations(sqlstore.Config{}); !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Errorf("migrations without a dialect give %v", err)
		}
	})
}
