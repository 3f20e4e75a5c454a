package copier

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/internal/pace"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Copy is the copying of disks, all side by side. Connect makes one; then Run is called once, and Flush when it has
// succeeded. Close ends it in any case. Progress and SetBandwidth may be called at any time, by anybody.
type Copy struct {
	disks []*disk
	limit *pace.Limit
}

// Connect connects to both ends of every disk. BandwidthBytes limits what Run writes, and what it reads of parents,
// in bytes per second over all disks; 0: no limit. ctx covers only the start. After an error no connection is open.
// Errors name the disk: qcow2.ErrSizeMismatch, ErrUnsupported, ErrProtocol.
func Connect(ctx context.Context, disks []Disk, bandwidthBytes int64) (*Copy, error) {
	c := &Copy{limit: pace.NewLimit(bandwidthBytes)}
	share := max(min(connections, most/max(len(disks), 1)), 1)
	for _, d := range disks {
		made := &disk{Disk: d, limit: c.limit}
		c.disks = append(c.disks, made)
		if err := made.connect(ctx, share); err != nil {
			c.Close()
			return nil, fmt.Errorf("disk %q: %w", d.Name, err)
		}
	}
	return c, nil
}

// Close ends all connections, with what is in flight on them, at once.
func (c *Copy) Close() {
	for _, d := range c.disks {
		d.each((*nbd.Client).Close)
	}
}

// bind ends all connections when ctx ends, so that a call that waits for a server comes back.
func (c *Copy) bind(ctx context.Context) (stop func()) {
	var stops []func() bool
	for _, d := range c.disks {
		d.each(func(client *nbd.Client) { stops = append(stops, client.Bind(ctx)) })
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// Progress is how far each disk is, in the order of Connect.
func (c *Copy) Progress() []Progress {
	var list []Progress
	for _, d := range c.disks {
		list = append(list, Progress{
			DoneBytes: d.done.Load(), TotalBytes: d.total.Load(), ParentBytes: d.read.Load(),
			ChangedBytes: d.changed.Load(), MissedBytes: d.missed.Load(),
			UnreadableBytes: d.unreadable.Load(),
		})
	}
	return list
}

// SetBandwidth changes the limit on what is written, in bytes per second over all disks; 0 lifts it.
func (c *Copy) SetBandwidth(bytesPerSecond int64) error {
	if bytesPerSecond < 0 {
		return fmt.Errorf("%w: bandwidth %d", qcow2.ErrInvalidOption, bytesPerSecond)
	}
	c.limit.Set(bytesPerSecond)
	return nil
}

// Run copies. Nil means that every piece was read, and its write was answered with success. When ctx ends it returns
// its cause, at once. After an error the connections are of no use.
func (c *Copy) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer c.bind(ctx)()
	r := &running{ctx: ctx, fail: cancel, limit: c.limit, pieces: make(chan piece), room: newRoom()}
	r.start(c.disks)
	r.workers.Wait()
	return context.Cause(ctx)
}

// Index is what the sums of the i-th disk make, once Run has succeeded; nil where there are none.
func (c *Copy) Index(i int) *qcow2.Index {
	if c.disks[i].sums == nil {
		return nil
	}
	return c.disks[i].sums.Index()
}

// Flush returns when all that was written is on the targets' storage, as far as that tells, and closes the connections.
// When ctx ends first it returns its cause.
func (c *Copy) Flush(ctx context.Context) error {
	defer c.bind(ctx)()
	errs := make([]error, len(c.disks))
	var all sync.WaitGroup
	for i, d := range c.disks {
		all.Go(func() {
			if err := d.targets[0].Flush(); err != nil {
				errs[i] = fmt.Errorf("disk %q: target: %w", d.Name, qcow2.NBDError(err))
				return
			}
			d.each((*nbd.Client).Disconnect)
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil && ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	} else if err != nil {
		return err
	}
	return nil
}
