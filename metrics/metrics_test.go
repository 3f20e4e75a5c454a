package metrics_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/metrics"
)

func TestMetrics(t *testing.T) {
	m := metrics.New()
	at := time.Unix(1700000000, 0).UTC()
	b := kvmbackup.Backup{VM: "vm1", Kind: kvmbackup.KindIncremental, Position: 2, StartedAt: at.Add(-3 * time.Second),
		CompletedAt: at, FrozenFor: 50 * time.Millisecond, Volumes: []kvmbackup.VolumeBackup{
			{VirtualSize: 1000, DirtyBytes: 250, StoredSize: 300},
		}}
	m.Observe(engine.Event{Type: engine.EventCompleted, Op: "backup", VM: "vm1", Backup: &b})
	m.Observe(engine.Event{Type: engine.EventCompleted, Op: "restore", VM: "vm1", Backup: &b})
	m.Observe(engine.Event{
		Type: engine.EventFailed, Op: "backup", VM: "vm1", Err: fmt.Errorf("x: %w", kvmbackup.ErrNoSpace),
	})
	m.Observe(engine.Event{Type: engine.EventDeleted, VM: "vm1", Bytes: 4096})
	m.Observe(engine.Event{Type: engine.EventStalled, VM: "vm2"})
	want := `
# HELP kvmbackup_backups_total Completed backups.
# TYPE kvmbackup_backups_total counter
kvmbackup_backups_total{kind="incremental",vm="vm1"} 1
# HELP kvmbackup_chain_length Number of backups in the chain of the last completed backup.
# TYPE kvmbackup_chain_length gauge
kvmbackup_chain_length{vm="vm1"} 3
# HELP kvmbackup_deleted_bytes_total Bytes that removed backups gave back.
# TYPE kvmbackup_deleted_bytes_total counter
kvmbackup_deleted_bytes_total{vm="vm1"} 4096
# HELP kvmbackup_failures_total Failed operations.
# TYPE kvmbackup_failures_total counter
kvmbackup_failures_total{cause="no-space",op="backup",vm="vm1"} 1
# HELP kvmbackup_last_dirty_ratio Bytes that the last completed backup copied, divided by the virtual size.
# TYPE kvmbackup_last_dirty_ratio gauge
kvmbackup_last_dirty_ratio{vm="vm1"} 0.25
# HELP kvmbackup_last_duration_seconds How long the last completed backup took.
# TYPE kvmbackup_last_duration_seconds gauge
kvmbackup_last_duration_seconds{vm="vm1"} 3
# HELP kvmbackup_last_success_timestamp_seconds Unix time at which the VM's last backup was completed.
# TYPE kvmbackup_last_success_timestamp_seconds gauge
kvmbackup_last_success_timestamp_seconds{vm="vm1"} 1.7e+09
`
	err := testutil.CollectAndCompare(m, strings.NewReader(want), "kvmbackup_backups_total", "kvmbackup_chain_length",
		"kvmbackup_deleted_bytes_total", "kvmbackup_failures_total", "kvmbackup_last_dirty_ratio",
		"kvmbackup_last_duration_seconds",
		"kvmbackup_last_success_timestamp_seconds")
	if err != nil {
		t.Error(err)
	}
	m.Forget("vm1")
	if n := testutil.CollectAndCount(m); n != 1 { // the stall of vm2
		t.Errorf("%d series left after Forget, want 1", n)
	}
}

// TestSeed: after a restart the gauges say what they said before, and the counters nothing.
func TestSeed(t *testing.T) {
	at := time.Unix(1700000000, 0).UTC()
	b := kvmbackup.Backup{
		VM: "vm1", Position: 1, StartedAt: at.Add(-time.Second), CompletedAt: at, Volumes: []kvmbackup.VolumeBackup{
			{VirtualSize: 10},
		},
	}
	m := metrics.New()
	m.Seed(b)
	if n := testutil.CollectAndCount(m); n != 6 {
		t.Errorf("%d series after Seed, want the 6 gauges", n)
	}
	want := `
# HELP kvmbackup_chain_length Number of backups in the chain of the last completed backup.
# TYPE kvmbackup_chain_length gauge
kvmbackup_chain_length{vm="vm1"} 2
# HELP kvmbackup_last_success_timestamp_seconds Unix time at which the VM's last backup was completed.
# TYPE kvmbackup_last_success_timestamp_seconds gauge
kvmbackup_last_success_timestamp_seconds{vm="vm1"} 1.7e+09
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(want), "kvmbackup_chain_length",
		"kvmbackup_last_success_timestamp_seconds"); err != nil {
		t.Error(err)
	}
}

// TestRecovered: a backup that a recovery has completed is one like any other, whatever operation began with the
// recovery.
func TestRecovered(t *testing.T) {
	m := metrics.New()
	b := kvmbackup.Backup{VM: "vm1", Kind: kvmbackup.KindFull, Volumes: []kvmbackup.VolumeBackup{{VirtualSize: 10}}}
	m.Observe(engine.Event{Type: engine.EventCompleted, Op: "recover", VM: "vm1", Backup: &b})
	for _, name := range []string{"kvmbackup_backups_total", "kvmbackup_last_success_timestamp_seconds"} {
		if n := testutil.CollectAndCount(m, name); n != 1 {
			t.Errorf("%s has %d series", name, n)
		}
	}
}

// TestComparisons: what only a comparison has found is counted in bytes, by VM, whether it was a bitmap that missed it
// or a parent that can't be read, and goes with the VM.
func TestComparisons(t *testing.T) {
	m := metrics.New()
	for _, bytes := range []int64{65536, 4096} {
		m.Observe(engine.Event{Type: engine.EventMissed, VM: "vm1", Bytes: bytes})
		m.Observe(engine.Event{Type: engine.EventParentUnreadable, VM: "vm2", Bytes: 10 * bytes})
	}
	names := []string{"kvmbackup_bitmap_missed_bytes_total", "kvmbackup_parent_unreadable_bytes_total"}
	want := `
# HELP kvmbackup_bitmap_missed_bytes_total Bytes of changes that a comparison found outside of a bitmap's marks.
# TYPE kvmbackup_bitmap_missed_bytes_total counter
kvmbackup_bitmap_missed_bytes_total{vm="vm1"} 69632
# HELP kvmbackup_parent_unreadable_bytes_total Bytes that a comparison could not read of the parent.
# TYPE kvmbackup_parent_unreadable_bytes_total counter
kvmbackup_parent_unreadable_bytes_total{vm="vm2"} 696320
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	m.Forget("vm1")
	m.Forget("vm2")
	if n := testutil.CollectAndCount(m, names...); n != 0 {
		t.Errorf("%d series left after Forget", n)
	}
}

func TestLint(t *testing.T) {
	m := metrics.New()
	m.Observe(engine.Event{Type: engine.EventRecovered, VM: "vm1"})
	m.Observe(engine.Event{Type: engine.EventParentUnreadable, VM: "vm1"})
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(m)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

// Two lines connect the metrics: one to Prometheus, one to the engine that will be made with the configuration.
func Example() {
	registry := prometheus.NewRegistry()
	var config engine.Config

	m := metrics.New()
	registry.MustRegister(m)
	config.OnEvent = m.Observe

	config.OnEvent(engine.Event{Type: engine.EventDeleted, VM: "web1", Bytes: 4096})
	families, err := registry.Gather()
	for _, f := range families {
		fmt.Println(f.GetName(), f.GetMetric()[0].GetCounter().GetValue(), err)
	}
	// Output:
	// kvmbackup_deleted_bytes_total 4096 <nil>
	// kvmbackup_deleted_total 1 <nil>
}

// TestWaiting: who waits is counted until it starts or gives up, and how long it waited is kept.
func TestWaiting(t *testing.T) {
	m := metrics.New()
	event := func(typ engine.EventType, id int64, elapsed time.Duration) {
		m.Observe(engine.Event{Type: typ, OpID: id, Op: "backup", VM: "vm1", Elapsed: elapsed})
	}
	for id := range int64(3) {
		event(engine.EventWaiting, id, 0)
	}
	event(engine.EventWaiting, 0, time.Second)
	event(engine.EventStarted, 0, 2*time.Second)
	event(engine.EventFailed, 1, 0)
	want := `
# HELP kvmbackup_waiting Operations that wait for a place or for their VM now.
# TYPE kvmbackup_waiting gauge
kvmbackup_waiting{op="backup"} 1
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(want), "kvmbackup_waiting"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(m, "kvmbackup_wait_seconds"); n != 1 {
		t.Errorf("%d histograms of waits", n)
	}
}
