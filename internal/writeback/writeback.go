// Package writeback has the kernel write files out while they are still being written.
package writeback

import (
	"os"
	"time"
)

const interval = 100 * time.Millisecond

// Start has the kernel begin to write out files, or block devices, that somebody else is writing through the page
// cache, over and over until stop is called. The flush at the end finds little left then, so that copying and writing
// out take turns no longer, and the host's memory doesn't fill with a whole backup that a NAS has to take at once.
//
// It is a hint and nothing more: it never waits for what it begins, so that an error in writing is still reported to
// the next flush (see sync_file_range(2)), and it ignores its own errors. On other systems than Linux it does nothing.
// The files may be open for reading alone, and may be closed at any time; but what is closed while the kernel is being
// asked stays open until it has answered. stop may be called from any goroutine, once. The channel that it returns is
// closed when no file is used any more: at once, or on a dead mount when that answers, until which a goroutine is left
// behind.
func Start(files ...*os.File) (stop func() (over <-chan struct{})) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		run(files, quit)
	}()
	return func() <-chan struct{} {
		close(quit)
		return done
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
