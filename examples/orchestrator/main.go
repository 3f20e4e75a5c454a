// Command orchestrator is a small backup manager: it takes the backups of many VMs by a schedule that is kept, with the
// records, in one PostgreSQL database. Any number of instances share the work. It is built on kvmbackup's public API
// alone and is a model for a manager's backup service; see README.md.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/metrics"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

func main() {
	libvirtjob.Guard() // backups by pull end with this program, however it ends
	// More signals don't disturb the clean-up after the first.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "orchestrator:", err)
		os.Exit(1)
	}
}

// start runs the service over the real libvirt and qemu-img.
func start(ctx context.Context, args []string) (err error) {
	cfg, err := parseConfig(args, os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	images, err := qcow2.New(qcow2.Config{Logger: log})
	if err != nil {
		return err
	}
	executor, err := libvirtjob.Open(ctx, cfg.Connect, libvirtjob.Config{Images: images, Logger: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, executor.Close()) }()
	host := host{Executor: executor, Images: images, Log: log}
	if cfg.Listen != "" {
		if host.Listener, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.Listen); err != nil {
			return err
		}
		defer func() { _ = host.Listener.Close() }() // for when the service doesn't get as far as serving it
	}
	return serve(ctx, cfg, host)
}

// host is what the service runs on; tests give it a simulated hypervisor.
type host struct {
	Executor kvmbackup.Executor
	Images   engine.Images
	Listener net.Listener // for metrics, closed when the service ends; nil: none are served
	Log      *slog.Logger
}

// orchestrator is one instance of the service.
type orchestrator struct {
	cfg    Config
	engine *engine.Engine
	queue  *queue
	ledger *ledger
	log    *slog.Logger
}

// connections are an instance's: 16 of the store's, see sqlstore.Config, and some for the service's own statements. All
// instances together stay below the server's max_connections.
const connections = 24

// serve runs the service until ctx ends and what was begun is finished or undone.
func serve(ctx context.Context, cfg Config, h host) (err error) {
	db, err := sql.Open("pgx", cfg.Database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(connections)
	m := metrics.New()
	o, err := open(ctx, cfg, h, db, m)
	if err != nil {
		return err
	}
	stop := serveHTTP(h.Listener, newHandler(db, m, o.log), o.log)
	o.run(ctx)
	return stop()
}

// open prepares the database and the repository and makes the engine.
func open(ctx context.Context, cfg Config, h host, db *sql.DB, m *metrics.Metrics) (*orchestrator, error) {
	log := h.Log.With("instance", cfg.Instance)
	store, err := sqlstore.New(ctx, db, sqlstore.Config{Dialect: sqlstore.DialectPostgreSQL})
	if err == nil {
		err = store.Migrate(ctx)
	}
	if err == nil {
		err = migrate(ctx, db)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare the database: %w", err)
	}
	openRepository := repository.Open
	if cfg.Init {
		openRepository = repository.Init
	}
	repo, err := openRepository(ctx, cfg.Repository, repository.Options{Logger: log})
	if err != nil {
		return nil, err
	}
	// The repository's places are those of all instances, and kept in the store with the VMs' leases.
	places, err := engine.NewSharedLimiter(cfg.RepositoryLimit, engine.SharedPlaces{
		Store: store, Name: repo.ID(), Holder: cfg.Instance, LeaseTTL: cfg.LeaseTTL,
	})
	if err != nil {
		return nil, err
	}
	eng, err := engine.New(engine.Config{
		Store: store, Repository: repo, Executor: h.Executor, Images: h.Images,
		Holder: cfg.Instance, LeaseTTL: cfg.LeaseTTL, LeaseWait: cfg.BusyWait,
		HostLimit: engine.NewLimiter(cfg.HostLimit), RepositoryLimit: places,
		OnEvent: m.Observe, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return &orchestrator{cfg: cfg, engine: eng, queue: &queue{db, cfg.Instance, cfg.LeaseTTL}, ledger: &ledger{db},
		log: log}, nil
}
