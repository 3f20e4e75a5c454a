package kvmbackuptest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// executor is a kvmbackup.Executor of one host process.
type executor struct {
	h       *Hypervisor
	process chan struct{} // closed when that is killed
}

var _ kvmbackup.Executor = (*executor)(nil)

// Executor returns an Executor on this hypervisor, as a new host process would open it.
func (h *Hypervisor) Executor() kvmbackup.Executor {
	defer h.lock()()
	return &executor{h, h.process}
}

// machine is what a reference leads to: a domain, or the disks of one that libvirt doesn't know. The latter
// has a domain all the same when the simulator remembers it, but no call sees more of that than its accidents.
type machine struct {
	*domain
	disks  []*disk
	known  bool // to libvirt
	host   *Hypervisor
	target Target
}

// running hides that of the domain, which may be nil.
func (m *machine) running() bool { return m.known && m.domain.running() }

func (m *machine) disk(device string) (*disk, error) {
	d := &domain{disks: m.disks}
	if m.domain != nil {
		d.name = m.name
	}
	return d.disk(device)
}

// find resolves a reference. The lock is held.
func (h *Hypervisor) find(ref kvmbackup.DomainRef) (*machine, error) {
	d := h.domains[ref.Name]
	if d != nil && d.defined() {
		if ref.UUID != "" && ref.UUID != d.uuid {
			return nil, fmt.Errorf("%w: %q has the UUID %s, not %s", kvmbackup.ErrNoDomain, ref.Name, d.uuid, ref.UUID)
		}
		return &machine{domain: d, disks: d.disks, known: true, host: h, target: d.target}, nil
	}
	if len(ref.Disks) == 0 {
		return nil, fmt.Errorf("%w: %q", kvmbackup.ErrNoDomain, ref.Name)
	}
	m := &machine{host: h}
	if d != nil {
		m.target = d.target
	}
	for _, r := range ref.Disks {
		im := h.store.imageAt(r.Source)
		if im == nil {
			return nil, fmt.Errorf("%w: no image %s", kvmbackup.ErrNoVolume, r.Source)
		}
		k := &disk{device: r.Device, image: im, shareable: r.Shareable}
		if r.Encryption != kvmbackup.NotEncrypted {
			k.encryption = r.Encryption
		}
		if r.ReadOnly {
			k.skip = "read-only"
		}
		m.disks = append(m.disks, k)
	}
	return m, nil
}

// imageAt returns the image at a path, which may be one below another image; nil if no image has it.
func (s *storage) imageAt(path string) *storedImage {
	if im, ok := s.images[path]; ok {
		return im
	}
	for _, im := range s.images {
		if i := slices.IndexFunc(im.layers, func(l *layer) bool { return l.path == path }); i > 0 {
			below := *im
			below.path, below.layers = path, im.layers[i:]
			return &below
		}
	}
	return nil
}

// do is one call on a domain, under the lock.
func (e *executor) do(ctx context.Context, op string, ref kvmbackup.DomainRef, f func(m *machine) error) error {
	return e.call(ctx, op, func() error {
		m, err := e.h.find(ref)
		if err != nil {
			return err
		}
		return f(m)
	})
}

// call runs f under the lock, between the two calls of the hook.
func (e *executor) call(ctx context.Context, op string, f func() error) error {
	if err := e.hook(ctx, op); err != nil {
		return err
	}
	if err := e.locked(f); err != nil {
		return fmt.Errorf("simulated %s: %w", op, err)
	}
	return e.hook(context.WithoutCancel(ctx), op+" done")
}

func (e *executor) locked(f func() error) error {
	e.h.store.mu.Lock()
	defer e.h.store.mu.Unlock()
	defer e.h.store.broadcast()
	if e.killed() {
		return ErrHostKilled
	}
	return f()
}

func (e *executor) killed() bool {
	select {
	case <-e.process:
		return true
	default:
		return false
	}
}

// hook lets a test interfere.
func (e *executor) hook(ctx context.Context, op string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	e.h.store.mu.Lock()
	f := e.h.onCall
	e.h.store.mu.Unlock()
	if f != nil {
		if err := f(op); err != nil {
			return fmt.Errorf("simulated %s: %w", op, err)
		}
	}
	if e.killed() {
		return ErrHostKilled
	}
	return nil
}

// await lets go of the lock until something has changed, or for the time given unless that is 0.
func (e *executor) await(ctx context.Context, limit time.Duration) error {
	changed := e.h.store.changed
	e.h.store.mu.Unlock()
	defer e.h.store.mu.Lock()
	var timer <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-changed:
	case <-timer:
	case <-e.process:
		return ErrHostKilled
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

var _ kvmbackup.ImageUsers = (*executor)(nil)

// ImageUsers implements kvmbackup.ImageUsers.
func (e *executor) ImageUsers(ctx context.Context, except kvmbackup.DomainRef) (map[string]string, error) {
	users := map[string]string{}
	err := e.call(ctx, "ImageUsers", func() error {
		for _, d := range e.h.domains {
			if !d.running() || d.name == except.Name {
				continue
			}
			for _, k := range d.images() {
				for _, l := range k.image.layers {
					users[l.path] = d.name
				}
			}
		}
		return nil
	})
	return users, err
}

// Freeze implements kvmbackup.Executor.
func (e *executor) Freeze(ctx context.Context, ref kvmbackup.DomainRef) (n int, err error) {
	err = e.do(ctx, "Freeze", ref, func(m *machine) error {
		if !m.running() || m.state != kvmbackup.DomainRunning {
			return fmt.Errorf("%w: %q", kvmbackup.ErrDomainStopped, ref.Name)
		}
		var waits bool
		if n, waits, err = m.guest.freeze(); !waits {
			return err
		}
		for {
			if err := e.await(ctx, 0); err != nil {
				return fmt.Errorf("%w: %w", kvmbackup.ErrNoAgent, err)
			}
		}
	})
	return n, err
}

// Thaw implements kvmbackup.Executor.
func (e *executor) Thaw(ctx context.Context, ref kvmbackup.DomainRef) error {
	return e.do(ctx, "Thaw", ref, func(m *machine) error {
		switch {
		case !m.running():
			return nil
		case m.state != kvmbackup.DomainRunning:
			return fmt.Errorf("%w: %q is paused", kvmbackup.ErrDomainStopped, ref.Name)
		}
		return m.guest.thaw()
	})
}

// Resume implements kvmbackup.Executor.
func (e *executor) Resume(ctx context.Context, ref kvmbackup.DomainRef) error {
	return e.do(ctx, "Resume", ref, func(m *machine) error {
		if !m.running() {
			return fmt.Errorf("%w: %q", kvmbackup.ErrDomainStopped, ref.Name)
		}
		return m.resume()
	})
}
