// Command detailstore shows a host that keeps everything in tables of details that it has: a name and a value on a VM
// or on a backup. It records one full backup and then prints what its own tables say.
//
//	detailstore FILE
//
// makes the SQLite database FILE. details.go is all that such a host writes.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the host's choice of driver

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: detailstore FILE")
	}
	if err := manage(context.Background(), os.Args[1], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// The tables of a host, which has had backups before.
const tables = `
	create table vm_details (vm_id varchar(64), name varchar(255), value varchar(1024), primary key (vm_id, name));
	create table backup_details (backup_id varchar(64), name varchar(255), value varchar(1024),
		primary key (backup_id, name));
	insert into backup_details values ('an-old-full-backup', 'size', '4711');`

func manage(ctx context.Context, file string, out io.Writer) (err error) {
	db, err := sql.Open("sqlite",
		"file:"+file+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(FULL)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
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
	backup, errBackup := host.List(ctx, kvstore.Object{Kind: kvstore.ObjectBackup,
		ID: "6c7d1c7e-3d0c-4f5e-9a64-0f9f6f3f0a11"})
	old, errOld := host.List(ctx, kvstore.Object{Kind: kvstore.ObjectBackup, ID: "an-old-full-backup"})
	show(out, "vm", vm)
	show(out, "backup", backup)
	show(out, "old", old)
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

// show prints what the field's own keys say, except the volumes.
func show(out io.Writer, what string, details map[string]string) {
	var lines []string
	for name, value := range details {
		if !strings.HasPrefix(name, "kvmbackup.") && !strings.HasPrefix(name, "nas.volume.") {
			lines = append(lines, fmt.Sprintf("%s %s=%s", what, name, value))
		}
	}
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Fprintln(out, line)
	}
}
