package kvmbackuptest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/kvmbackup/kvmbackup"
)

// ErrHostKilled is what calls of an Executor return after KillHost: the process that they were made in is gone.
var ErrHostKilled = errors.New("simulated: the host process was killed")

// Hypervisor is a simulated host with libvirt and QEMU. It is safe for concurrent use.
type Hypervisor struct {
	store   *storage
	domains map[string]*domain
	onCall  func(op string) error
	onStep  func(domain string, doneBytes, totalBytes int64)
	process chan struct{} // closed when the host process is killed
}

// storage is what hypervisors between which domains migrate have in common: the images, and one lock for everything.
type storage struct {
	mu      sync.Mutex
	images  map[string]*storedImage
	changed chan struct{} // closed, and replaced, at every change that somebody may wait for
}

func (s *storage) broadcast() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// NewHypervisor returns a hypervisor without domains. With another one given it shares that one's storage, so that
// domains can migrate between the two.
func NewHypervisor(sharing ...*Hypervisor) *Hypervisor {
	h := &Hypervisor{domains: map[string]*domain{}, process: make(chan struct{})}
	for _, other := range sharing {
		h.store = other.store
	}
	if h.store == nil {
		h.store = &storage{images: map[string]*storedImage{}, changed: make(chan struct{})}
	}
	return h
}

// lock is for methods in one line: defer h.lock()().
func (h *Hypervisor) lock() func() {
	h.store.mu.Lock()
	return h.store.mu.Unlock
}

// OnCall sets a function that is called before and after every call of an Executor and its Jobs, with the method's
// name, "Begin", and then "Begin done". An error before keeps the call from having its effect, one after hides that it
// had it; both come out of the call. It may use the Hypervisor. nil removes it.
func (h *Hypervisor) OnCall(f func(op string) error) {
	defer h.lock()()
	h.onCall = f
}

// OnStep sets a function that is called after every step of a job, which is one cluster: the place for guest writes in
// mid-job and for accidents. It may use the Hypervisor. nil removes it.
func (h *Hypervisor) OnStep(f func(domain string, doneBytes, totalBytes int64)) {
	defer h.lock()()
	h.onStep = f
}

// KillHost kills the host process: every call of the Executors made so far fails with ErrHostKilled from now on, also
// those under way. Jobs of stopped domains end with it. Jobs of running domains go on, as far as a new Executor's
// Wait, or RunJob, takes them.
func (h *Hypervisor) KillHost() {
	defer h.lock()()
	close(h.process)
	h.process = make(chan struct{})
	for _, im := range h.store.images {
		if j, ok := im.user.(*job); ok && j.h == h {
			j.end(fmt.Errorf("%w: its process was killed", kvmbackup.ErrJobFailed))
		}
	}
	h.store.broadcast()
}

// domain returns a domain that the simulator knows, whether libvirt does or not. The lock is held.
func (h *Hypervisor) domain(name string) (*domain, error) {
	d, ok := h.domains[name]
	if !ok {
		return nil, fmt.Errorf("%w: %q", kvmbackup.ErrNoDomain, name)
	}
	return d, nil
}

// with runs f on a domain under the lock, and wakes up all goroutines that wait for a change.
func (h *Hypervisor) with(name string, f func(d *domain) error) error {
	defer h.lock()()
	d, err := h.domain(name)
	if err != nil {
		return err
	}
	defer h.store.broadcast()
	return f(d)
}

// on is with for one disk.
func (h *Hypervisor) on(name, device string, f func(d *domain, k *disk) error) error {
	return h.with(name, func(d *domain) error {
		k, err := d.disk(device)
		if err != nil {
			return err
		}
		return f(d, k)
	})
}

func sortedKeys[K ~string | ~int64, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
