// Command hosts backs up the VMs of several hosts into one share, with one PostgreSQL. An agent runs on every host, and
// reaches its hypervisor; a manager runs anywhere, and reaches the store, the share and the agents:
//
//	hosts agent -host NAME -connect URI -listen ADDRESS
//	hosts manager list | verify ID | restore ID DIR | delete ID | retain VM COUNT | require-full VM
//	hosts manager plan AGENT_URL VM | backup AGENT_URL VM | central AGENT_URL VM
//
// with -database DSN and -repo DIR before each. docs/hosts.md is about which layout is for which product.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet("hosts", flag.ContinueOnError)
	database := f.String("database", os.Getenv("HOSTS_DATABASE"), "postgres://... (default $HOSTS_DATABASE)")
	repo := f.String("repo", os.Getenv("HOSTS_REPO"), "`DIR` where the share is mounted here (default $HOSTS_REPO)")
	host := f.String("host", "", "agent: `NAME` of this host; it never changes")
	connect := f.String("connect", "qemu:///system", "agent: libvirt `URI`")
	listen := f.String("listen", "127.0.0.1:9818", "agent: `ADDRESS` to listen at")
	if len(args) == 0 {
		return errors.New("say agent or manager")
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	s, err := open(ctx, *database, *repo)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.db.Close()) }()
	if args[0] == "manager" {
		return s.manage(ctx, os.Stdout, f.Args())
	}
	hypervisor, err := libvirtjob.Open(ctx, *connect, libvirtjob.Config{Images: s.images})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hypervisor.Close()) }()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", *listen)
	if err != nil {
		return err
	}
	return s.serve(ctx, l, hypervisor, *host)
}

// site is what every host and the manager share.
type site struct {
	db     *sql.DB
	store  *sqlstore.Store
	repo   *repository.Repository
	images *qcow2.Tool
}

// open opens the store and the share, and makes them on first use.
func open(ctx context.Context, database, dir string) (*site, error) {
	db, err := sql.Open("pgx", database)
	if err != nil {
		return nil, err
	}
	s := &site{db: db}
	if err := s.open(ctx, dir); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *site) open(ctx context.Context, dir string) (err error) {
	s.store, err = sqlstore.New(ctx, s.db, sqlstore.Config{Dialect: sqlstore.DialectPostgreSQL})
	if err == nil {
		err = s.store.Migrate(ctx)
	}
	if err == nil {
		s.images, err = qcow2.New(qcow2.Config{})
	}
	if err == nil {
		s.repo, err = repository.Init(ctx, dir, repository.Options{}) // once; then repository.Open
	}
	return err
}

// engine makes one that goes by the name of a host; without a hypervisor it is the manager's.
func (s *site) engine(hypervisor kvmbackup.Executor, host string) (*engine.Engine, error) {
	if host == "" {
		return nil, fmt.Errorf("%w: a host needs its name", kvmbackup.ErrInvalid)
	}
	return engine.New(engine.Config{Store: s.store, Repository: s.repo, Images: s.images, Executor: hypervisor,
		Host: host})
}
