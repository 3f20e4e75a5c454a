// Command quickstart backs up a real QEMU guest: fulls, incrementals, a lost domain, a restore and deletions. It needs
// libvirt and QEMU, but no daemon, no privileges and no arguments, and cleans up after itself.
//
// main.go makes an engine and tour.go uses it: the tutorial. guest.go fakes a host to back up, and screen.go prints.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	_ "modernc.org/sqlite" // or the driver you have

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

func main() {
	// The first Ctrl-C cancels what is under way; more of them don't disturb the clean-up.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	images, err := qcow2.New(qcow2.Config{}) // finds qemu-img
	if err != nil {
		return err
	}
	t := &tour{screen: newScreen(os.Stdout), images: images}
	t.title("start a guest with two disks: vda of 1 GiB, vdb of 256 MiB")
	t.host, err = newHost(ctx, images)
	defer func() { err = errors.Join(err, t.host.Close()) }()
	if err != nil {
		return err
	}
	closeEngine, err := t.open(ctx)
	defer func() { err = errors.Join(err, closeEngine()) }()
	if err != nil {
		return err
	}
	for _, step := range t.steps() {
		t.title("%s", step.title)
		if err := step.do(ctx); err != nil {
			return err
		}
	}
	return nil
}

// open makes the engine out of its four parts.
func (t *tour) open(ctx context.Context) (func() error, error) {
	var closers []func() error
	closeAll := func() (err error) {
		for _, c := range closers {
			err = errors.Join(c(), err)
		}
		return err
	}
	// One: qemu-img. Two: the hypervisor; on a real host qemu:///system.
	executor, err := libvirtjob.Open(ctx, t.host.uri, libvirtjob.Config{Images: t.images})
	if err != nil {
		return closeAll, err
	}
	closers = append(closers, executor.Close)
	// Three: a folder for the backups, usually a NAS mount. Init marks it once; then Open refuses an empty mount point.
	repo, err := repository.Init(ctx, t.host.nas, repository.Options{})
	if err != nil {
		return closeAll, err
	}
	// Four: a store for the records; here SQLite, or PostgreSQL, or your own key/value table.
	db, err := sql.Open("sqlite", filepath.Join(t.host.dir, "records.db"))
	if err != nil {
		return closeAll, err
	}
	closers = append(closers, db.Close)
	store, err := sqlstore.New(ctx, db, sqlstore.Config{})
	if err != nil {
		return closeAll, err
	}
	if err := store.Migrate(ctx); err != nil {
		return closeAll, err
	}
	t.engine, err = engine.New(engine.Config{
		Images: t.images, Executor: executor, Repository: repo, Store: store, OnEvent: t.event,
	})
	return closeAll, err
}
