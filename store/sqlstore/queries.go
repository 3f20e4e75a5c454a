package sqlstore

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// queries are all statements of the store but those that List composes.
type queries struct {
	begin, now                             string
	exists, schemaExists, version, applied string

	vm, vmNow, vmLocked, vmWith, vmWithRunning, vmNew, vmSet    string
	acquire, renew, release                                     string
	backup, put, putNew, remove, running, hasChildren, sequence string
	putSet, putNewSet                                           string // put and vmSet in one; only where the dialect can
	newest, children, list, noStatus, parentless                string
	removalAdd, removals, removalAck                            string
}

// vmColumns are what scanVM reads.
const vmColumns = `active_checkpoint, last_sequence, last_stamp, lease_token, lease_holder, lease_expires_us`

// rowColumns are what scanBackup reads.
const rowColumns = `backup_id, vm_id, sequence, status, chain_id, parent_id, record`

// noStatus is one condition for each gap between the statuses: all of them together find the rows whose status isn't
// one. Each is one descent of the index.
func noStatus() []string {
	statuses := []string{"completed", "delete-pending", "failed", "running"}
	gaps := []string{"status < 'completed'", "status > 'running'"}
	for i := range statuses[1:] {
		gaps = append(gaps, fmt.Sprintf("status > '%s' AND status < '%s'", statuses[i], statuses[i+1]))
	}
	return gaps
}

// noStatusArgs is how often noStatusOf wants the VM.
var noStatusArgs = 2 * len(noStatus())

// noStatusOf finds the rows of a VM, or for "" of all, whose status isn't one.
func noStatusOf() string {
	var each []string
	for _, gap := range noStatus() {
		each = append(each, "("+gap+" AND (vm_id = ? OR ? = ''))")
	}
	return strings.Join(each, " OR ")
}

// times repeats the VM for noStatusOf.
func times(n int, vm kvmbackup.VMID) []any {
	args := make([]any, n)
	for i := range args {
		args[i] = vm
	}
	return args
}

// newQueries fills in the names of tables, and numbers the placeholders where the dialect wants that.
func newQueries(c Config) queries {
	q := queries{
		begin:  `BEGIN`,
		now:    `SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)`,
		exists: `SELECT count(*) FROM information_schema.tables WHERE table_name = ? AND table_schema = ` + schemaOf(c),

		schemaExists: `SELECT count(*) FROM information_schema.schemata WHERE schema_name = ?`,
		version:      `SELECT coalesce(max(version), 0) FROM {migrations}`,
		applied:      `INSERT INTO {migrations} (version, name, applied_at) VALUES (?, ?, CAST(CURRENT_TIMESTAMP AS TEXT))`,

		vm: `SELECT ` + vmColumns + ` FROM {vms} WHERE vm_id = ?`,
		vmNew: `INSERT INTO {vms} (vm_id, ` + vmColumns + `)
			VALUES (?, '', 0, '', 0, '', 0) ON CONFLICT (vm_id) DO NOTHING`,
		vmSet: `UPDATE {vms} SET active_checkpoint = ?, last_sequence = ?, last_stamp = ?, lease_token = ?, lease_holder = ?,
			lease_expires_us = ? WHERE vm_id = ?`,

		backup: `SELECT ` + rowColumns + ` FROM {backups} WHERE backup_id = ?`,
		put: `INSERT INTO {backups} AS b (` + rowColumns + `) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (backup_id) DO UPDATE SET sequence = excluded.sequence, status = excluded.status,
			chain_id = excluded.chain_id, parent_id = excluded.parent_id, record = excluded.record
			WHERE b.vm_id = excluded.vm_id`,
		putNew: `INSERT INTO {backups} (` + rowColumns + `) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT DO NOTHING`,
		remove:      `DELETE FROM {backups} WHERE backup_id = ?`,
		running:     `SELECT 1 FROM {backups} WHERE vm_id = ? AND status = 'running' LIMIT 1`,
		hasChildren: `SELECT 1 FROM {backups} WHERE parent_id = ? LIMIT 1`,
		sequence:    `SELECT 1 FROM {backups} WHERE vm_id = ? AND sequence = ? LIMIT 1`,

		// Two descents of the index on status, instead of a walk over failed records.
		newest: `SELECT ` + rowColumns + ` FROM {backups} WHERE vm_id = ? AND sequence = (SELECT max(n) FROM (
			SELECT max(sequence) AS n FROM {backups} WHERE status = 'completed' AND vm_id = ? UNION ALL
			SELECT max(sequence) AS n FROM {backups} WHERE status = 'delete-pending' AND vm_id = ?) AS candidates)`,
		children: `SELECT ` + rowColumns + ` FROM {backups} WHERE parent_id = ? ORDER BY sequence`,
		list:     `SELECT ` + rowColumns + ` FROM {backups} AS b`,

		noStatus: `SELECT ` + rowColumns + ` FROM {backups} WHERE ` + noStatusOf(),
		// The backups of the same chain that say that they have no parent.
		parentless: `SELECT ` + rowColumns + ` FROM {backups} WHERE parent_id IS NULL AND
			chain_id = (SELECT chain_id FROM {backups} WHERE backup_id = ?)`,

		removalAdd: `INSERT INTO {removals} (backup_id, vm_id, stored_bytes, removed_us) VALUES (?, ?, ?, ?)`,
		removals:   `SELECT backup_id, vm_id, stored_bytes, removed_us FROM {removals} ORDER BY removal_id`,
		removalAck: `DELETE FROM {removals} WHERE backup_id = ?`,
	}
	if c.Dialect == DialectSQLite {
		q.begin = `BEGIN IMMEDIATE`
		// strftime has milliseconds; 'now' is the same throughout a statement.
		q.now = `SELECT CAST(strftime('%s', 'now') AS INTEGER) * 1000000 +
			CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000`
		q.exists = `SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?`
	}
	q.ofLease(c.Dialect)
	q.ofVM(c.Dialect)
	q.each(c.expand)
	return q
}

// ofLease are single statements, each a transaction of its own: what they don't find as it should be they leave alone,
// and then the rules say why. Their clock is asked when the VM's row, or SQLite's file, is locked.
func (q *queries) ofLease(d Dialect) {
	now := q.clock()
	q.acquire = `INSERT INTO {vms} AS v (vm_id, ` + vmColumns + `)
		VALUES (?, '', 0, '', 1, ?, ` + now + ` + ?) ON CONFLICT (vm_id) DO UPDATE SET lease_token = v.lease_token + 1,
		lease_holder = excluded.lease_holder, lease_expires_us = ` + now + ` + ?
		WHERE v.lease_expires_us <= ` + now + ` AND ` + sound(d, "v.") + `
		RETURNING lease_token, lease_expires_us`
	mine := ` WHERE vm_id = ? AND lease_token = ? AND ` + sound(d, "")
	q.release = `UPDATE {vms} SET lease_expires_us = 0` + mine
	q.renew = `UPDATE {vms} SET lease_expires_us = ` + now + ` + ?` + mine + ` AND lease_expires_us > ` + now +
		` RETURNING lease_expires_us`
	if d == DialectSQLite { // its clock is this machine's
		q.renew = `UPDATE {vms} SET lease_expires_us = ?` + mine + ` AND lease_expires_us > ` + now
	}
	q.vmNow = `SELECT ` + vmColumns + `, ` + now + ` FROM {vms} WHERE vm_id = ?`
}

// sound says that scanVM could read the row: SQLite keeps whatever somebody wrote.
func sound(d Dialect, table string) string {
	var each []string
	for _, column := range []string{"last_sequence", "lease_token", "lease_expires_us"} {
		if d == DialectSQLite {
			each = append(each, `typeof(`+table+column+`) = 'integer'`)
		}
		each = append(each, table+column+` >= 0`)
	}
	return strings.Join(each, ` AND `)
}

// ofVM read the VM's row within a transaction, the clock, and what the rules are going to ask for. The row is locked
// before the clock is asked: in PostgreSQL by a query of its own below. Records are locked there, too, so that they are
// read as they are then.
func (q *queries) ofVM(d Dialect) {
	now := q.clock()
	named, active := `backup_id IN (?, ?)`, `(status = 'running' AND vm_id = ?) OR `+noStatusOf()
	if d == DialectSQLite {
		q.vmLocked = q.vmNow
		with := func(where string) string {
			return `SELECT ` + vmColumns + `, ` + now + strings.Repeat(`, NULL`, columnsOf(rowColumns)) +
				` FROM {vms} WHERE vm_id = ? UNION ALL
				SELECT ` + strings.Repeat(`NULL, `, columnsOf(vmColumns)+1) + rowColumns + ` FROM {backups} WHERE ` + where
		}
		q.vmWith, q.vmWithRunning = with(named), with(named+` OR `+active)
		q.putSet, q.putNewSet = q.put, q.putNew // vmSet follows
		return
	}
	locked := `(` + q.vm + ` FOR UPDATE) AS v`
	q.vmLocked = `SELECT ` + vmColumns + `, ` + now + ` FROM ` + locked
	with := func(where string) string {
		return `SELECT ` + vmColumns + `, ` + now + `, ` + rowColumns + ` FROM ` + locked +
			` LEFT JOIN LATERAL (SELECT ` + rowColumns +
			` FROM {backups} WHERE ` + where + ` FOR UPDATE) AS b ON true`
	}
	q.vmWith, q.vmWithRunning = with(named), with(named+` OR `+active)
	both := func(put string) string {
		return `WITH p AS (` + put + ` RETURNING 1), s AS (` + q.vmSet + `) SELECT count(*) FROM p`
	}
	q.putSet, q.putNewSet = both(q.put), both(q.putNew)
}

// clock is the expression of now, not a query of its own, which would be asked once, and before a row is locked.
func (q *queries) clock() string { return strings.TrimPrefix(q.now, `SELECT `) }

func columnsOf(list string) int { return strings.Count(list, ",") + 1 }

func schemaOf(c Config) string {
	if c.Schema == "" {
		return `current_schema()`
	}
	return `?`
}

// each rewrites every statement.
func (q *queries) each(rewrite func(string) string) {
	for _, s := range []*string{&q.begin, &q.now, &q.exists, &q.schemaExists, &q.version, &q.applied, &q.vm,
		&q.vmLocked, &q.vmNew,
		&q.vmSet, &q.vmNow, &q.vmWith, &q.vmWithRunning, &q.acquire, &q.renew, &q.release, &q.putNew, &q.putSet, &q.putNewSet,
		&q.backup, &q.put, &q.remove, &q.running, &q.hasChildren, &q.sequence, &q.newest, &q.children, &q.list,
		&q.noStatus, &q.parentless,
		&q.removalAdd, &q.removals, &q.removalAck} {
		*s = rewrite(*s)
	}
}

// expand puts the tables' names for {NAME} and, except for SQLite, $1, $2 ... for the question marks.
func (c Config) expand(sql string) string {
	for _, name := range []string{"migrations", "vms", "backups", "removals"} {
		sql = strings.ReplaceAll(sql, "{"+name+"}", c.table(name))
	}
	if c.Dialect == DialectSQLite {
		return sql
	}
	var out strings.Builder
	for i, part := range strings.Split(sql, "?") {
		if i > 0 {
			fmt.Fprint(&out, "$", strconv.Itoa(i))
		}
		out.WriteString(part)
	}
	return out.String()
}
