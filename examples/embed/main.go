// Command embed is the README's example: the least a host program needs for one backup of one VM, with its records in a
// SQLite file.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"

	_ "modernc.org/sqlite" // the host's choice of driver

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: embed LIBVIRT_URI REPOSITORY SQLITE_FILE DOMAIN")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := backUp(ctx, os.Args[1], os.Args[2], os.Args[3], os.Args[4])
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

// backUp takes one backup of one domain: full or incremental, as the engine decides.
func backUp(ctx context.Context, uri, dir, dbFile, domain string) (err error) {
	db, err := sql.Open("sqlite",
		"file:"+dbFile+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(FULL)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	store, err := sqlstore.New(ctx, db, sqlstore.Config{})
	if err == nil {
		err = store.Migrate(ctx)
	}
	if err != nil {
		return err
	}
	images, err := qcow2.New(qcow2.Config{})
	if err != nil {
		return err
	}
	repo, err := repository.Init(ctx, dir, repository.Options{}) // once; then repository.Open
	if err != nil {
		return err
	}
	hypervisor, err := libvirtjob.Open(ctx, uri, libvirtjob.Config{Images: images})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hypervisor.Close()) }()
	eng, err := engine.New(engine.Config{Store: store, Repository: repo, Executor: hypervisor, Images: images})
	if err != nil {
		return err
	}
	b, err := eng.Backup(ctx, engine.BackupRequest{VM: kvmbackup.VMID(domain)})
	if err != nil {
		return err
	}
	fmt.Printf("%v backup in %s, because %s\n", b.Kind, b.Path, b.Reasons[0])
	return nil
}
