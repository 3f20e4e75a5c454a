package enginetest_test

import (
	"context"
	"database/sql"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
	"github.com/kvmbackup/kvmbackup/store/memstore"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

// testStore is a kind of store that deletions are raced and broken off on.
type testStore struct {
	name     string
	inMemory bool
	// prepare returns what empties the store and opens it twice, as two processes do.
	prepare func(t *testing.T) func(t lab.TB) [2]kvmbackup.Store
}

var testStores = []testStore{
	{"memory", true, func(*testing.T) func(lab.TB) [2]kvmbackup.Store {
		return func(lab.TB) [2]kvmbackup.Store {
			s := memstore.New()
			return [2]kvmbackup.Store{s, s}
		}
	}},
	{"key-value", true, func(*testing.T) func(lab.TB) [2]kvmbackup.Store {
		return func(t lab.TB) (s [2]kvmbackup.Store) {
			table := &details{rows: map[kvstore.Object]map[string]string{}}
			for i := range s {
				var err error
				s[i], err = kvstore.New(table, kvstore.Config{Now: func(context.Context) (time.Time, error) {
					return time.Now(), nil
				}})
				lab.OK(t, err)
			}
			return s
		}
	}},
	{"SQLite", false, func(t *testing.T) func(lab.TB) [2]kvmbackup.Store {
		file := filepath.Join(t.TempDir(), "backups.db")
		return prepareSQL(t, "sqlite",
			"file:"+file+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(OFF)", sqlstore.Config{})
	}},
	{"PostgreSQL", false, func(t *testing.T) func(lab.TB) [2]kvmbackup.Store {
		return prepareSQL(t, "pgx", testpg.DSN(t), sqlstore.Config{Schema: strings.ReplaceAll(t.Name(), "/", "_")})
	}},
}

// onStores runs the test on every kind of store.
func onStores(t *testing.T, test func(t *testing.T, s testStore, fresh func(t lab.TB) [2]kvmbackup.Store)) {
	t.Helper()
	t.Parallel()
	for _, s := range testStores {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, s, s.prepare(t))
		})
	}
}

// onStoresWhenFull keeps to the store in memory in the quick tier: of the others it would only be a slow, long history.
func onStoresWhenFull(t *testing.T, test func(t *testing.T, s testStore, fresh func(t lab.TB) [2]kvmbackup.Store)) {
	t.Helper()
	if s := testStores[0]; !lab.Thorough() {
		test(t, s, s.prepare(t))
		return
	}
	onStores(t, test)
}

func prepareSQL(t *testing.T, driver, dsn string, c sqlstore.Config) func(t lab.TB) [2]kvmbackup.Store {
	t.Helper()
	var dbs [2]*sql.DB
	var stores [2]kvmbackup.Store
	for i := range stores {
		db, err := sql.Open(driver, dsn)
		lab.OK(t, err)
		t.Cleanup(func() { _ = db.Close() })
		s, err := sqlstore.New(t.Context(), db, c)
		lab.OK(t, err)
		lab.OK(t, s.Migrate(t.Context()))
		dbs[i], stores[i] = db, s
	}
	return func(t lab.TB) [2]kvmbackup.Store {
		for _, table := range []string{"removals", "backups", "vms"} {
			name := "kvmbackup_" + table
			if c.Schema != "" {
				name = `"` + c.Schema + `".` + name
			}
			_, err := dbs[0].ExecContext(t.Context(), "DELETE FROM "+name)
			lab.OK(t, err)
		}
		return stores
	}
}

// details is a host's table of details in memory.
type details struct {
	mu   sync.Mutex
	rows map[kvstore.Object]map[string]string
}

func (d *details) Get(ctx context.Context, o kvstore.Object, key string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rows[o][key], ctx.Err()
}

func (d *details) Set(ctx context.Context, o kvstore.Object, key, value string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() == nil {
		d.set(o, key, value)
	}
	return ctx.Err()
}

func (d *details) set(o kvstore.Object, key, value string) {
	if d.rows[o] == nil {
		d.rows[o] = map[string]string{}
	}
	d.rows[o][key] = value
}

func (d *details) Remove(ctx context.Context, o kvstore.Object, key string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() == nil {
		delete(d.rows[o], key)
	}
	return ctx.Err()
}

func (d *details) List(ctx context.Context, o kvstore.Object) (map[string]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.rows[o]), ctx.Err()
}

func (d *details) CompareAndSet(ctx context.Context, o kvstore.Object, key, old, value string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() != nil || d.rows[o][key] != old {
		return false, ctx.Err()
	}
	d.set(o, key, value)
	return true, nil
}

func (d *details) Find(ctx context.Context, kind kvstore.ObjectKind, key string) (ids []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for o, row := range d.rows {
		if o.Kind == kind && row[key] != "" {
			ids = append(ids, o.ID)
		}
	}
	return ids, ctx.Err()
}
