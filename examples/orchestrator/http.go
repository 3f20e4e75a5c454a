package main

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newHandler serves what this instance has seen (kvmbackup_...), what the database knows of all (orchestrator_...), and
// whether the database answers. What the database's driver says goes to the log alone: its errors name hosts, users and
// statements, and anybody may ask here.
func newHandler(db *sql.DB, m prometheus.Collector, log *slog.Logger) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(m, &tables{db, log})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry,
		promhttp.HandlerOpts{MaxRequestsInFlight: maxRequests, Timeout: 2 * answerIn}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerIn)
		defer cancel()
		if err := db.PingContext(ctx); err != nil {
			log.Warn("ping the database", "error", err)
			http.Error(w, errDatabase.Error(), http.StatusServiceUnavailable)
		}
	})
	return mux
}

// answerIn bounds what a request may ask of the database, and maxRequests how many scrapes may at a time.
const (
	answerIn    = 5 * time.Second
	maxRequests = 4
)

var errDatabase = errors.New("the database doesn't answer: see the log")

// serveHTTP serves until stop is called. Without a listener it does nothing.
func serveHTTP(l net.Listener, handler http.Handler, log *slog.Logger) (stop func() error) {
	if l == nil {
		return func() error { return nil }
	}
	server := &http.Server{
		Handler: handler, MaxHeaderBytes: 16 << 10,
		ReadTimeout: answerIn, WriteTimeout: 4 * answerIn, IdleTimeout: time.Minute,
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	log.Info("serving metrics", "address", l.Addr().String())
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), answerIn)
		defer cancel()
		err := server.Shutdown(ctx)
		if serve := <-ended; !errors.Is(serve, http.ErrServerClosed) {
			err = errors.Join(err, serve)
		}
		return err
	}
}

// tables collects what the tables say, which outlives a restart and is the same from every instance.
type tables struct {
	db  *sql.DB
	log *slog.Logger
}

func vmMetric(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("orchestrator_"+name, help, []string{"vm"}, nil)
}

var (
	lastSuccess = vmMetric("last_success_timestamp_seconds",
		"Unix time at which any instance completed the VM's last backup; 0: never.")
	nextRun    = vmMetric("next_run_timestamp_seconds", "Unix time at which the VM is due next.")
	failures   = vmMetric("failures", "Failed backups since the last success.")
	quotaBytes = vmMetric("quota_bytes", "Bytes that the VM's backups take.")
)

// Describe implements prometheus.Collector.
func (c *tables) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{lastSuccess, nextRun, failures, quotaBytes} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *tables) Collect(ch chan<- prometheus.Metric) {
	if err := c.collect(ch); err != nil {
		c.log.Warn("collect metrics", "error", err)
		ch <- prometheus.NewInvalidMetric(lastSuccess, errDatabase)
	}
}

const tablesSQL = `
SELECT vm, coalesce(extract(epoch FROM last_success), 0)::float8, extract(epoch FROM next_run)::float8, failures,
	(SELECT coalesce(sum(bytes), 0)::float8 FROM orchestrator_quota q WHERE q.vm = v.vm AND returned_at IS NULL)
FROM orchestrator_vms v`

func (c *tables) collect(ch chan<- prometheus.Metric) error {
	ctx, cancel := context.WithTimeout(context.Background(), answerIn)
	defer cancel()
	rows, err := c.db.QueryContext(ctx, tablesSQL)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var vm string
		var success, next, failed, quota float64
		if err := rows.Scan(&vm, &success, &next, &failed, &quota); err != nil {
			return err
		}
		for _, v := range []struct {
			desc  *prometheus.Desc
			value float64
		}{{lastSuccess, success}, {nextRun, next}, {failures, failed}, {quotaBytes, quota}} {
			ch <- prometheus.MustNewConstMetric(v.desc, prometheus.GaugeValue, v.value, vm)
		}
	}
	return rows.Err()
}
