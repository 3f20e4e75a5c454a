package libvirtjob

import (
	"log/slog"
	"sync"

	"libvirt.org/go/libvirt"
)

// events wakes up those who wait for a domain's job. An event is only a hint to look: it names no job, may belong to
// an earlier one, and comes while QEMU still has the targets open.
type events struct {
	log *slog.Logger

	mu      sync.Mutex
	waiters map[chan struct{}]string // channel of one waiter: the domain's UUID
}

func newEvents(log *slog.Logger) *events {
	return &events{log: log, waiters: map[chan struct{}]string{}}
}

// register subscribes to the job events of all domains, until cancel is called. Without an event loop libvirt
// refuses, and jobs are followed by polling.
func (ev *events) register(conn *libvirt.Connect) (cancel func()) {
	id, err := conn.DomainEventJobCompletedRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain, _ *libvirt.DomainEventJobCompleted) {
		if uuid, err := dom.GetUUIDString(); err == nil {
			ev.wake(uuid)
		}
	})
	if err != nil {
		ev.log.Debug("no job events, polling only", "error", err)
		return func() {}
	}
	return sync.OnceFunc(func() { _ = conn.DomainEventDeregister(id) })
}

func (ev *events) wake(uuid string) {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	for c, want := range ev.waiters {
		if want == uuid {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
}

// subscribe returns a channel that gets a value when the domain's job has ended, until stop is called.
func (ev *events) subscribe(uuid string) (wake <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	ev.mu.Lock()
	defer ev.mu.Unlock()
	ev.waiters[c] = uuid
	return c, func() {
		ev.mu.Lock()
		defer ev.mu.Unlock()
		delete(ev.waiters, c)
	}
}
