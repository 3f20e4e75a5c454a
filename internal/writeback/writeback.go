// Package writeback has the kernel write files out while they are still being written.
package writeback

import (
	"os"
	"time"
)

const (
	interval = 100 * time.Millisecond
	// patience is for a disk that is busy. What one that is dead holds on to is left behind.
	patience = time.Second
)

// Start has the kernel begin to write out files, or block devices, that somebody else is writing through the page cache, over and
// over until stop is called. The flush at the end finds little left then, so that copying and writing out take turns no longer, and
// the host's memory doesn't fill with a whole backup that a NAS has to take at once.
//
// It is a hint and nothing more: it never waits for what it begins, so that an error in writing is still reported to whoever flushes (see
// sync_file_range(2)), and it ignores its own errors. On other systems than Linux it does nothing. The files may be open for
// reading alone, and may be closed at any time. stop takes a second at most: on a dead mount a goroutine is left behind
// until the mount answers. It may be called from any goroutine, once.
func Start(files ...*os.File) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		run(files, quit)
	}()
	return func() {
		close(quit)
		select {
		case <-done:
		case <-time.After(patience):
		}
	}
}

func run(files []*os.File, quit <-chan struct{}) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-quit:
			return
		case <-tick.C:
		}
		for _, f := range files {
			begin(f)
		}
	}
}
