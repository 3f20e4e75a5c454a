package main

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "modernc.org/sqlite"             // the driver "sqlite"

	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// openStore opens the records and brings the tables up to date.
func (a *app) openStore(ctx context.Context, s *session) (*sqlstore.Store, error) {
	driver, dsn, name := "pgx", a.store, "in PostgreSQL" // a URL may have a password; pgx says which server it is
	switch scheme, _, isURL := strings.Cut(a.store, "://"); {
	case !isURL:
		file, err := storeFile(a.store, s.repo.ID())
		if err != nil {
			return nil, err
		}
		driver, dsn, name = "sqlite", sqliteDSN(file), file
	case scheme != "postgres" && scheme != "postgresql":
		return nil, usage("the store is a FILE or postgres://..., not %s://...", scheme)
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return nil, fmt.Errorf("open the store %s: %w", name, err)
	}
	s.closers = append(s.closers, db.Close)
	if err := db.PingContext(ctx); err != nil {
		return nil, fmt.Errorf("open the store %s: %w", name, err)
	}
	store, err := sqlstore.New(ctx, db, sqlstore.Config{})
	if err == nil {
		err = store.Migrate(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare the store %s: %w", name, err)
	}
	return store, nil
}

// storeFile is the SQLite file. The default is on a local disk, as SQLite's locks are not to be trusted on a NAS, and
// belongs to the repository's ID, wherever that is mounted.
func storeFile(given, repositoryID string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	dir := "/var/lib/nasbackup"
	if os.Geteuid() != 0 {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("no place for the store, name it with --store: %w", err)
		}
		dir = filepath.Join(cmp.Or(os.Getenv("XDG_STATE_HOME"), filepath.Join(home, ".local", "state")), "nasbackup")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return filepath.Join(dir, repositoryID+".db"), nil
}

func sqliteDSN(file string) string {
	pragmas := url.Values{"_pragma": {"journal_mode(WAL)", "busy_timeout(10000)", "synchronous(FULL)"}}
	return (&url.URL{Scheme: "file", Path: file, RawQuery: pragmas.Encode()}).String()
}
