package sqlstore_test

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// TestNoTableScan: none of the statements behind Newest, VM, Begin, Complete, Children, MarkDeletePending and Remove
// reads a whole table or a whole index. Nor do a page of one VM's list and the list of what is running.
func TestNoTableScan(t *testing.T) {
	const vms, perVM = 2000, 20
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		db := open()
		st := openStore(t, db, c)
		load(t, db, st, c, vms, perVM)
		for name, q := range st.HotQueries(vmName(7), backupID(7*perVM+50)) {
			plan := explain(t, db, c, q)
			if scans(plan, c) {
				t.Errorf("%s scans:\n%s\n%s", name, q.SQL, plan)
			}
		}
		// The check itself must be able to fail.
		if plan := explain(t, db, c, sqlstore.Query{SQL: `SELECT record FROM ` + st.Table("backups") + ` WHERE record = 'x'`}); !scans(plan, c) {
			t.Errorf("a scan isn't recognized: %s", plan)
		}
	})
}

func explain(t *testing.T, db *sql.DB, c sqlstore.Config, q sqlstore.Query) string {
	t.Helper()
	verb := `EXPLAIN QUERY PLAN `
	if c.Schema != "" {
		verb = `EXPLAIN `
	}
	rows, err := db.Query(verb+q.SQL, q.Args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, q.SQL)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for rows.Next() {
		values := make([]any, len(columns))
		for i := range values {
			values[i] = new(any)
		}
		if err := rows.Scan(values...); err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprint(*values[len(values)-1].(*any)))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

// scans knows the planners' words. SQLite also says SCAN of the handful of rows of a subquery.
func scans(plan string, c sqlstore.Config) bool {
	for line := range strings.SplitSeq(plan, "\n") {
		if c.Schema != "" && strings.Contains(line, "Seq Scan") {
			return true
		}
		if c.Schema == "" && strings.HasPrefix(line, "SCAN") && !strings.Contains(line, "candidates") && !strings.Contains(line, "CONSTANT ROW") {
			return true
		}
	}
	return false
}

func vmName(i int) kvmbackup.VMID { return kvmbackup.VMID(fmt.Sprintf("vm-%06d", i)) }
func backupID(i int) kvmbackup.BackupID {
	return kvmbackup.BackupID(fmt.Sprintf("00000000-0000-4000-8000-%012d", i))
}
