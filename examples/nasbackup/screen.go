package main

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup/engine"
)

// screen draws what is under way at the bottom of a terminal; elsewhere it draws nothing. Log lines are written through
// it, so that they don't end up inside the bars. It is safe for concurrent use.
type screen struct {
	w     io.Writer
	width func() int // in columns, which may change; 0: no terminal

	mu    sync.Mutex
	step  string
	bars  []*bar
	lines int  // how many are drawn now
	muted bool // for --json
}

func newScreen(w io.Writer) *screen {
	return &screen{w: drawn(w), width: func() int { return columns(w) }}
}

func (s *screen) mute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.muted = true
}

// event follows the engine. It is Config.OnEvent.
func (s *screen) event(e engine.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e.Type {
	case engine.EventStarted, engine.EventJob:
		s.bars = nil
	case engine.EventStep:
		s.step, s.bars = fmt.Sprintf("%s %s: %s", e.Op, e.VM, e.Step), nil
	case engine.EventWaiting:
		s.step = fmt.Sprintf("%s %s: %s", e.Op, e.VM, e.Detail)
	case engine.EventProgress:
		for _, v := range e.Progress.Volumes {
			s.bar(v.Device).set(e.Time, v.DoneBytes, v.TotalBytes)
		}
	case engine.EventStalled:
		s.step = fmt.Sprintf("%s %s: no progress for %v", e.Op, e.VM, e.Elapsed.Round(time.Second))
	default:
		return
	}
	s.draw()
}

func (s *screen) bar(name string) *bar {
	for _, b := range s.bars {
		if b.name == name {
			return b
		}
	}
	b := &bar{name: name}
	s.bars = append(s.bars, b)
	return b
}

// cancelling is called when the program was asked to end.
func (s *screen) cancelling() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lines > 0 {
		s.step = "cancelling and cleaning up, for up to half a minute"
		s.draw()
	}
}

// Write puts log lines above the bars.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	n, err := plain{s.w}.Write(p)
	s.draw()
	return n, err
}

// end removes what is drawn.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	s.step, s.bars = "", nil
}

func (s *screen) erase() {
	if s.lines > 0 {
		fmt.Fprintf(s.w, "\x1b[%dA\x1b[J", s.lines) // up, and clear to the end
		s.lines = 0
	}
}

func (s *screen) draw() {
	width := s.width() - 1 // some terminals wrap a line that fills the last column
	if width < 0 || s.muted || s.step == "" && len(s.bars) == 0 {
		return
	}
	s.erase()
	var text bytes.Buffer
	fmt.Fprintf(&text, "%.*s\n", width, s.step)
	for _, b := range s.bars {
		fmt.Fprintf(&text, "%.*s\n", width, b.line(width))
	}
	s.lines = 1 + len(s.bars)
	_, _ = plain{s.w}.Write(text.Bytes()) // a terminal that is gone doesn't stop a backup
}
