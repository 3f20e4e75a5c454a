package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/leave"
)

// domain is a domain that libvirt knows. Calls that hang keep libvirt's object alive after close.
type domain struct {
	name, uuid string

	mu  sync.Mutex
	dom *libvirt.Domain // nil after close
}

// lookUp finds the domain and checks its UUID. It returns nil without an error for one that libvirt doesn't know
// and the reference describes.
func (e *Executor) lookUp(ctx context.Context, ref kvmbackup.DomainRef) (*domain, error) {
	found, err := onConnection(ctx, e, ref.Name, func(conn *libvirt.Connect) (*domain, error) {
		return findDomain(conn, ref.Name)
	}, func(d *domain) { d.close() })
	if isCode(err, libvirt.ERR_NO_DOMAIN) && len(ref.Disks) > 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up domain %q: %w%s", ref.Name, translate(err), wayToFind(err))
	}
	if ref.UUID != "" && !strings.EqualFold(ref.UUID, found.uuid) {
		found.close()
		return nil, fmt.Errorf("%w: domain %q has UUID %s, not %s", kvmbackup.ErrNoDomain, ref.Name, found.uuid, ref.UUID)
	}
	return found, nil
}

// wayToFind is the way out for a domain that libvirt doesn't know.
func wayToFind(err error) string {
	if !isCode(err, libvirt.ERR_NO_DOMAIN) {
		return ""
	}
	return "; is it on another host or connection? One that is off and not defined has to be described by its disks"
}

func findDomain(conn *libvirt.Connect, name string) (*domain, error) {
	dom, err := conn.LookupDomainByName(name)
	if err != nil {
		return nil, err
	}
	uuid, err := dom.GetUUIDString()
	if err != nil {
		return nil, errors.Join(err, dom.Free())
	}
	return &domain{name: name, uuid: uuid, dom: dom}, nil
}

// close gives the domain back. It is idempotent.
func (d *domain) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dom != nil {
		_ = d.dom.Free()
		d.dom = nil
	}
}

// share returns libvirt's object for one call, which the caller has to Free.
func (d *domain) share() (*libvirt.Domain, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dom == nil {
		return nil, fmt.Errorf("%w: the job is closed", kvmbackup.ErrInvalid)
	}
	return d.dom, d.dom.Ref()
}

// call runs f on the domain and translates its error. When ctx ends first it returns the cause, and f is left behind.
func call[T any](ctx context.Context, d *domain, f func(*libvirt.Domain) (T, error)) (T, error) {
	dom, err := d.share()
	if err != nil {
		var none T
		return none, err
	}
	v, err := detached(ctx, d.name, func() (T, error) {
		defer func() { _ = dom.Free() }()
		return f(dom)
	}, nil)
	return v, translate(err)
}

// onConnection runs f, as detached does, on a connection of the executor. The error is libvirt's own: see translate.
func onConnection[T any](
	ctx context.Context, e *Executor, about string, f func(*libvirt.Connect) (T, error), late func(T),
) (T, error) {
	return detached(ctx, about, func() (none T, err error) {
		conn, err := e.connection(ctx)
		if err != nil {
			return none, err
		}
		defer func() { _, _ = conn.Close() }()
		return f(conn)
	}, late)
}

// do is call for what has no result.
func do(ctx context.Context, d *domain, f func(*libvirt.Domain) error) error {
	_, err := call(ctx, d, func(dom *libvirt.Domain) (struct{}, error) { return struct{}{}, f(dom) })
	return err
}

// hung knows the calls that were left behind, by what they are about, over all Executors of the process. Each keeps a
// thread.
var hung = leave.Register{PerPlace: 32}

// detached runs f, which is about the domain or whatever is named, and returns its result, or the cause of ctx when
// that ends first. late, if not nil, gets the result of an f that has succeeded when nobody waited any more.
func detached[T any](ctx context.Context, about string, f func() (T, error), late func(T)) (T, error) {
	if ctx.Done() == nil {
		return f()
	}
	v, err := leave.Do(ctx, &hung, leave.Options{What: "libvirt", Places: []string{about}},
		func(*leave.Work) (T, error) { return f() },
		func(_ *leave.Work, v T, err error) {
			if err == nil && late != nil {
				late(v)
			}
		})
	var left *leave.Error
	if errors.As(err, &left) {
		return v, left.Cause
	}
	if errors.Is(err, leave.ErrPiled) {
		err = fmt.Errorf("%w: %w: libvirt doesn't answer: %w", kvmbackup.ErrBusy, kvmbackup.ErrUnavailable, err)
	}
	return v, err
}
