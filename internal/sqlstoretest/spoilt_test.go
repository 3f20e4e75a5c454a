package sqlstoretest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// spoilt is a database with a full, an incremental on it and a removal, of which somebody has spoilt one row.
type spoilt struct {
	db        *sql.DB
	c         sqlstore.Config
	st        *sqlstore.Store
	l         kvmbackup.Lease
	full, inc kvmbackup.Backup
}

func newSpoilt(t *testing.T, db *sql.DB, c sqlstore.Config) *spoilt {
	t.Helper()
	s := &spoilt{db: db, c: c, st: openStore(t, db, c)}
	var err error
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.l, err = s.st.AcquireLease(t.Context(), "vm", "holder", time.Hour)
	must(err)
	begin := func(n int, parent kvmbackup.Backup) kvmbackup.Backup {
		b := kvmbackup.Backup{ID: kvmbackup.NewBackupID(), VM: "vm", Kind: kvmbackup.KindFull,
			Status: kvmbackup.StatusRunning, ChainID: kvmbackup.NewChainID(), Checkpoint: "backup.c",
			Path: fmt.Sprintf("vm/%d", n), StartedAt: time.Unix(1, 0), Volumes: []kvmbackup.VolumeBackup{
				{VolumeID: "v", Kind: kvmbackup.KindFull, File: "v.qcow2"},
			}}
		if parent.ID != "" {
			b.Kind, b.ChainID, b.ParentID, b.Position = kvmbackup.KindIncremental, parent.ChainID, parent.ID, 1
		}
		b, err := s.st.Begin(t.Context(), s.l, b)
		must(err)
		b.Status = kvmbackup.StatusCompleted
		must(s.st.Complete(t.Context(), s.l, b))
		return b
	}
	gone := begin(1, kvmbackup.Backup{})
	must(s.st.MarkDeletePending(t.Context(), s.l, gone.ID))
	must(s.st.Remove(t.Context(), s.l, gone.ID, 7))
	s.full = begin(2, kvmbackup.Backup{})
	s.inc = begin(3, s.full)
	return s
}

// exec runs a statement with the tables' names in braces and one argument, and must change one row.
func (s *spoilt) exec(t *testing.T, c sqlstore.Config, statement string, arg any) {
	t.Helper()
	for _, name := range []string{"backups", "vms", "removals"} {
		statement = strings.ReplaceAll(statement, "{"+name+"}", table(s.c, name))
	}
	if c.Schema != "" {
		statement = strings.ReplaceAll(statement, "?", "$1")
	}
	res, err := s.db.Exec(statement, arg)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := res.RowsAffected(); n != 1 || err != nil {
		t.Fatalf("%d rows, %v", n, err)
	}
}

// dump is every row of the tables as they are.
func (s *spoilt) dump(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, name := range []string{"vms", "backups", "removals"} {
		s.dumpTable(t, &out, table(s.c, name))
	}
	return out.String()
}

func (s *spoilt) dumpTable(t *testing.T, out *strings.Builder, table string) {
	t.Helper()
	rows, err := s.db.Query(`SELECT * FROM ` + table + ` ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		values := make([]any, len(columns))
		for i := range values {
			values[i] = new(sql.NullString)
		}
		if err := rows.Scan(values...); err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			fmt.Fprintf(out, "%q ", v.(*sql.NullString).String)
		}
		out.WriteString("\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}

// TestSpoiltBackups: each call that meets a row that can't be read, or contradicts its record, returns an
// ErrInvalid that names the backup, and changes nothing.
func TestSpoiltBackups(t *testing.T) {
	lab.Further(t)
	record := func(old, by string) func(string) string {
		return func(record string) string { return strings.Replace(record, old, by, 1) }
	}
	whole := func(by string) func(string) string { return func(string) string { return by } }
	column := func(name, value string) string {
		return `UPDATE {backups} SET ` + name + ` = ` + value + ` WHERE backup_id = ?`
	}
	for _, r := range []struct {
		name       string
		sqliteOnly bool
		record     func(string) string // what becomes of the incremental's record
		statement  string              // or of its row
	}{
		{name: "no JSON", record: whole("completed")},
		{name: "empty", record: whole("")},
		{name: "null", record: whole("null")},
		{name: "an empty object", record: whole("{}")},
		{name: "an array", record: whole("[]")},
		{name: "half of it", record: func(s string) string { return s[:len(s)/2] }},
		{name: "two of it", record: func(s string) string { return s + s }},
		{name: "kind", record: record(`"kind":"incremental"`, `"kind":"differential"`)},
		{name: "kind unknown", record: record(`"kind":"incremental"`, `"kind":"unknown"`)},
		{name: "no kind", record: record(`"kind":"incremental",`, ``)},
		{name: "status", record: record(`"status":"completed"`, `"status":"done"`)},
		{name: "another status", record: record(`"status":"completed"`, `"status":"failed"`)},
		{name: "no status", record: record(`"status":"completed",`, ``)},
		{name: "time", record: record(`"started_at":"1970-`, `"started_at":"70-`)},
		{name: "no time", record: record(`"started_at"`, `"started"`)},
		{name: "number", record: record(`"position":1`, `"position":"one"`)},
		{name: "fraction", record: record(`"position":1`, `"position":1.5`)},
		{name: "too large a number", record: record(`"position":1`, `"position":99999999999999999999`)},
		{name: "negative size", record: record(`"virtual_size":0`, `"virtual_size":-1`)},
		{name: "no volumes", record: record(`"volumes":`, `"volume":`)},
		{name: "no ID", record: record(`"id":`, `"ident":`)},
		{name: "no chain", record: record(`"chain_id":`, `"chain":`)},
		{name: "no parent", record: record(`"parent_id":`, `"parent":`)},
		{name: "a path out of its folder", record: record(`"path":"vm/3"`, `"path":"../3"`)},
		{name: "another sequence", record: record(`"sequence":3`, `"sequence":2`)},
		{name: "status column", statement: column("status", "'done'")},
		{name: "status column in other letters", statement: column("status", "'Completed'")},
		{name: "empty status column", statement: column("status", "''")},
		{name: "status column of another status", statement: column("status", "'failed'")},
		{name: "sequence column", statement: column("sequence", "77")},
		{name: "chain column", statement: column("chain_id", "'none'")},
		{name: "parent column missing", statement: column("parent_id", "NULL")},
		{name: "sequence column of text", sqliteOnly: true, statement: column("sequence", "'third'")},
		{name: "sequence column of a fraction", sqliteOnly: true, statement: column("sequence", "3.5")},
		{name: "status column of bytes", sqliteOnly: true, statement: column("status", "x'00ff'")},
		{name: "record column of bytes", sqliteOnly: true, statement: column("record", "x'00ff'")},
	} {
		t.Run(r.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
				if r.sqliteOnly && c.Schema != "" {
					return // PostgreSQL refuses it
				}
				s := newSpoilt(t, open(), c)
				if r.record != nil {
					var text string
					err := s.db.QueryRow(`SELECT record FROM ` + table(s.c, "backups") + ` WHERE backup_id = '` + string(s.inc.ID) +
						`'`).Scan(&text)
					if err != nil {
						t.Fatal(err)
					}
					spoilt := r.record(text)
					if spoilt == text {
						t.Fatalf("nothing was spoilt of %s", text)
					}
					r.statement = column("record", "'"+spoilt+"'")
				}
				s.exec(t, c, r.statement, string(s.inc.ID))
				s.refuses(t)
			})
		})
	}
}

// refuses tries all that meets the incremental's row.
func (s *spoilt) refuses(t *testing.T) {
	t.Helper()
	ctx, before := t.Context(), s.dump(t)
	next := s.inc
	next.ID, next.Path, next.Status, next.ParentID, next.Position = kvmbackup.NewBackupID(), "vm/4",
		kvmbackup.StatusRunning, s.inc.ID, 2
	yes := true
	for _, call := range []struct {
		name string
		do   func() error
	}{
		{"read", func() error { _, err := s.st.Backup(ctx, s.inc.ID); return err }},
		{"list", func() error { _, err := s.st.List(ctx, kvmbackup.Query{VM: "vm"}); return err }},
		{"list by status", func() error {
			_, err := s.st.List(ctx, kvmbackup.Query{
				Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted, kvmbackup.StatusFailed},
			})
			return err
		}},
		{"children", func() error { _, err := s.st.Children(ctx, s.full.ID); return err }},
		{"begin on it", func() error { _, err := s.st.Begin(ctx, s.l, next); return err }},
		{"complete it", func() error { return s.st.Complete(ctx, s.l, s.inc) }},
		{"fail it", func() error { return s.st.Fail(ctx, s.l, s.inc.ID, "why") }},
		{"mark it", func() error { return s.st.MarkDeletePending(ctx, s.l, s.inc.ID) }},
		{"remove it", func() error { return s.st.Remove(ctx, s.l, s.inc.ID, 1) }},
		{"annotate it", func() error { return s.st.Annotate(ctx, s.l, s.inc.ID, kvmbackup.Annotation{Pinned: &yes}) }},
		{"import it", func() error { return s.st.Import(ctx, s.l, s.inc) }},
	} {
		err := call.do()
		if !errors.Is(err, kvmbackup.ErrInvalid) || !strings.Contains(err.Error(), string(s.inc.ID)) {
			t.Errorf("%s: got %v, want an ErrInvalid that names backup %s", call.name, err, s.inc.ID)
		}
	}
	if now := s.dump(t); now != before {
		t.Errorf("something has changed:\n was %s\n now %s", before, now)
	}
	if v, err := s.st.VM(ctx, "vm"); err != nil || v.ActiveCheckpoint != "backup.c" {
		t.Errorf("the VM is %+v, %v", v, err)
	}
}

// TestSpoiltNewest: the newest backup with a status that can't be read isn't passed over for an older one, and no
// second one begins beside what may be running.
func TestSpoiltNewest(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		s := newSpoilt(t, open(), c)
		s.exec(t, c, `UPDATE {backups} SET status = 'done' WHERE backup_id = ?`, string(s.inc.ID))
		fresh := s.full
		fresh.ID, fresh.Path, fresh.Status = kvmbackup.NewBackupID(), "vm/4", kvmbackup.StatusRunning
		_, errNewest := s.st.Newest(t.Context(), "vm")
		_, errBegin := s.st.Begin(t.Context(), s.l, fresh)
		for _, err := range []error{errNewest, errBegin} {
			if !errors.Is(err, kvmbackup.ErrInvalid) || !strings.Contains(err.Error(), string(s.inc.ID)) {
				t.Errorf("got %v, want an ErrInvalid that names the backup", err)
			}
		}
		// Other VMs go on.
		l, err := s.st.AcquireLease(t.Context(), "other", "holder", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		fresh.VM, fresh.Path, fresh.ID = "other", "other/1", kvmbackup.NewBackupID()
		if _, err := s.st.Begin(t.Context(), l, fresh); err != nil {
			t.Error(err)
		}
	})
}

// TestSpoiltParent: a backup whose child's row has lost its parent isn't removed.
func TestSpoiltParent(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		s := newSpoilt(t, open(), c)
		s.exec(t, c, `UPDATE {backups} SET parent_id = NULL WHERE backup_id = ?`, string(s.inc.ID))
		if err := s.st.MarkDeletePending(t.Context(), s.l, s.full.ID); err != nil {
			t.Fatal(err)
		}
		before := s.dump(t)
		if err := s.st.Remove(t.Context(), s.l, s.full.ID, 1); !errors.Is(err, kvmbackup.ErrInvalid) ||
			!strings.Contains(err.Error(), string(s.inc.ID)) {
			t.Errorf("got %v, want an ErrInvalid that names the child", err)
		}
		if now := s.dump(t); now != before {
			t.Errorf("something has changed:\n was %s\n now %s", before, now)
		}
	})
}

// TestSpoiltVM: a VM's row that can't be read is an ErrInvalid that names the VM, and no free lease.
func TestSpoiltVM(t *testing.T) {
	for _, r := range []struct {
		set        string
		sqliteOnly bool
	}{
		{"lease_token = -1", false}, {"last_sequence = -1", false}, {"lease_expires_us = -1", false},
		{"lease_token = 'x'", true}, {"last_sequence = 1.5", true}, {"lease_expires_us = 'soon'", true},
		{"lease_token = x'00ff'", true},
	} {
		t.Run(r.set, func(t *testing.T) {
			onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
				if r.sqliteOnly && c.Schema != "" {
					return // PostgreSQL refuses it
				}
				s := newSpoilt(t, open(), c)
				s.exec(t, c, `UPDATE {vms} SET `+r.set+` WHERE vm_id = ?`, "vm")
				before := s.dump(t)
				_, errRead := s.st.VM(t.Context(), "vm")
				_, errLease := s.st.AcquireLease(t.Context(), "vm", "other", time.Hour)
				_, errRenew := s.st.RenewLease(t.Context(), s.l, time.Hour)
				for _, err := range []error{errRead, errLease, errRenew, s.st.SetActive(t.Context(), s.l, "backup.x")} {
					if !errors.Is(err, kvmbackup.ErrInvalid) || !strings.Contains(err.Error(), `VM "vm"`) {
						t.Errorf("got %v, want an ErrInvalid that names the VM", err)
					}
				}
				if now := s.dump(t); now != before {
					t.Errorf("something has changed:\n was %s\n now %s", before, now)
				}
			})
		})
	}
}

// A VM's row whose counter is behind its records is an ErrInvalid that says so, instead of a conflict that is tried for
// ever.
func TestSpoiltSequence(t *testing.T) {
	onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
		s := newSpoilt(t, open(), c)
		s.exec(t, c, `UPDATE {vms} SET last_sequence = 1 WHERE vm_id = ?`, "vm")
		before := s.dump(t)
		fresh := s.full
		fresh.ID, fresh.Path, fresh.Status = kvmbackup.NewBackupID(), "vm/4", kvmbackup.StatusRunning
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := s.st.Begin(ctx, s.l, fresh)
		if !errors.Is(err, kvmbackup.ErrInvalid) || !strings.Contains(err.Error(), "last_sequence") {
			t.Errorf("got %v, want an ErrInvalid that names the column", err)
		}
		if now := s.dump(t); now != before {
			t.Errorf("something has changed:\n was %s\n now %s", before, now)
		}
	})
}

// TestSpoiltRemoval: a removal that can't be read is an ErrInvalid that names the backup; it can be acknowledged.
func TestSpoiltRemoval(t *testing.T) {
	for _, set := range []string{"stored_bytes = -1", "removed_us = -1"} {
		t.Run(set, func(t *testing.T) {
			onBoth(t, func(t *testing.T, open func() *sql.DB, c sqlstore.Config) {
				s := newSpoilt(t, open(), c)
				list, err := s.st.Removals(t.Context(), 0)
				if err != nil || len(list) != 1 {
					t.Fatalf("%v, %v", list, err)
				}
				s.exec(t, c, `UPDATE {removals} SET `+set+` WHERE vm_id = ?`, "vm")
				if _, err := s.st.Removals(t.Context(), 0); !errors.Is(err, kvmbackup.ErrInvalid) ||
					!strings.Contains(err.Error(), string(list[0].Backup)) {
					t.Errorf("got %v, want an ErrInvalid that names the backup", err)
				}
				if err := s.st.AckRemoval(t.Context(), list[0].Backup); err != nil {
					t.Fatal(err)
				}
				if left, err := s.st.Removals(t.Context(), 0); err != nil || len(left) > 0 {
					t.Errorf("left are %v, %v", left, err)
				}
			})
		})
	}
}
