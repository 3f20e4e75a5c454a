package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

func TestBar(t *testing.T) {
	start := time.Date(2026, 11, 23, 7, 0, 0, 0, time.UTC)
	b := &bar{name: "vda"}
	b.set(start, 0, 0)
	if has := b.line(80); has != "vda   [........................]   0% of 0 B" {
		t.Errorf("unknown: %q", has)
	}
	b.set(start.Add(10*time.Second), 1<<30, 4<<30)
	if has := b.line(80); has != "vda   [######..................]  25% of 4.0 GiB, 102.4 MiB/s, 30s left" {
		t.Errorf("a quarter: %q", has)
	}
	if has := b.line(51); has != "vda   [#...]  25% of 4.0 GiB, 102.4 MiB/s, 30s left" {
		t.Errorf("a quarter, on a narrow screen: %q", has)
	}
	if has := b.line(10); has != "vda   []  25% of 4.0 GiB, 102.4 MiB/s, 30s left" {
		t.Errorf("a quarter, on hardly a screen: %q", has)
	}
	b.set(start.Add(40*time.Second), 4<<30, 4<<30)
	if has := b.line(80); has != "vda   [########################] 100% of 4.0 GiB, 102.4 MiB/s, 0s left" {
		t.Errorf("done: %q", has)
	}
}

// TestTable: a cell with an error of several lines stays in its row.
func TestTable(t *testing.T) {
	table := table{}
	table.row("status", "failed")
	table.row("error", "first\nsecond")
	var out bytes.Buffer
	if table.print(&out); out.String() != "status  failed\nerror   first; second\n" {
		t.Errorf("printed %q", out.String())
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1 << 10: "1.0 KiB", 1536 << 10: "1.5 MiB",
		1<<63 - 1: "8.0 EiB"} {
		if has := size(n); has != want {
			t.Errorf("size(%d) = %q, want %q", n, has, want)
		}
	}
}

// TestScreen: what is drawn is erased before anything else is written, and nothing is drawn where there is no terminal.
func TestScreen(t *testing.T) {
	progress := engine.Event{Type: engine.EventProgress,
		Progress: &kvmbackup.JobProgress{Volumes: []kvmbackup.VolumeProgress{
			{Device: "vda", DoneBytes: 1, TotalBytes: 2}, {Device: "vdb", DoneBytes: 2, TotalBytes: 2},
		}}}
	for _, width := range []int{0, 40} {
		var out bytes.Buffer
		s := &screen{w: &out, width: func() int { return width }}
		s.event(engine.Event{Type: engine.EventStep, Op: "backup", VM: "web", Step: strings.Repeat("long ", 20)})
		s.event(progress)
		fmt.Fprintln(s, "a warning")
		s.end()
		if width == 0 {
			if out.String() != "a warning\n" {
				t.Errorf("no terminal: %q", out.String())
			}
			continue
		}
		if !strings.Contains(out.String(), "\x1b[3A\x1b[Ja warning\n") || !strings.HasSuffix(out.String(), "\x1b[3A\x1b[J") {
			t.Errorf("drawn: %q", out.String())
		}
		for line := range strings.Lines(out.String()) {
			if text := strings.TrimPrefix(line, "\x1b[1A\x1b[J"); len(text) > width+len("\x1b[3A\x1b[J") {
				t.Errorf("too wide: %q", line)
			}
		}
	}
}
