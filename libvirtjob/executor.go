package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/offline"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Config is what an Executor needs beside a connection. It is copied.
type Config struct {
	// Images creates the targets and serves stopped domains. Required.
	Images *qcow2.Tool
	// Logger gets each step at Debug and what was survived at Warn. Defaults to discarding.
	Logger *slog.Logger
	// PollInterval is the longest time between two looks at a job. Looks begin 2 ms apart and spread out with the
	// job's age, so that noticing its end adds at most two per cent; a completion event ends the wait at once.
	// Defaults to 100 ms.
	PollInterval time.Duration
	// ProgressInterval is the time between two calls of Wait's progress function. Defaults to 1 s.
	ProgressInterval time.Duration
}

// Executor runs backup jobs on the domains of one libvirt connection. It is safe for concurrent use.
type Executor struct {
	cfg     Config
	log     *slog.Logger
	offline *offline.Images
	events  *events

	uri          string // set by Open: the executor owns its connection and may replace it
	connectLimit time.Duration

	mu      sync.Mutex
	conn    *connection
	attempt *attempt // nil: none is under way
	closed  bool
}

var _ kvmbackup.Executor = (*Executor)(nil)

// New returns an Executor on a connection that stays the caller's, who closes it as if there were no Executor; both
// have to be closed for it to end. Whether an event loop runs is the caller's choice. A libvirt before 7.2 is a
// kvmbackup.ErrUnsupported.
func New(conn *libvirt.Connect, cfg Config) (*Executor, error) {
	e, err := newExecutor(cfg)
	if err != nil {
		return nil, err
	}
	if conn == nil {
		return nil, fmt.Errorf("%w: no libvirt connection", kvmbackup.ErrInvalid)
	}
	if err := checkVersion(conn); err != nil {
		return nil, err
	}
	if err := conn.Ref(); err != nil {
		return nil, translate(err)
	}
	e.conn = &connection{Connect: conn, cancelEvents: e.events.register(conn)}
	return e, nil
}

// Open starts the default event loop, if RunEventLoop hasn't yet, and connects to the URI. The connection is the
// Executor's, which makes a new one when it was lost. The caller must Close it. The context bounds the connecting, and
// nothing after that; when it ends Open returns its cause at once, and the connection is closed when libvirt makes it
// after all. Where libvirt doesn't answer within 2 minutes the error is kvmbackup.ErrBusy; one before 7.2 is a
// kvmbackup.ErrUnsupported.
func Open(ctx context.Context, uri string, cfg Config) (*Executor, error) {
	return open(ctx, uri, cfg, connectLimit)
}

func open(ctx context.Context, uri string, cfg Config, limit time.Duration) (*Executor, error) {
	e, err := newExecutor(cfg)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("connect to %q: %w", uri, context.Cause(ctx))
	}
	if err := RunEventLoop(); err != nil {
		return nil, fmt.Errorf("start libvirt's event loop: %w", err)
	}
	e.uri, e.connectLimit = uri, limit
	e.mu.Lock()
	first := e.connect()
	e.mu.Unlock()
	if err := e.wait(ctx, first); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func newExecutor(cfg Config) (*Executor, error) {
	if cfg.Images == nil {
		return nil, fmt.Errorf("%w: Config.Images is required", kvmbackup.ErrInvalid)
	}
	if cfg.PollInterval < 0 || cfg.ProgressInterval < 0 {
		return nil, fmt.Errorf("%w: negative interval", kvmbackup.ErrInvalid)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.PollInterval == 0 {
		cfg.PollInterval = 100 * time.Millisecond
	}
	if cfg.ProgressInterval == 0 {
		cfg.ProgressInterval = time.Second
	}
	return &Executor{
		cfg:     cfg,
		log:     cfg.Logger,
		offline: offline.New(cfg.Images, offline.Config{Logger: cfg.Logger, ProgressInterval: cfg.ProgressInterval}),
		events:  newEvents(cfg.Logger),
	}, nil
}
