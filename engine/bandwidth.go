package engine

import (
	"context"
	"math"
	"slices"
)

// SetBandwidth limits what the backups and restores that have places here copy together, in bytes per second; 0: no
// limit, as a new Limiter has. It can be changed at any time. Each job gets a part by its Turn's Weight: what one can't
// use, because its request or another Limiter allows less, is the others'. A job that begins or ends changes the parts
// of those that run, by Job.SetBandwidth: a pull keeps to its part exactly, a push as QEMU does (see
// BackupRequest.BandwidthBytes). A job that recovery follows has a part, too, with weight 1. A restore's part is that
// of its volumes that are copied at once, in equal shares, by ConvertOptions.Rate of package qcow2. What reads backups
// for their digests has a part, too: with weight 1 where it has no Turn, as Verify and AddDigests.
func (l *Limiter) SetBandwidth(bytesPerSecond int64) {
	limiters.Lock()
	defer limiters.Unlock()
	l.bandwidth = max(bytesPerSecond, 0)
	shareOut(l)
}

// pace is the bandwidth of a job.
type pace struct {
	of      []*Limiter
	weight  float64
	own     int64         // what the request allows; 0: no limit
	share   int64         // its part; 0: no limit
	changed chan struct{} // has an element when share isn't what the job was told
}

// begin takes part in the bandwidth of the visit's limiters, until end. A visit that is nil has the request's alone.
func (v *visit) begin(own int64) *pace { return v.beginOneOf(1, own) }

// beginOneOf is begin for one of n copies that share the visit's weight; own is the copy's.
func (v *visit) beginOneOf(n int, own int64) *pace {
	p := &pace{weight: 1, own: own, share: own, changed: make(chan struct{}, 1)}
	if v == nil {
		return p
	}
	limiters.Lock()
	defer limiters.Unlock()
	p.of, p.weight = v.of, float64(max(v.turn.Weight, 1))/float64(n)
	for _, l := range p.of {
		l.jobs = append(l.jobs, p)
	}
	shareOut(p.of...)
	return p
}

func (p *pace) end() {
	limiters.Lock()
	defer limiters.Unlock()
	for _, l := range p.of {
		l.jobs = slices.DeleteFunc(l.jobs, func(o *pace) bool { return o == p })
	}
	shareOut(p.of...)
}

// setOwn changes what the request allows.
func (p *pace) setOwn(bytesPerSecond int64) {
	limiters.Lock()
	defer limiters.Unlock()
	p.own = bytesPerSecond
	if len(p.of) == 0 {
		p.set(bytesPerSecond)
	}
	shareOut(p.of...)
}

func (p *pace) now() int64 {
	limiters.Lock()
	defer limiters.Unlock()
	return p.share
}

// beside is what the limiters leave to who keeps to the request's limit already: nil where there are none.
func (p *pace) beside() func() int64 {
	if len(p.of) == 0 {
		return nil
	}
	return func() int64 {
		limiters.Lock()
		defer limiters.Unlock()
		if p.share == p.own {
			return 0
		}
		return p.share
	}
}

func (p *pace) set(share int64) {
	if p.share == share {
		return
	}
	p.share = share
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// follow tells the job of each change until ctx ends. tell may take its time, and is not told of what is old by then.
func (p *pace) follow(ctx context.Context, tell func(bytesPerSecond int64)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.changed:
			tell(p.now())
		}
	}
}

// shareOut gives the jobs of the limiters, and of all that share a limiter with one of these, their parts: all grow
// together, by their weights, until a limit is reached; those that it bounds have their part then, and the others grow
// on.
func shareOut(of ...*Limiter) {
	all, jobs := connected(of)
	rates := map[*pace]float64{}
	growing := slices.Clone(jobs)
	for len(growing) > 0 {
		step := math.Inf(1)
		for _, l := range all {
			if weight := l.weight(growing); l.bandwidth > 0 && weight > 0 {
				step = min(step, l.room(rates)/weight)
			}
		}
		for _, p := range growing {
			if p.own > 0 {
				step = min(step, (float64(p.own)-rates[p])/p.weight)
			}
		}
		if math.IsInf(step, 1) {
			break // the rest has no limit
		}
		for _, p := range growing {
			rates[p] += max(step, 0) * p.weight
		}
		growing = slices.DeleteFunc(growing, func(p *pace) bool { return p.bounded(rates) })
	}
	for _, p := range jobs {
		share := int64(0)
		if !slices.Contains(growing, p) {
			share = part(rates[p])
		}
		p.set(share)
	}
}

// part is a whole number, at least 1.
func part(rate float64) int64 {
	if rate >= math.MaxInt64 {
		return math.MaxInt64
	}
	return max(int64(rate+0.5), 1)
}

// slack is what a sum of parts may be off by: floating-point numbers are the coarser the larger they are, and a limit
// that is never quite reached would be grown to for ever.
func slack(limit int64) float64 { return max(0.01, float64(limit)*1e-9) }

// bounded says whether the job has reached a limit.
func (p *pace) bounded(rates map[*pace]float64) bool {
	full := func(l *Limiter) bool { return l.bandwidth > 0 && l.room(rates) < slack(l.bandwidth) }
	return p.own > 0 && rates[p] > float64(p.own)-slack(p.own) || slices.ContainsFunc(p.of, full)
}

// room is what is left of the limiter's bandwidth.
func (l *Limiter) room(rates map[*pace]float64) float64 {
	left := float64(l.bandwidth)
	for _, p := range l.jobs {
		left -= rates[p]
	}
	return left
}

// weight is that of its jobs among these.
func (l *Limiter) weight(jobs []*pace) (sum float64) {
	for _, p := range jobs {
		if slices.Contains(p.of, l) {
			sum += p.weight
		}
	}
	return sum
}

// connected returns the limiters, those that share a job with one of them, and so on, and all jobs of these.
func connected(of []*Limiter) (all []*Limiter, jobs []*pace) {
	all = slices.Clone(of)
	for i := 0; i < len(all); i++ {
		for _, p := range all[i].jobs {
			if slices.Contains(jobs, p) {
				continue
			}
			jobs = append(jobs, p)
			for _, l := range p.of {
				if !slices.Contains(all, l) {
					all = append(all, l)
				}
			}
		}
	}
	return all, jobs
}
