// Package sqlstore is a [kvmbackup.Store] in an SQL database that the host has: PostgreSQL or SQLite.
//
// The host opens the database with the driver that it uses anyway and hands over the *sql.DB; this package
// imports no driver:
//
//	st, err := sqlstore.New(ctx, db, sqlstore.Config{TablePrefix: "nas_"})
//	err = st.Migrate(ctx)
//
// The tables come from versioned migrations. The store applies them with [Store.Migrate], or the host's own
// tool does with the statements of [Migrations].
//
// Leases go by the database's clock, so the clocks of the hosts needn't agree. With SQLite that is the clock
// of the machine, on which all processes that share the file must run.
//
// # SQLite
//
// The file must be on a local disk. A good DSN for modernc.org/sqlite is
//
//	file:/var/lib/host/backups.db?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(FULL)
//
// With WAL, readers and the writer don't wait for each other. synchronous must not be OFF, nor NORMAL if a record must
// outlive a power cut. Several processes may share the file: every write begins with BEGIN IMMEDIATE. For that the
// store waits by itself, whatever busy_timeout says, because SQLite's own wait doesn't heed a context.
package sqlstore
