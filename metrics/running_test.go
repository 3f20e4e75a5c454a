package metrics_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/metrics"
)

// TestRunning: while the first backup of a VM runs, its metrics move. At its end what is under way is gone, and what
// was done stays.
func TestRunning(t *testing.T) {
	m := metrics.New()
	at := func(step string, done int64) {
		m.Observe(engine.Event{Type: engine.EventProgress, OpID: 1, Op: "backup", VM: "vm1", Step: step,
			Progress: &kvmbackup.JobProgress{DoneBytes: done, TotalBytes: 1000}})
	}
	wants := func(text string, names ...string) {
		t.Helper()
		if err := testutil.CollectAndCompare(m, strings.NewReader(text), names...); err != nil {
			t.Error(err)
		}
	}
	m.Observe(engine.Event{Type: engine.EventFailed, OpID: 7, Op: "delete", VM: "vm1", Err: errors.New("it got no lease")})
	m.Observe(engine.Event{Type: engine.EventStarted, OpID: 1, Op: "backup", VM: "vm1"})
	m.Observe(engine.Event{Type: engine.EventStarted, OpID: 2, Op: "backup", VM: "vm2"})
	at("follow job", 100)
	at("follow job", 400)
	wants(`
# HELP kvmbackup_running Operations that hold the VM's lease now.
# TYPE kvmbackup_running gauge
kvmbackup_running{op="backup",vm="vm1"} 1
kvmbackup_running{op="backup",vm="vm2"} 1
# HELP kvmbackup_running_done_bytes How far the step that runs now is.
# TYPE kvmbackup_running_done_bytes gauge
kvmbackup_running_done_bytes{op="backup",vm="vm1"} 400
# HELP kvmbackup_running_total_bytes How much there is to do in the step that runs now.
# TYPE kvmbackup_running_total_bytes gauge
kvmbackup_running_total_bytes{op="backup",vm="vm1"} 1000
# HELP kvmbackup_transferred_bytes_total Bytes that were copied, checked or read, while it is done.
# TYPE kvmbackup_transferred_bytes_total counter
kvmbackup_transferred_bytes_total{op="backup",step="follow job",vm="vm1"} 400
`, "kvmbackup_running", "kvmbackup_running_done_bytes", "kvmbackup_running_total_bytes",
		"kvmbackup_transferred_bytes_total")
	at("digest", 50)
	m.Observe(engine.Event{Type: engine.EventDone, OpID: 1, Op: "backup", VM: "vm1", Elapsed: 5 * time.Second})
	m.Observe(engine.Event{
		Type: engine.EventFailed, OpID: 2, Op: "backup", VM: "vm2", Elapsed: time.Minute, Err: errors.New("it broke"),
	})
	at("digest", 60) // of nothing that runs
	wants(`
# HELP kvmbackup_running Operations that hold the VM's lease now.
# TYPE kvmbackup_running gauge
kvmbackup_running{op="backup",vm="vm1"} 0
kvmbackup_running{op="backup",vm="vm2"} 0
# HELP kvmbackup_transferred_bytes_total Bytes that were copied, checked or read, while it is done.
# TYPE kvmbackup_transferred_bytes_total counter
kvmbackup_transferred_bytes_total{op="backup",step="digest",vm="vm1"} 50
kvmbackup_transferred_bytes_total{op="backup",step="follow job",vm="vm1"} 400
`, "kvmbackup_running", "kvmbackup_running_done_bytes", "kvmbackup_running_total_bytes",
		"kvmbackup_transferred_bytes_total")
	if n := testutil.CollectAndCount(m, "kvmbackup_operation_duration_seconds"); n != 2 {
		t.Errorf("%d histograms, want one of each outcome", n)
	}
}

// TestGuestLatency: what each operation tells of the guest's requests adds up, whether the hypervisor tells it or not.
func TestGuestLatency(t *testing.T) {
	m := metrics.New()
	at := func(op int64, guest kvmbackup.JobProgress) {
		m.Observe(engine.Event{Type: engine.EventProgress, OpID: op, Op: "backup", VM: "vm1", Progress: &guest})
	}
	for op := range int64(2) {
		m.Observe(engine.Event{Type: engine.EventStarted, OpID: op, Op: "backup", VM: "vm1"})
		at(op, kvmbackup.JobProgress{})
		at(op, kvmbackup.JobProgress{GuestRequests: 10, GuestTime: time.Second})
		at(op, kvmbackup.JobProgress{GuestRequests: 30, GuestTime: 5 * time.Second})
		m.Observe(engine.Event{Type: engine.EventDone, OpID: op, Op: "backup", VM: "vm1"})
	}
	const want = `
# HELP kvmbackup_guest_request_seconds_total How long the guest's requests took while a backup ran.
# TYPE kvmbackup_guest_request_seconds_total counter
kvmbackup_guest_request_seconds_total{vm="vm1"} 10
# HELP kvmbackup_guest_requests_total Requests of the guest to its disks while a backup of them ran.
# TYPE kvmbackup_guest_requests_total counter
kvmbackup_guest_requests_total{vm="vm1"} 60
`
	err := testutil.CollectAndCompare(m, strings.NewReader(want), "kvmbackup_guest_requests_total",
		"kvmbackup_guest_request_seconds_total")
	if err != nil {
		t.Error(err)
	}
}

// TestLastVerified: the last verification that found nothing, also after a restart.
func TestLastVerified(t *testing.T) {
	const want = `
# HELP kvmbackup_last_verified_timestamp_seconds ` +
		`Unix time at which a verification of one of the VM's backups last found nothing.
# TYPE kvmbackup_last_verified_timestamp_seconds gauge
kvmbackup_last_verified_timestamp_seconds{vm="vm1"} 1.7e+09
`
	at := time.Unix(1700000000, 0).UTC()
	b := kvmbackup.Backup{VM: "vm1", Verification: &kvmbackup.Verification{At: at, OK: true}}
	told, seeded := metrics.New(), metrics.New()
	told.Observe(engine.Event{Type: engine.EventVerified, Time: at, Op: "verify", VM: "vm1", Backup: &b})
	seeded.Seed(b)
	b.Verification.OK, b.Verification.At = false, at.Add(time.Hour)
	seeded.Seed(b)
	for _, m := range []*metrics.Metrics{told, seeded} {
		err := testutil.CollectAndCompare(m, strings.NewReader(want), "kvmbackup_last_verified_timestamp_seconds")
		if err != nil {
			t.Error(err)
		}
	}
}
