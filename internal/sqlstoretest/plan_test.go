package sqlstoretest_test

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// TestNoTableScan: no statement of the methods that have to cost the same with ten and with a million backups reads a
// whole table or a whole index.
func TestNoTableScan(t *testing.T) {
	lab.Further(t)
	const vms, perVM = 2000, 20
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		db := open()
		openStore(t, db, c)
		load(t, db, c, vms, perVM)
		queries := statements(t, db, c, vmName(7), backupID(7*perVM+5))
		if len(queries) < 15 {
			t.Errorf("only %d statements were seen", len(queries))
		}
		for query, args := range queries {
			if plan := explain(t, db, c, query, args...); scans(plan, c) {
				t.Errorf("scans:\n%s\n%s", query, plan)
			}
		}
		// The check itself must be able to fail.
		if plan := explain(t, db, c, `SELECT record FROM `+table(c, "backups")+` WHERE record = 'x'`); !scans(plan, c) {
			t.Errorf("a scan isn't recognized: %s", plan)
		}
	})
}

// statements returns what the methods have the database do for a VM, and for the backup where they ask for one, with
// the arguments of one time each.
func statements(t *testing.T, db *sql.DB, c sqlstore.Config, vm kvmbackup.VMID,
	id kvmbackup.BackupID) map[string][]any {
	t.Helper()
	out := map[string][]any{}
	c.Dialect = dialect(t, c)
	dsn := sqliteDSN(fileOf(t, db, c))
	if c.Schema != "" {
		dsn = testpg.DSN(t)
	}
	st := newStore(t, openWatched(t, watched{db.Driver(), dsn, func(query string, args []driver.NamedValue) error {
		for query := range strings.SplitSeq(query, "; ") { // which no statement contains
			switch verb, _, _ := strings.Cut(query, " "); verb {
			case "SELECT", "INSERT", "UPDATE", "DELETE", "WITH":
				out[query] = nil
				for _, a := range args {
					out[query] = append(out[query], a.Value)
				}
			}
		}
		return nil
	}}), c)
	clear(out) // New may look at the whole schema

	ctx := t.Context()
	l, err := st.AcquireLease(ctx, vm, "holder", time.Hour)
	lab.OK(t, err)
	b, err := st.Begin(ctx, l, kvmbackup.Backup{
		ID: kvmbackup.NewBackupID(), VM: vm, Kind: kvmbackup.KindFull, Status: kvmbackup.StatusRunning,
		ChainID: kvmbackup.NewChainID(), Checkpoint: "backup.new", Path: string(vm) + "/new", StartedAt: time.Unix(1, 0),
		Volumes: []kvmbackup.VolumeBackup{{VolumeID: "v", Kind: kvmbackup.KindFull, File: "v.qcow2"}},
	})
	lab.OK(t, err)
	_, err = st.List(ctx, kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
	lab.OK(t, err)
	_, err = st.List(ctx, kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning, kvmbackup.StatusDeletePending},
	})
	lab.OK(t, err)
	_, err = st.List(ctx, kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusDeletePending}, Leaves: true})
	lab.OK(t, err)
	l, err = st.RenewLease(ctx, l, time.Hour)
	lab.OK(t, err)
	b.Status = kvmbackup.StatusCompleted
	lab.OK(t, st.Complete(ctx, l, b))
	_, err = st.VM(ctx, vm)
	lab.OK(t, err)
	_, err = st.Newest(ctx, vm)
	lab.OK(t, err)
	_, err = st.Backup(ctx, id)
	lab.OK(t, err)
	_, err = st.Children(ctx, id)
	lab.OK(t, err)
	_, err = st.List(ctx, kvmbackup.Query{VM: vm, AfterSequence: 5, Limit: 10})
	lab.OK(t, err)
	lab.OK(t, st.MarkDeletePending(ctx, l, b.ID))
	lab.OK(t, st.Remove(ctx, l, b.ID, 7))
	lab.OK(t, st.AckRemoval(ctx, b.ID))
	lab.OK(t, st.ReleaseLease(ctx, l))
	return out
}

func fileOf(t *testing.T, db *sql.DB, c sqlstore.Config) (file string) {
	t.Helper()
	if c.Schema == "" {
		lab.OK(t, db.QueryRow(`SELECT file FROM pragma_database_list`).Scan(&file))
	}
	return file
}

func explain(t *testing.T, db *sql.DB, c sqlstore.Config, query string, args ...any) string {
	t.Helper()
	verb := `EXPLAIN QUERY PLAN `
	if c.Schema != "" {
		verb = `EXPLAIN `
	}
	rows, err := db.Query(verb+query, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, query)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	lab.OK(t, err)
	var out []string
	for rows.Next() {
		values := make([]any, len(columns))
		for i := range values {
			values[i] = new(any)
		}
		lab.OK(t, rows.Scan(values...))
		out = append(out, fmt.Sprint(*values[len(values)-1].(*any)))
	}
	lab.OK(t, rows.Err())
	return strings.Join(out, "\n")
}

// scans knows the planners' words. SQLite also says SCAN of the handful of rows of a subquery.
func scans(plan string, c sqlstore.Config) bool {
	for line := range strings.SplitSeq(plan, "\n") {
		if c.Schema != "" && strings.Contains(line, "Seq Scan") {
			return true
		}
		if c.Schema == "" && strings.HasPrefix(line, "SCAN") && !strings.Contains(line, "candidates") &&
			!strings.Contains(line, "CONSTANT ROW") {
			return true
		}
	}
	return false
}

func vmName(i int) kvmbackup.VMID { return kvmbackup.VMID(fmt.Sprintf("vm-%06d", i)) }
func backupID(i int) kvmbackup.BackupID {
	return kvmbackup.BackupID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i))
}
