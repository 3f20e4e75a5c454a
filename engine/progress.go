package engine

import (
	"context"
	"sync"

	"github.com/kvmbackup/kvmbackup"
)

// tally adds up how far an operation is and tells it as events. Its methods may be called concurrently; the events come
// one after the other. A nil one tells nothing.
type tally struct {
	o *op

	mu sync.Mutex
	p  kvmbackup.JobProgress
}

// tally begins to count. The volumes say how much there is to do.
func (o *op) tally(volumes []kvmbackup.VolumeProgress) *tally {
	t := &tally{o: o, p: kvmbackup.JobProgress{Volumes: volumes}}
	for _, v := range volumes {
		t.p.TotalBytes += v.TotalBytes
	}
	t.tell()
	return t
}

// set says how much of a volume is done, which is told also when nothing has moved: it is a sign of life.
func (t *tally) set(volume int, done int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := &t.p.Volumes[volume]
	done = min(done, v.TotalBytes)
	t.p.DoneBytes += done - v.DoneBytes
	v.DoneBytes = done
	t.tell()
}

// add says that so much more of a volume is done.
func (t *tally) add(volume kvmbackup.VolumeID, bytes int64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.p.Volumes {
		v := &t.p.Volumes[i]
		if v.VolumeID != volume {
			continue
		}
		bytes = min(bytes, v.TotalBytes-v.DoneBytes)
		v.DoneBytes += bytes
		t.p.DoneBytes += bytes
		t.tell()
		return
	}
}

// tell gives subscribers a copy, which they may keep.
func (t *tally) tell() {
	p := t.p
	p.Volumes = append([]kvmbackup.VolumeProgress(nil), p.Volumes...)
	t.o.emit(Event{Type: EventProgress, Progress: &p})
}

// tallyKey is the context's place of the tally of what is done with it.
type tallyKey struct{}

func withTally(ctx context.Context, t *tally) context.Context {
	return context.WithValue(ctx, tallyKey{}, t)
}

// counted adds to the tally of the context, if it has one.
func counted(ctx context.Context, volume kvmbackup.VolumeID, bytes int64) {
	t, _ := ctx.Value(tallyKey{}).(*tally)
	t.add(volume, bytes)
}
