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
	driver, dsn := "pgx", a.store
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		file, err := storeFile(a.store, s.repo.ID())
		if err != nil {
			return nil, err
		}
		driver, dsn = "sqlite", sqliteDSN(file)
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	s.closers = append(s.closers, db.Close)
	store, err := sqlstore.New(ctx, db, sqlstore.Config{})
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	if err := store.Migrate(ctx); err != nil {
		return nil, fmt.Errorf("prepare the store's tables: %w", err)
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
