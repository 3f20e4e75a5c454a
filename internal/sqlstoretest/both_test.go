package sqlstoretest_test

import (
	"cmp"
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// onBoth runs the test on SQLite and PostgreSQL; open gives another pool on the same database.
func onBoth(t *testing.T, test func(t *testing.T, open func() *sql.DB, c sqlstore.Config)) {
	t.Run("SQLite", func(t *testing.T) {
		dsn := sqliteDSN(filepath.Join(t.TempDir(), "backups.db"))
		test(t, func() *sql.DB { return openDB(t, "sqlite", dsn) }, sqlstore.Config{})
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		dsn := testpg.DSN(t)
		test(t, func() *sql.DB { return openDB(t, "pgx", dsn) }, freshSchema())
	})
}

// table is a table's full name in statements.
func table(c sqlstore.Config, name string) string {
	name = `"` + cmp.Or(c.TablePrefix, "kvmbackup_") + name + `"`
	if c.Schema == "" {
		return name
	}
	return `"` + c.Schema + `".` + name
}

// pgOption is the server's DSN with an option for every connection.
func pgOption(t *testing.T, option string) string {
	t.Helper()
	return testpg.DSN(t) + " options='-c " + option + "'"
}
