// Package pace keeps copies to limits in bytes a second: [Limit] lets bytes pass, for copies and readers of this
// process, and [Pacer] says which limit a backup job of QEMU's needs so that its holes pass.
package pace

import "time"

// Least is the least limit, in bytes a second, at which holes don't count. QEMU copies up
// to 1 MiB in one go, so that data can't be told from the holes between at less: below it a
// limit is QEMU's own.
const Least = 1 << 20

// fastest is a speed in bytes a second that no copy reaches.
const fastest = 1 << 42

// underWay is how much QEMU may have under way at a time, whatever its limit.
const underWay = 64 << 20

// Pacer keeps a backup job to a limit on what it writes. QEMU's own limit counts holes,
// too, so that a thin disk would take as long as a full one. The pacer is told how much was
// copied and written, and says which limit QEMU needs until the next time: it lets the job
// go faster and faster while that goes through holes, unless too much was written already.
// The zero value is ready. It isn't safe for concurrent use.
//
// QEMU counts in slices of 100 ms (its include/qemu/ratelimit.h), and a lower speed holds for
// what went since the slice's begin, too: a job that went through 10 GiB of holes then rests
// for twenty minutes at 8 MiB a second. So a job that rests after its speed was lowered, or
// after it began without a limit, is let go as soon as it has credit.
type Pacer struct {
	limit, speed    int64
	credit          int64 // bytes by which less was written than the limit allows
	lowered         bool  // the speed was, and the job hasn't moved since
	at              time.Time
	copied, written int64
}

// Next returns the speed for QEMU, in bytes a second, when the job has gone through so many bytes of the disk and
// written so many. The limit may change from call to call; 0: no limit.
func (p *Pacer) Next(limit int64, now time.Time, copied, written int64) int64 {
	if limit != p.limit || limit < Least {
		*p = Pacer{limit: limit, speed: limit, at: now, copied: copied, written: written, lowered: true}
		p.credit = -min(written, underWay)
		return p.speed
	}
	passed := now.Sub(p.at)
	if passed <= 0 {
		return p.speed
	}
	allowed := int64(float64(limit) * passed.Seconds())
	went, wrote := copied-p.copied, written-p.written
	p.at, p.copied, p.written = now, copied, written
	p.credit = min(p.credit+allowed-wrote, limit/4) // what is not used for 250 ms is lost
	p.lowered = p.lowered && went == 0
	holes := went >= allowed/2 && wrote < went/2
	switch {
	case p.credit > 0 && (holes || p.lowered):
		p.speed = min(p.speed*4, fastest)
	case holes: // QEMU writes a table of 64 KiB for half a GiB of them
		p.lower(max(p.speed/4, limit))
	default:
		p.lower(limit)
	}
	return p.speed
}

func (p *Pacer) lower(speed int64) {
	p.lowered = p.lowered || speed < p.speed
	p.speed = speed
}
