// Package metrics turns the engine's event stream into Prometheus metrics. It is optional: nothing else of the library
// imports it or the Prometheus client.
//
//	m := metrics.New()
//	registry.MustRegister(m)
//	config.OnEvent = m.Observe // the engine.Config that the engine is made with
//
// Metrics know what they have observed. After a start of the host program, give them every VM's newest backup with
// Seed, or the age of a VM's last success is unknown until its next one. Metrics have the label vm, and some have more;
// see [Metrics].
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// Metrics is a prometheus.Collector. It is safe for concurrent use. Its metrics are:
//
//	kvmbackup_last_success_timestamp_seconds{vm}  when the last backup was completed
//	kvmbackup_last_duration_seconds{vm}           how long it took, from its record to its completion
//	kvmbackup_last_stored_bytes{vm}               what it takes in the repository
//	kvmbackup_last_dirty_ratio{vm}                copied bytes to virtual size, 0 to 1
//	kvmbackup_last_frozen_seconds{vm}             how long the guest was frozen
//	kvmbackup_chain_length{vm}                    its position plus one
//	kvmbackup_backups_total{vm,kind}              completed backups
//	kvmbackup_stored_bytes_total{vm,kind}         bytes written by completed backups
//	kvmbackup_failures_total{vm,op,cause}         failed operations; cause is its kvmbackup.Code
//	kvmbackup_stalls_total{vm}                    times that a job was reported as standing still
//	kvmbackup_bitmap_missed_bytes_total{vm}       changes that a comparison found outside of a bitmap's marks
//	kvmbackup_parent_unreadable_bytes_total{vm}   what a comparison could not read of the parent
//	kvmbackup_deleted_total{vm}, kvmbackup_deleted_bytes_total{vm}
//	kvmbackup_recovered_total{vm}                 what was settled after crashes
//	kvmbackup_last_verified_timestamp_seconds{vm} when a verification of one of its backups last found nothing
//	kvmbackup_running{vm,op}                      operations that hold the VM's lease now
//	kvmbackup_running_done_bytes{vm,op}           how far the step is that runs now; not there when none runs
//	kvmbackup_running_total_bytes{vm,op}          how much there is to do in it
//	kvmbackup_transferred_bytes_total{vm,op,step} bytes copied, checked or read, counted while it is done
//	kvmbackup_guest_requests_total{vm}            requests of the guest to its disks while a backup of them ran
//	kvmbackup_guest_request_seconds_total{vm}     how long they took: by the former it is the mean latency under backup
//	kvmbackup_operation_duration_seconds{op,outcome}  a histogram over all VMs; outcome is done or failed
//	kvmbackup_waiting{op}                         operations that wait for a place of a Limiter, or for their VM, now
//	kvmbackup_wait_seconds{op}                    how long operations waited to start, a histogram over all VMs
type Metrics struct {
	lastSuccess, duration, stored, dirtyRatio, frozen, chainLength *prometheus.GaugeVec
	backups, storedTotal, failures, stalls                         *prometheus.CounterVec
	deleted, deletedBytes, recovered, missed, unreadable           *prometheus.CounterVec
	lastVerified                                                   *prometheus.GaugeVec
	running                                                        *running
}

var _ prometheus.Collector = (*Metrics)(nil)

// New returns metrics that are not registered anywhere yet.
func New() *Metrics {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kvmbackup", Name: name, Help: help}, []string{"vm"})
	}
	counter := func(name, help string, more ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kvmbackup", Name: name, Help: help},
			append([]string{"vm"}, more...))
	}
	return &Metrics{
		lastSuccess: gauge("last_success_timestamp_seconds", "Unix time at which the VM's last backup was completed."),
		duration:    gauge("last_duration_seconds", "How long the last completed backup took."),
		stored:      gauge("last_stored_bytes", "Bytes that the last completed backup takes in the repository."),
		dirtyRatio:  gauge("last_dirty_ratio", "Bytes that the last completed backup copied, divided by the virtual size."),
		frozen:      gauge("last_frozen_seconds", "How long the guest was frozen for the last completed backup."),
		chainLength: gauge("chain_length", "Number of backups in the chain of the last completed backup."),
		backups:     counter("backups_total", "Completed backups.", "kind"),
		storedTotal: counter("stored_bytes_total", "Bytes written to the repository by completed backups.", "kind"),
		failures:    counter("failures_total", "Failed operations.", "op", "cause"),
		stalls:      counter("stalls_total", "Times that a job was reported as standing still."),
		missed: counter("bitmap_missed_bytes_total", "Bytes of changes that a comparison found outside of a "+
			"bitmap's marks."),
		unreadable:   counter("parent_unreadable_bytes_total", "Bytes that a comparison could not read of the parent."),
		deleted:      counter("deleted_total", "Backups whose files and record were removed."),
		deletedBytes: counter("deleted_bytes_total", "Bytes that removed backups gave back."),
		recovered:    counter("recovered_total", "Backups settled after a crash."),
		lastVerified: gauge("last_verified_timestamp_seconds",
			"Unix time at which a verification of one of the VM's backups last found nothing."),
		running: newRunning(),
	}
}

// Observe takes one event; it is what Config.OnEvent wants. It doesn't block.
func (m *Metrics) Observe(ev engine.Event) {
	m.running.observe(ev)
	vm := string(ev.VM)
	switch ev.Type {
	case engine.EventVerified:
		m.lastVerified.WithLabelValues(vm).Set(seconds(ev.Time))
	case engine.EventCompleted:
		if ev.Op == "backup" || ev.Op == "recover" {
			m.completed(vm, ev)
		}
	case engine.EventFailed:
		m.failures.WithLabelValues(vm, ev.Op, kvmbackup.Code(ev.Err)).Inc()
	case engine.EventStalled:
		m.stalls.WithLabelValues(vm).Inc()
	case engine.EventMissed:
		m.missed.WithLabelValues(vm).Add(float64(ev.Bytes))
	case engine.EventParentUnreadable:
		m.unreadable.WithLabelValues(vm).Add(float64(ev.Bytes))
	case engine.EventDeleted:
		m.deleted.WithLabelValues(vm).Inc()
		m.deletedBytes.WithLabelValues(vm).Add(float64(ev.Bytes))
	case engine.EventRecovered:
		m.recovered.WithLabelValues(vm).Inc()
	}
}

func (m *Metrics) completed(vm string, ev engine.Event) {
	m.Seed(*ev.Backup)
	m.backups.WithLabelValues(vm, ev.Backup.Kind.String()).Inc()
	m.storedTotal.WithLabelValues(vm, ev.Backup.Kind.String()).Add(float64(ev.Backup.StoredBytes()))
}

// Seed sets the gauges of a VM from its newest backup, as Store.Newest returns it, before the engine's first operation.
// Counters begin at 0 with every process, as Prometheus expects.
func (m *Metrics) Seed(newest kvmbackup.Backup) {
	b, vm := newest, string(newest.VM)
	var dirty, size int64
	for _, v := range b.Volumes {
		dirty, size = dirty+v.DirtyBytes, size+v.VirtualSize
	}
	m.lastSuccess.WithLabelValues(vm).Set(seconds(b.CompletedAt))
	m.duration.WithLabelValues(vm).Set(b.CompletedAt.Sub(b.StartedAt).Seconds())
	m.stored.WithLabelValues(vm).Set(float64(b.StoredBytes()))
	m.frozen.WithLabelValues(vm).Set(b.FrozenFor.Seconds())
	m.chainLength.WithLabelValues(vm).Set(float64(b.Position + 1))
	if size > 0 {
		m.dirtyRatio.WithLabelValues(vm).Set(float64(dirty) / float64(size))
	}
	if v := b.Verification; v != nil && v.OK {
		m.lastVerified.WithLabelValues(vm).Set(seconds(v.At))
	}
}

// seconds is how Prometheus writes a time.
func seconds(t time.Time) float64 { return float64(t.UnixNano()) / float64(time.Second) }

// Forget removes a VM's series, for one that is gone.
func (m *Metrics) Forget(vm kvmbackup.VMID) {
	for _, v := range m.vectors() {
		v.DeletePartialMatch(prometheus.Labels{"vm": string(vm)})
	}
}

type vector interface {
	prometheus.Collector
	DeletePartialMatch(prometheus.Labels) int
}

func (m *Metrics) vectors() []vector {
	return append(m.running.vectors(), m.lastSuccess, m.duration, m.stored, m.dirtyRatio, m.frozen, m.chainLength,
		m.backups, m.storedTotal,
		m.failures, m.stalls, m.deleted, m.deletedBytes, m.recovered, m.missed, m.unreadable, m.lastVerified)
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range m.vectors() {
		v.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, v := range m.vectors() {
		v.Collect(ch)
	}
}
