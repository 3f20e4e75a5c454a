package qcow2

import (
	"fmt"
	"io"
	"strings"
	"sync"
)

// maxStderr is how much of a tool's messages is kept.
const maxStderr = 32 << 10

// brief is what an error's text repeats of a tool's messages: it ends up in logs and records, and a check of a damaged
// image prints a line for each cluster.
func brief(messages string) string {
	const maxLines, maxLine = 4, 512
	lines := strings.Split(messages, "\n")
	if over := len(lines) - maxLines; over > 0 {
		lines = []string{lines[0], lines[1], fmt.Sprintf("(%d more lines)", over+1), lines[len(lines)-1]}
	}
	for i, line := range lines {
		if len(line) > maxLine {
			lines[i] = strings.ToValidUTF8(line[:maxLine], "") + "..."
		}
	}
	return strings.Join(lines, "\n")
}

// tailBuffer keeps the end of what is written to it, and says when it was more than max bytes. It never fails, and is
// safe for concurrent use, since a process that hangs is left writing to it.
type tailBuffer struct {
	max      int64
	overflow func() // called when there is too much

	mu    sync.Mutex
	buf   []byte
	total int64
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	b.buf = append(b.buf, p...)
	if over := len(b.buf) - maxStderr; over > 0 {
		b.buf = append(b.buf[:0], b.buf[over:]...)
	}
	b.total += int64(len(p))
	tooMuch := b.total > b.max
	b.mu.Unlock()
	if tooMuch {
		b.overflow()
	}
	return len(p), nil
}

func (b *tailBuffer) exceeded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total > b.max
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

// boundedWriter hands on up to left bytes, and fails beyond.
type boundedWriter struct {
	to       io.Writer
	left     int64
	overflow func() // called when there is too much
}

func (w *boundedWriter) Write(p []byte) (int, error) {
	if w.left -= int64(len(p)); w.left < 0 {
		w.overflow()
		return 0, ErrOutputTooLarge
	}
	return w.to.Write(p)
}
