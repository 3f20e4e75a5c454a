package picture

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestScreen(t *testing.T) {
	for output, want := range map[string][]string{
		"one\ntwo\n":                        {"one", "two"},
		"step\nbar\n\x1b[2A\x1b[Jnext\n":    {"next"},
		"kept\nbar 1\n\x1b[1A\x1b[Jbar 2\n": {"kept", "bar 2"},
		"123456789":                         {"12345678", "9"},
		"\x1b[33m1234\x1b[0m56789":          {"\x1b[33m1234\x1b[0m5678", "9"},
	} {
		if has := screen(8, output); !slices.Equal(has, want) {
			t.Errorf("%q shows %q, want %q", output, has, want)
		}
	}
}

func TestRuns(t *testing.T) {
	want := []piece{{0, "", "a "}, {2, "yellow", "pending"}, {9, "", " <b>"}}
	if has := runs("a \x1b[33mpending\x1b[0m <b>"); !slices.Equal(has, want) {
		t.Errorf("has %q, want %q", has, want)
	}
	if has := runs("$ cmd"); !slices.Equal(has, []piece{{0, "prompt", "$ cmd"}}) {
		t.Errorf("a command: %q", has)
	}
}

// TestSVG: whatever is drawn, the file is XML.
func TestSVG(t *testing.T) {
	d := xml.NewDecoder(strings.NewReader(Terminal(`a "title" & more`, 20, "$ a < b\n\x1b[31mc > d\x1b[0m\n")))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
