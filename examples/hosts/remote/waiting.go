package remote

import (
	"context"
	"sync"

	"github.com/kvmbackup/kvmbackup"
)

// waiting is the server's own Wait for a job, which any number of requests look at, one after the other.
type waiting struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when result and err are there
	result kvmbackup.JobResult
	err    error

	mu   sync.Mutex
	last *kvmbackup.JobProgress
	next chan struct{} // closed when there is another
}

func follow(j kvmbackup.Job) *waiting {
	ctx, cancel := context.WithCancel(context.Background())
	w := &waiting{cancel: cancel, done: make(chan struct{}), next: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.result, w.err = j.Wait(ctx, w.progress)
	}()
	return w
}

func (w *waiting) progress(p kvmbackup.JobProgress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = &p
	close(w.next)
	w.next = make(chan struct{})
}

// look returns the last progress, if there is one, and what is closed when there is another.
func (w *waiting) look() (*kvmbackup.JobProgress, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last, w.next
}

// stop ends the waiting; a nil one has not begun.
func (w *waiting) stop() {
	if w != nil {
		w.cancel()
		<-w.done
	}
}
