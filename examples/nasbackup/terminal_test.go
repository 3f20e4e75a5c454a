package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kvmbackup/kvmbackup/engine"
)

// openTerminal returns the two ends of a terminal of 60 columns.
func openTerminal(t *testing.T) (screen, program *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = screen.Close() })
	fd := int(screen.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 60}); err != nil {
		t.Fatal(err)
	}
	return screen, program
}

// shown is what a command writes to a terminal: its output when it is stdout, its progress when it is stderr.
func shown(t *testing.T, run func(terminal *os.File)) string {
	t.Helper()
	screen, program := openTerminal(t)
	run(program)
	const end = "that's all"
	fmt.Fprintln(program, end)
	var all bytes.Buffer
	for part := make([]byte, 4096); !strings.Contains(all.String(), end); {
		n, err := screen.Read(part)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(part[:n])
	}
	before, _, _ := strings.Cut(all.String(), end)
	return before
}

// TestTerminal: colours and bars are for terminals that can show them, and for nobody who reads JSON.
func TestTerminal(t *testing.T) {
	f := newFixture(t)
	f.must("delete", web1)
	list := func(args ...string) string {
		return shown(t, func(terminal *os.File) {
			run(t.Context(), append(append([]string{"list", "--all"}, args...), f.args...), terminal, &bytes.Buffer{})
		})
	}
	progress := func(muted bool) string {
		return shown(t, func(terminal *os.File) {
			s := newScreen(terminal)
			if muted {
				s.mute()
			}
			s.event(engine.Event{Type: engine.EventStep, Op: "backup", VM: "web", Step: "follow job"})
			s.end()
		})
	}
	const colour, bar = "\x1b[33mdelete-pending\x1b[0m", "backup web: follow job\r\n\x1b[1A\x1b[J"
	for _, test := range []struct{ term, noColor string }{{"xterm", ""}, {"xterm", "1"}, {"dumb", ""}} {
		t.Setenv("TERM", test.term)
		t.Setenv("NO_COLOR", test.noColor)
		if has, want := strings.Contains(list(), colour), test.term != "dumb" && test.noColor == ""; has != want {
			t.Errorf("%+v: colours: %v", test, has)
		}
		if has, want := progress(false) == bar, test.term != "dumb"; has != want {
			t.Errorf("%+v: progress: %v", test, has)
		}
		if text := list("--json") + progress(true); strings.Contains(text, "\x1b") {
			t.Errorf("%+v: with --json: %q", test, text)
		}
	}
}
