package sqlstore

import (
	"fmt"
	"strconv"
	"strings"
)

// queries are all statements of the store but those that List composes.
type queries struct {
	begin, now                             string
	exists, schemaExists, version, applied string

	vm, vmLocked, vmNew, vmSet                          string
	backup, put, remove, running, hasChildren, sequence string
	newest, children, list, noStatus, parentless        string
	removalAdd, removals, removalAck                    string
}

// rowColumns are what scanBackup reads.
const rowColumns = `backup_id, vm_id, sequence, status, chain_id, parent_id, record`

// noStatusQuery finds the rows of a VM, or for "" of all, whose status is none. It looks into the gaps between the statuses, each of which is
// one descent of the index.
func noStatusQuery() string {
	statuses := []string{"completed", "delete-pending", "failed", "running"}
	gaps := []string{"status < 'completed'", "status > 'running'"}
	for i := range statuses[1:] {
		gaps = append(gaps, fmt.Sprintf("status > '%s' AND status < '%s'", statuses[i], statuses[i+1]))
	}
	return `SELECT ` + rowColumns + ` FROM {backups} WHERE (` + strings.Join(gaps, " OR ") + `) AND (vm_id = ? OR ? = '')`
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

		vm: `SELECT active_checkpoint, last_sequence, last_stamp, lease_token, lease_holder, lease_expires_us FROM {vms} WHERE vm_id = ?`,
		vmNew: `INSERT INTO {vms} (vm_id, active_checkpoint, last_sequence, last_stamp, lease_token, lease_holder, lease_expires_us)
			VALUES (?, '', 0, '', 0, '', 0) ON CONFLICT (vm_id) DO NOTHING`,
		vmSet: `UPDATE {vms} SET active_checkpoint = ?, last_sequence = ?, last_stamp = ?, lease_token = ?, lease_holder = ?,
			lease_expires_us = ? WHERE vm_id = ?`,

		backup: `SELECT ` + rowColumns + ` FROM {backups} WHERE backup_id = ?`,
		put: `INSERT INTO {backups} AS b (backup_id, vm_id, sequence, status, chain_id, parent_id, record) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (backup_id) DO UPDATE SET sequence = excluded.sequence, status = excluded.status, chain_id = excluded.chain_id,
			parent_id = excluded.parent_id, record = excluded.record WHERE b.vm_id = excluded.vm_id`,
		remove:      `DELETE FROM {backups} WHERE backup_id = ?`,
		running:     `SELECT 1 FROM {backups} WHERE vm_id = ? AND status = 'running' LIMIT 1`,
		hasChildren: `SELECT 1 FROM {backups} WHERE parent_id = ? LIMIT 1`,
		sequence:    `SELECT 1 FROM {backups} WHERE vm_id = ? AND sequence = ? LIMIT 1`,

		// Two descents of the index on status, instead of a walk over failed records.
		newest: `SELECT ` + rowColumns + ` FROM {backups} WHERE vm_id = ? AND sequence = (SELECT max(n) FROM (
			SELECT max(sequence) AS n FROM {backups} WHERE status = 'completed' AND vm_id = ? UNION ALL
			SELECT max(sequence) AS n FROM {backups} WHERE status = 'delete-pending' AND vm_id = ?) AS candidates)`,
		children: `SELECT ` + rowColumns + ` FROM {backups} WHERE parent_id = ? ORDER BY sequence`,
		list:     `SELECT ` + rowColumns + ` FROM {backups}`,

		noStatus: noStatusQuery(),
		// The backups of the same chain that say that they have no parent.
		parentless: `SELECT ` + rowColumns + ` FROM {backups} WHERE parent_id IS NULL AND
			chain_id = (SELECT chain_id FROM {backups} WHERE backup_id = ?)`,

		removalAdd: `INSERT INTO {removals} (backup_id, vm_id, stored_bytes, removed_us) VALUES (?, ?, ?, ?)`,
		removals:   `SELECT backup_id, vm_id, stored_bytes, removed_us FROM {removals} ORDER BY removal_id`,
		removalAck: `DELETE FROM {removals} WHERE backup_id = ?`,
	}
	q.vmLocked = q.vm + ` FOR UPDATE`
	if c.Dialect == DialectSQLite {
		q.begin, q.vmLocked = `BEGIN IMMEDIATE`, q.vm
		// strftime has milliseconds; 'now' is the same throughout a statement.
		q.now = `SELECT CAST(strftime('%s', 'now') AS INTEGER) * 1000000 + CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000`
		q.exists = `SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?`
	}
	q.each(c.expand)
	return q
}

func schemaOf(c Config) string {
	if c.Schema == "" {
		return `current_schema()`
	}
	return `?`
}

// each rewrites every statement.
func (q *queries) each(rewrite func(string) string) {
	for _, s := range []*string{&q.begin, &q.now, &q.exists, &q.schemaExists, &q.version, &q.applied, &q.vm, &q.vmLocked, &q.vmNew,
		&q.vmSet, &q.backup, &q.put, &q.remove, &q.running, &q.hasChildren, &q.sequence, &q.newest, &q.children, &q.list,
		&q.noStatus, &q.parentless,
		&q.removalAdd, &q.removals, &q.removalAck} {
		*s = rewrite(*s)
	}
}

// expand puts the tables' names for {NAME} and, but for SQLite, $1, $2 ... for the question marks.
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
