package libvirtjob

import (
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

	mu   sync.Mutex
	conn *libvirt.Connect
	uri  string // set by Open: the executor owns conn and may replace it
}

var _ kvmbackup.Executor = (*Executor)(nil)

// New returns an Executor on a connection that stays the caller's: it has to outlive the Executor and is not closed
// by Close. Whether an event loop runs is the caller's choice.
func New(conn *libvirt.Connect, cfg Config) (*Executor, error) {
	e, err := newExecutor(cfg)
	if err != nil {
		return nil, err
	}
	if conn == nil {
		return nil, fmt.Errorf("%w: no libvirt connection", kvmbackup.ErrInvalid)
	}
	e.conn = conn
	e.events.register(conn)
	return e, nil
}

// Open starts the default event loop, if RunEventLoop hasn't yet, and connects to the URI. The connection is the
// Executor's, which makes a new one when it was lost. The caller must Close it.
func Open(uri string, cfg Config) (*Executor, error) {
	e, err := newExecutor(cfg)
	if err != nil {
		return nil, err
	}
	if err := RunEventLoop(); err != nil {
		return nil, fmt.Errorf("start libvirt's event loop: %w", err)
	}
	e.uri = uri
	if err := e.connect(); err != nil {
		return nil, err
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

// connect makes the connection of an Executor that Open returned. mu is held, or nobody else knows e yet.
func (e *Executor) connect() error {
	conn, err := libvirt.NewConnect(e.uri)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", e.uri, translate(err))
	}
	e.conn = conn
	e.events.register(conn)
	return nil
}

// connection returns a connection that the caller has to Close, which only counts down.
func (e *Executor) connection() (*libvirt.Connect, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		return nil, fmt.Errorf("%w: the executor is closed", kvmbackup.ErrInvalid)
	}
	if e.uri != "" {
		if alive, err := e.conn.IsAlive(); err != nil || !alive {
			e.log.Warn("connecting to libvirt again", "uri", e.uri)
			e.release()
			if err := e.connect(); err != nil {
				return nil, err
			}
		}
	}
	if err := e.conn.Ref(); err != nil {
		return nil, translate(err)
	}
	return e.conn, nil
}

// release gives up the connection. mu is held.
func (e *Executor) release() {
	e.events.deregister()
	if e.uri != "" {
		_, _ = e.conn.Close()
	}
}

// Close ends the Executor. A job that runs goes on and can be adopted later. The connection is closed if Open made it.
func (e *Executor) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn != nil {
		e.release()
		e.conn = nil
	}
	return nil
}
