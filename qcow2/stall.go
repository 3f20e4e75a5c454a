package qcow2

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/pace"
)

// looksPerStall is how often something is looked at within the time that it may stand still.
const looksPerStall = 20

// withStall ends ctx with ErrTimeout when what moved returns has been the same for as long as limit. A moved that can't
// tell counts as having moved, and so does one that waits for ctx's limit on what is read.
func withStall(ctx context.Context, limit time.Duration, moved func() (int64, bool)) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if limit == NoLimit {
		return ctx, func() { cancel(nil) }
	}
	go func() {
		ticker := time.NewTicker(max(limit/looksPerStall, time.Millisecond))
		defer ticker.Stop()
		last, known := moved()
		since := time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			now, told := moved()
			if !known || !told || now != last || pace.Waiting(ctx) {
				last, known, since = now, told, time.Now()
			} else if time.Since(since) >= limit {
				cancel(fmt.Errorf("%w: nothing was read or written for %v", ErrTimeout, limit))
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// stallLimit is how long a command may stand still. One that was told to be slow moves its buffers one by one.
func (t *Tool) stallLimit(bandwidthBytes int64) time.Duration {
	const buffers = 16 * 2 << 20 // qemu-img's
	if t.cfg.StallTimeout == NoLimit || bandwidthBytes == 0 {
		return t.cfg.StallTimeout
	}
	return t.cfg.StallTimeout + time.Duration(buffers/bandwidthBytes+1)*time.Second
}

// moved is how many bytes the process has read and written, as far as that can be told: of one that was made to rest it
// can't.
func (p *process) moved() (int64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exited || p.rests {
		return 0, false
	}
	return movedBytes(p.cmd.Process.Pid)
}

// countedSource counts what was read of a source.
type countedSource struct {
	digestSource
	read atomic.Int64
}

func (c *countedSource) readAt(p []byte, offset int64) error {
	err := c.digestSource.readAt(p, offset)
	c.read.Add(int64(len(p)))
	return err
}

func (c *countedSource) extents(offset int64) ([]digestExtent, error) {
	list, err := c.digestSource.extents(offset)
	c.read.Add(1)
	return list, err
}

func (c *countedSource) moved() (int64, bool) { return c.read.Load(), true }
