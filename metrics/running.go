package metrics

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// running follows the operations that are under way, from their start to their end.
type running struct {
	count, done, total *prometheus.GaugeVec
	transferred        *prometheus.CounterVec
	durations, waits   *prometheus.HistogramVec
	waiting            *prometheus.GaugeVec
	requests, latency  *prometheus.CounterVec

	mu   sync.Mutex
	ops  map[int64]*underway // by Event.OpID
	wait map[int64]string    // the op of those that wait for their turn
}

// underway is one operation that has started.
type underway struct {
	op, vm string
	step   string                // in which its progress was told of last
	bytes  int64                 // of that step
	guest  kvmbackup.JobProgress // the last
}

func newRunning() *running {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kvmbackup", Name: name, Help: help},
			[]string{"vm", "op"})
	}
	guest := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kvmbackup", Name: name, Help: help},
			[]string{"vm"})
	}
	return &running{
		count: gauge("running", "Operations that hold the VM's lease now."),
		done:  gauge("running_done_bytes", "How far the step that runs now is."),
		total: gauge("running_total_bytes", "How much there is to do in the step that runs now."),
		transferred: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "kvmbackup", Name: "transferred_bytes_total",
			Help: "Bytes that were copied, checked or read, while it is done.",
		}, []string{"vm", "op", "step"}),
		requests: guest("guest_requests_total", "Requests of the guest to its disks while a backup of them ran."),
		latency:  guest("guest_request_seconds_total", "How long the guest's requests took while a backup ran."),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "kvmbackup", Name: "operation_duration_seconds", Help: "How long operations took that held a VM's lease.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 10), // to three days
		}, []string{"op", "outcome"}),
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "kvmbackup", Name: "wait_seconds", Help: "How long operations waited for a place and for " +
				"their VM before they started.",
			Buckets: prometheus.ExponentialBuckets(0.25, 4, 10), // to eighteen hours
		}, []string{"op"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "kvmbackup", Name: "waiting", Help: "Operations that wait for a place or for their VM now.",
		}, []string{"op"}),
		ops: map[int64]*underway{}, wait: map[int64]string{},
	}
}

func (r *running) vectors() []vector {
	return []vector{r.count, r.done, r.total, r.transferred, r.requests, r.latency, r.durations, r.waits, r.waiting}
}

// observe takes the events of which its metrics are made.
func (r *running) observe(ev engine.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.ops[ev.OpID]
	if u == nil {
		r.queue(ev)
	}
	switch {
	case ev.Type == engine.EventStarted:
		r.ops[ev.OpID] = &underway{op: ev.Op, vm: string(ev.VM)}
		r.count.WithLabelValues(string(ev.VM), ev.Op).Inc()
	case u == nil: // it ended before it started, or this subscriber came later
	case ev.Type == engine.EventProgress:
		r.progress(u, ev)
	case ev.Op == u.op && (ev.Type == engine.EventDone || ev.Type == engine.EventFailed):
		r.end(ev.OpID, u)
		r.durations.WithLabelValues(u.op, string(ev.Type)).Observe(ev.Elapsed.Seconds())
	}
}

// queue follows an operation that hasn't started.
func (r *running) queue(ev engine.Event) {
	_, waits := r.wait[ev.OpID]
	over := ev.Type == engine.EventStarted || ev.Type == engine.EventFailed
	switch {
	case ev.Type == engine.EventWaiting && !waits:
		r.wait[ev.OpID] = ev.Op
		r.waiting.WithLabelValues(ev.Op).Inc()
	case over && waits:
		r.waiting.WithLabelValues(r.wait[ev.OpID]).Dec()
		delete(r.wait, ev.OpID)
	}
	if ev.Type == engine.EventStarted {
		r.waits.WithLabelValues(ev.Op).Observe(ev.Elapsed.Seconds())
	}
}

func (r *running) progress(u *underway, ev engine.Event) {
	p := ev.Progress
	if u.step != ev.Step || p.DoneBytes < u.bytes {
		u.step, u.bytes = ev.Step, 0
	}
	r.transferred.WithLabelValues(u.vm, u.op, u.step).Add(float64(p.DoneBytes - u.bytes))
	u.bytes = p.DoneBytes
	if more := p.GuestRequests - u.guest.GuestRequests; more > 0 {
		r.requests.WithLabelValues(u.vm).Add(float64(more))
		r.latency.WithLabelValues(u.vm).Add(max(0, p.GuestTime-u.guest.GuestTime).Seconds())
	}
	u.guest = *p
	r.done.WithLabelValues(u.vm, u.op).Set(float64(p.DoneBytes))
	r.total.WithLabelValues(u.vm, u.op).Set(float64(p.TotalBytes))
}

// end takes the bytes of an operation that is over away; the count stays, at 0.
func (r *running) end(id int64, u *underway) {
	delete(r.ops, id)
	r.count.WithLabelValues(u.vm, u.op).Dec()
	r.done.DeleteLabelValues(u.vm, u.op)
	r.total.DeleteLabelValues(u.vm, u.op)
}
