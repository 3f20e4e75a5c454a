package qcow2

import "sync"

// maxStderr is how much of a tool's messages is kept.
const maxStderr = 32 << 10

// tailBuffer keeps the end of what is written to it. It never fails, and is safe
// for concurrent use, since a process that hangs is left writing to it.
type tailBuffer struct {
	mu  sync.Mutex
	buf []byte
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	if over := len(b.buf) - maxStderr; over > 0 {
		b.buf = append(b.buf[:0], b.buf[over:]...)
	}
	return len(p), nil
}

func (b *tailBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.buf)
}

// limitedBuffer collects up to max bytes and fails beyond, also with later writes.
type limitedBuffer struct {
	max      int64
	overflow func() // called when there is too much

	mu       sync.Mutex
	buf      []byte
	exceeded bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.exceeded || int64(len(b.buf))+int64(len(p)) > b.max {
		b.exceeded = true
		b.overflow()
		return 0, ErrOutputTooLarge
	}
	b.buf = append(b.buf, p...)
	return len(p), nil
}

// bytes returns what was collected; writes after that do not show in it.
func (b *limitedBuffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf
}
