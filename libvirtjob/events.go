package libvirtjob

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

// events tells those who wait for a domain's job that one has ended. An event names no job, may belong to an earlier
// one, and comes while QEMU still has the targets open: it is a hint to look. Only where libvirt has no record of the
// outcome does what it says count.
type events struct {
	log *slog.Logger

	mu        sync.Mutex
	listeners map[*listener]struct{}
}

// listener hears of the jobs of one domain that end until it is closed.
type listener struct {
	events *events
	uuid   string
	wake   chan struct{} // gets a value when a job has ended
	ended  []libvirt.DomainJobInfo
}

func newEvents(log *slog.Logger) *events {
	return &events{log: log, listeners: map[*listener]struct{}{}}
}

// hubs has a subscription for every connection, for the executors on it: libvirt takes one function for all domains per
// connection only.
var hubs = struct {
	sync.Mutex
	of map[*libvirt.Connect]*hub
}{of: map[*libvirt.Connect]*hub{}}

// hub is who wants to hear of a connection's job events.
type hub struct {
	setup    sync.Mutex // held over libvirt's calls, which may hang with the connection
	id       int        // of the subscription
	standing bool       // it has one
	gone     bool       // it had one

	mu      sync.Mutex
	members map[*events]struct{}
}

func hubOf(conn *libvirt.Connect) *hub {
	hubs.Lock()
	defer hubs.Unlock()
	h, ok := hubs.of[conn]
	if !ok {
		h = &hub{members: map[*events]struct{}{}}
		hubs.of[conn] = h
	}
	return h
}

// register subscribes to the job events of all domains, until cancel is called. Without an event loop libvirt
// refuses, as it does where the program has subscribed to them itself, and jobs are followed by polling.
func (ev *events) register(conn *libvirt.Connect) (cancel func()) {
	for {
		h := hubOf(conn)
		joined, err := h.join(ev, conn)
		if err != nil {
			ev.log.Debug("no job events, polling only", "error", err)
			return func() {}
		}
		if joined {
			return sync.OnceFunc(func() { h.leave(ev, conn) })
		}
	}
}

// join says no when the hub's last member has left it.
func (h *hub) join(ev *events, conn *libvirt.Connect) (joined bool, err error) {
	h.setup.Lock()
	defer h.setup.Unlock()
	if h.gone {
		return false, nil
	}
	if !h.standing {
		if h.id, err = conn.DomainEventJobCompletedRegister(nil, h.tell); err != nil {
			h.close(conn)
			return false, err
		}
		h.standing = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.members[ev] = struct{}{}
	return true, nil
}

func (h *hub) leave(ev *events, conn *libvirt.Connect) {
	h.setup.Lock()
	defer h.setup.Unlock()
	h.mu.Lock()
	delete(h.members, ev)
	left := len(h.members)
	h.mu.Unlock()
	if left == 0 {
		_ = conn.DomainEventDeregister(h.id)
		h.close(conn)
	}
}

// close has the next who registers make another hub.
func (h *hub) close(conn *libvirt.Connect) {
	h.gone = true
	hubs.Lock()
	defer hubs.Unlock()
	delete(hubs.of, conn)
}

func (h *hub) tell(_ *libvirt.Connect, dom *libvirt.Domain, e *libvirt.DomainEventJobCompleted) {
	uuid, err := dom.GetUUIDString()
	if err != nil {
		return
	}
	h.mu.Lock()
	members := slices.Collect(maps.Keys(h.members))
	h.mu.Unlock()
	for _, ev := range members {
		ev.tell(uuid, e.Info)
	}
}

func (ev *events) tell(uuid string, info libvirt.DomainJobInfo) {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	for l := range ev.listeners {
		if l.uuid != uuid {
			continue
		}
		l.ended = append(l.ended, info)
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// listen returns a listener, which the caller has to close.
func (ev *events) listen(uuid string) *listener {
	l := &listener{events: ev, uuid: uuid, wake: make(chan struct{}, 1)}
	ev.mu.Lock()
	defer ev.mu.Unlock()
	ev.listeners[l] = struct{}{}
	return l
}

// close is idempotent, and does nothing for nil.
func (l *listener) close() {
	if l == nil {
		return
	}
	l.events.mu.Lock()
	defer l.events.mu.Unlock()
	delete(l.events.listeners, l)
}

// outcome returns what was heard of a backup job that took between shortest and longest; nil: nothing. Where several
// could be meant, a failure counts. An event of no length is one that libvirt sends when it starts and finds a job that
// has ended: of whom nobody knows.
func (l *listener) outcome(shortest, longest time.Duration) *libvirt.DomainJobInfo {
	l.events.mu.Lock()
	defer l.events.mu.Unlock()
	var found *libvirt.DomainJobInfo
	for _, info := range l.ended {
		took := elapsed(&info)
		if info.Operation != libvirt.DOMAIN_JOB_OPERATION_BACKUP || took == 0 || took < shortest || took > longest {
			continue
		}
		if found == nil || succeeded(found) {
			found = &info
		}
	}
	return found
}
