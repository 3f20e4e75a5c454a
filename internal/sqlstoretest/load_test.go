package sqlstoretest_test

import (
	"database/sql"
	"fmt"
	"testing"

	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// load fills the tables by one statement each: each VM has perVM backups in chains of ten, all completed but every
// 50th, which failed, and one removal. backupID(vm*perVM+n) is the VM's n-th, from 0, its sequence n+1.
func load(t testing.TB, db *sql.DB, c sqlstore.Config, vms, perVM int) {
	t.Helper()
	series := func(n int) string {
		return fmt.Sprintf(`WITH RECURSIVE series(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM series WHERE i + 1 < %d)`, n)
	}
	vm, id := `printf('vm-%%06d', %s)`, `printf('00000000-0000-4000-8000-%%012d', %s)`
	if c.Schema != "" {
		series = func(n int) string { return fmt.Sprintf(`WITH series(i) AS (SELECT generate_series(0, %d))`, n-1) }
		vm, id = `'vm-' || lpad((%s)::text, 6, '0')`, `'00000000-0000-4000-8000-' || lpad((%s)::text, 12, '0')`
	}
	of := func(format, i string) string { return fmt.Sprintf(format, i) }
	record := `'{"id":"' || ` + of(id, "i") + ` || '","vm":"' || ` + of(vm, "i / per") + ` || '","kind":"' ||
		CASE WHEN n % 10 = 0 THEN 'full' ELSE 'incremental' END || '","status":"' || status ||
		'","chain_id":"' || ` + of(id, "i / 10") + ` ||
		'","position":' || (n % 10) || ',"parent_id":"' || coalesce(parent, '') ||
		'","checkpoint":"backup.' || n || '","repository":"nas","path":"' ||
		` + of(vm, "i / per") + ` || '/' || n || '","sequence":' || (n + 1) || ',"started_at":"2026-11-23T07:04:50Z",
		"consistency":"crash","volumes":[{"volume_id":"v","device":"vda","kind":"full","file":"root.v.qcow2",
		"virtual_size":1,"stored_size":1,"dirty_bytes":1,"source_format":"qcow2","tracked":true}]}'`
	rows := fmt.Sprintf(`, rows AS (SELECT i, i %% %[1]d AS n, %[1]d AS per,
		CASE WHEN i %% 50 = 49 THEN 'failed' ELSE 'completed' END AS status,
		CASE WHEN i %% 10 = 0 OR i %% 50 = 49 THEN NULL ELSE %[2]s END AS parent FROM series)`, perVM, of(id, "i - 1"))
	statements := []string{
		`INSERT INTO ` + table(c, "vms") +
			` (vm_id, active_checkpoint, last_sequence, last_stamp, lease_token, lease_holder, lease_expires_us) ` +
			series(vms) + fmt.Sprintf(` SELECT %s, 'backup.%d', %d, '%d', 0, '', 0 FROM series`, of(vm, "i"), perVM-2,
			perVM, perVM-1),
		`INSERT INTO ` + table(c, "backups") + ` (backup_id, vm_id, sequence, status, chain_id, parent_id, record) ` +
			series(vms*perVM) + rows +
			` SELECT ` + of(id, "i") + `, ` + of(vm, "i / per") + `, n + 1, status, ` + of(id, "i / 10") + `, parent, ` +
			record + ` FROM rows`,
		`INSERT INTO ` + table(c, "removals") + ` (backup_id, vm_id, stored_bytes, removed_us) ` + series(vms) +
			` SELECT ` + of(id, "i + 900000000") + `, ` + of(vm, "i") + `, 1, 1 FROM series`,
		`ANALYZE`,
	}
	if c.Schema != "" {
		statements = append(statements, `VACUUM ANALYZE`, `CHECKPOINT`)
	}
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%v\n%s", err, s)
		}
	}
}
