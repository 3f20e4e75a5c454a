package kvstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the host's choice of driver

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
)

// details is a KV over two tables that a host has: vm_details(vm_id, name, value) and
// backup_details(backup_id, name, value), each with a unique index on its first two columns.
type details struct{ db *sql.DB }

var _ kvstore.KV = details{}

// in puts the object's table and column for T and ID. Both names are constants.
func in(kind kvstore.ObjectKind, query string) string {
	return strings.NewReplacer("T", kind.String()+"_details", "ID", kind.String()+"_id").Replace(query)
}

func (d details) Get(ctx context.Context, o kvstore.Object, key string) (value string, err error) {
	err = d.db.QueryRowContext(ctx, in(o.Kind, `select value from T where ID = $1 and name = $2`), o.ID, key).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return value, err
}

func (d details) Set(ctx context.Context, o kvstore.Object, key, value string) error {
	_, err := d.db.ExecContext(ctx, in(o.Kind, `insert into T (ID, name, value) values ($1, $2, $3)
		on conflict (ID, name) do update set value = excluded.value`), o.ID, key, value)
	return err
}

func (d details) Remove(ctx context.Context, o kvstore.Object, key string) error {
	_, err := d.db.ExecContext(ctx, in(o.Kind, `delete from T where ID = $1 and name = $2`), o.ID, key)
	return err
}

func (d details) List(ctx context.Context, o kvstore.Object) (map[string]string, error) {
	rows, err := d.db.QueryContext(ctx, in(o.Kind, `select name, value from T where ID = $1`), o.ID)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]string{}
	for rows.Next() {
		var name, value string
		if err := rows.Scan(&name, &value); err != nil {
			return nil, err
		}
		out[name] = value
	}
	return out, rows.Err()
}

func (d details) CompareAndSet(ctx context.Context, o kvstore.Object, key, old, value string) (bool, error) {
	query, args := `update T set value = $3 where ID = $1 and name = $2 and value = $4`, []any{o.ID, key, value, old}
	if old == "" {
		query, args = `insert into T (ID, name, value) values ($1, $2, $3) on conflict (ID, name) do nothing`, args[:3]
	}
	res, err := d.db.ExecContext(ctx, in(o.Kind, query), args...)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

func (d details) Find(ctx context.Context, kind kvstore.ObjectKind, key string) ([]string, error) {
	rows, err := d.db.QueryContext(ctx, in(kind, `select ID from T where name = $1`), key)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, rows.Err()
}

// Now is the database's clock, for kvstore.Config.
func (d details) Now(ctx context.Context) (time.Time, error) {
	var ms int64
	err := d.db.QueryRowContext(ctx, `select cast((julianday('now') - 2440587.5) * 86400000 as integer)`).Scan(&ms)
	return time.UnixMilli(ms), err
}

const tables = `
	create table vm_details (vm_id varchar(64), name varchar(255), value varchar(1024), primary key (vm_id, name));
	create table backup_details (backup_id varchar(64), name varchar(255), value varchar(1024), primary key (backup_id, name));
	insert into backup_details values ('an-old-full-backup', 'size', '4711');`

// A host keeps everything in the details tables that it has: one full backup is recorded, and then the host looks
// at its own tables.
func Example() {
	dir, err := os.MkdirTemp("", "kvstore-")
	if err != nil {
		log.Fatal(err)
	}
	if err := errors.Join(manage(filepath.Join(dir, "manager.db")), os.RemoveAll(dir)); err != nil {
		log.Fatal(err)
	}
	// Output:
	// vm nas.active_checkpoint_id=backup.2026.11.23.07.04.50
	// backup nas.bitmap_name=backup.2026.11.23.07.04.50
	// backup nas.chain_id=2f0e5a0c-1111-4222-8333-444455556666
	// backup nas.chain_position=0
	// backup nas.type=full
	// old size=4711
}

func manage(file string) error {
	ctx := context.Background()
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)")
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, tables); err != nil {
		return err
	}

	host := details{db}
	store, err := kvstore.New(host, kvstore.Config{Now: host.Now})
	if err != nil {
		return err
	}
	if err := backUp(ctx, store); err != nil {
		return err
	}

	vm, errVM := host.List(ctx, kvstore.Object{Kind: kvstore.ObjectVM, ID: "i-2-7-VM"})
	backup, errBackup := host.List(ctx, kvstore.Object{Kind: kvstore.ObjectBackup, ID: "6c7d1c7e-3d0c-4f5e-9a64-0f9f6f3f0a11"})
	old, errOld := host.List(ctx, kvstore.Object{Kind: kvstore.ObjectBackup, ID: "an-old-full-backup"})
	show("vm", vm)
	show("backup", backup)
	show("old", old)
	return errors.Join(errVM, errBackup, errOld)
}

// backUp records a backup as the engine does.
func backUp(ctx context.Context, store kvmbackup.Store) error {
	lease, err := store.AcquireLease(ctx, "i-2-7-VM", "agent-1", time.Minute)
	if err != nil {
		return err
	}
	b, err := store.Begin(ctx, lease, kvmbackup.Backup{
		ID: "6c7d1c7e-3d0c-4f5e-9a64-0f9f6f3f0a11", VM: "i-2-7-VM", Kind: kvmbackup.KindFull, Status: kvmbackup.StatusRunning,
		ChainID: "2f0e5a0c-1111-4222-8333-444455556666", Checkpoint: "backup.2026.11.23.07.04.50",
		Path: "i-2-7-VM/2026.11.23.07.04.50", StartedAt: time.Date(2026, 11, 23, 7, 4, 50, 0, time.UTC),
		Volumes: []kvmbackup.VolumeBackup{{VolumeID: "root", Device: "vda", Kind: kvmbackup.KindFull, File: "root.qcow2"}},
	})
	if err != nil {
		return err
	}
	b.Status = kvmbackup.StatusCompleted
	return errors.Join(store.Complete(ctx, lease, b), store.ReleaseLease(ctx, lease))
}

// show prints what the field's own keys say, but for the volumes.
func show(what string, details map[string]string) {
	var lines []string
	for name, value := range details {
		if !strings.HasPrefix(name, "kvmbackup.") && !strings.HasPrefix(name, kvmbackup.DetailVolumePrefix) {
			lines = append(lines, fmt.Sprintf("%s %s=%s", what, name, value))
		}
	}
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Println(line)
	}
}
