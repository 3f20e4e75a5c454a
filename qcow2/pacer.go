package qcow2

import "time"

// MinPaced is the least limit, in bytes a second, at which holes don't count. QEMU copies up
// to 1 MiB in one go, so that data can't be told from the holes between at less: below it a
// limit is QEMU's own.
const MinPaced = 1 << 20

// fastest is a speed in bytes a second that no copy reaches.
const fastest = 1 << 42

// Pacer keeps a backup job to a limit on what it writes. QEMU's own limit counts holes,
// too, so that a thin disk would take as long as a full one. The pacer is told how much was
// copied and written, and says which limit QEMU needs until the next time: it lets the job
// go faster and faster while that goes through holes, unless too much was written already.
// The zero value is ready. It isn't safe for concurrent use.
type Pacer struct {
	limit, speed    int64
	credit          int64 // bytes by which less was written than the limit allows
	at              time.Time
	copied, written int64
}

// Next returns the speed for QEMU, in bytes a second, when the job has gone through so many
// bytes of the disk and written so many. The limit may change from call to call; 0 is none.
func (p *Pacer) Next(limit int64, now time.Time, copied, written int64) int64 {
	if limit != p.limit || limit < MinPaced {
		*p = Pacer{limit: limit, speed: limit, at: now, copied: copied, written: written}
		return p.speed
	}
	passed := now.Sub(p.at)
	if passed <= 0 {
		return p.speed
	}
	allowed := int64(float64(limit) * passed.Seconds())
	went, wrote := copied-p.copied, written-p.written
	p.at, p.copied, p.written = now, copied, written
	p.credit = min(p.credit+allowed-wrote, limit) // what wasn't used for a second is lost
	if p.credit > 0 && went >= allowed/2 && wrote < went/2 {
		p.speed = min(p.speed*4, fastest)
	} else {
		p.speed = limit
	}
	return p.speed
}
