package qcow2

import "time"

// paceInterval is the time between two looks at what a paced process has written.
const paceInterval = 20 * time.Millisecond

// budget says when a copy is ahead of a limit that may change. The zero value is ready.
type budget struct {
	credit  float64 // bytes by which less was written than the limit allows
	at      time.Time
	written int64
}

// ahead says whether a copy that has written so many bytes by now has to rest, by a limit in bytes a second. What was
// written before it is asked for the first time doesn't count.
func (b *budget) ahead(limit int64, now time.Time, written int64) bool {
	if b.at.IsZero() {
		b.at, b.written = now, written
	}
	b.credit += float64(limit)*now.Sub(b.at).Seconds() - float64(written-b.written)
	b.credit = min(b.credit, float64(limit)/4) // what is not used for 250 ms is lost
	b.at, b.written = now, written
	return b.credit < 0
}

// keepPace has the process rest whenever it has written more than the rate allows, until stop. A process that rests is
// stopped (SIGSTOP): qemu-img can't be given another limit while it runs. SIGKILL ends it all the same.
func (p *process) keepPace(rate func() int64) (stop func()) {
	end, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		ticker := time.NewTicker(paceInterval)
		defer ticker.Stop()
		for b := (budget{}); ; {
			p.pace(&b, rate())
			select {
			case <-end:
				return
			case <-p.done:
				return
			case <-ticker.C:
			}
		}
	}()
	return func() { close(end); <-over }
}

// pace looks once; 0: no limit.
func (p *process) pace(b *budget, limit int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exited {
		return
	}
	pid, rest := p.cmd.Process.Pid, false
	if limit <= 0 {
		*b = budget{}
	} else if written, known := writtenBytes(pid); known {
		rest = b.ahead(limit, time.Now(), written)
	}
	if rest != p.rests && pauseGroup(pid, rest) {
		p.rests = rest
	}
}

// lower is the lower one of two limits; 0: no limit.
func lower(a, b int64) int64 {
	if a <= 0 || b > 0 && b < a {
		return b
	}
	return a
}
