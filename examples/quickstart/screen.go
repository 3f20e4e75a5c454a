package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// screen prints the tour: bars that move on a terminal; elsewhere they are there when they are full.
type screen struct {
	out   io.Writer
	moves bool // out is a terminal
	step  int
}

func newScreen(f *os.File) *screen {
	info, err := f.Stat()
	return &screen{out: f, moves: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

// title begins a step of the tour.
func (s *screen) title(format string, args ...any) {
	s.step++
	fmt.Fprintf(s.out, "\n%d. %s\n", s.step, fmt.Sprintf(format, args...))
}

func (s *screen) say(format string, args ...any) { fmt.Fprintf(s.out, "   "+format+"\n", args...) }

// event follows the engine: what it decided and why, how far it is, what came of it.
func (s *screen) event(e engine.Event) {
	switch e.Type {
	case engine.EventDecided:
		d := e.Decision
		s.say("decided: %v, position %d of its chain", d.Kind, d.Position)
		for _, r := range d.Reasons {
			s.say("because: %s", r)
		}
		for _, v := range d.Volumes {
			s.say("  %s %v: %s", v.Device, v.Kind, v.Reason.Code)
		}
	case engine.EventProgress:
		if s.moves {
			s.bar(e.Progress.DoneBytes, e.Progress.TotalBytes, "\r")
		}
	case engine.EventCompleted:
		if e.Op == "backup" {
			s.copied(e.Backup)
		}
	case engine.EventDeleted:
		s.say("removed %s, %s came back", e.Detail, size(e.Bytes))
	}
}

// restored ends a restore's bar.
func (s *screen) restored(volumes []engine.RestoredVolume) {
	var n int64
	for _, v := range volumes {
		n += v.VirtualSize
	}
	s.bar(n, n, "\n")
}

// copied says what a backup has copied.
func (s *screen) copied(b *kvmbackup.Backup) {
	var n int64
	for _, v := range b.Volumes {
		n += v.DirtyBytes
	}
	s.bar(n, n, "\n")
	s.say("copied %s into %s in %.1f s", size(n), b.Path, b.CompletedAt.Sub(b.StartedAt).Seconds())
}

func (s *screen) bar(done, total int64, end string) {
	const width = 30
	filled := width
	if total > 0 {
		filled = int(width * done / total)
	}
	fmt.Fprintf(s.out, "   [%s%s] %s of %s   %s", strings.Repeat("#", filled), strings.Repeat(".", width-filled),
		size(done), size(total), end)
}

// table prints one line for every backup.
func (s *screen) table(backups []kvmbackup.Backup) {
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\n   #\tkind\tstatus\tchain\tposition\tcopied\tstored\tfolder")
	var sum int64
	for _, b := range backups {
		var copied int64
		for _, v := range b.Volumes {
			copied += v.DirtyBytes
		}
		sum += b.StoredBytes()
		fmt.Fprintf(w, "   %d\t%v\t%v\t%.4s\t%d\t%s\t%s\t%s\n", b.Sequence, b.Kind, b.Status, b.ChainID, b.Position,
			size(copied), size(b.StoredBytes()), b.Path)
	}
	fmt.Fprintf(w, "   \t\t\t\t\t\t%s\t\n", size(sum))
	_ = w.Flush() // like fmt.Fprint: a screen that is gone is no reason to fail
}

func size(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
