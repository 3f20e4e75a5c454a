package main

import (
	"io"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// plain writes lines to a terminal or a log that obeys nothing in them: names on the share, texts of records and errors
// of guests' agents may hold escape sequences. All that the program prints goes through it, JSON too.
type plain struct{ w io.Writer }

// Write takes whole lines, or parts that end between characters.
func (p plain) Write(b []byte) (int, error) {
	var text strings.Builder
	for line := range strings.Lines(string(b)) {
		line, end := strings.CutSuffix(line, "\n")
		for i, part := range strings.Split(line, "\t") { // of scripts for shells' completion
			if i > 0 {
				text.WriteByte('\t')
			}
			text.WriteString(kvmbackup.Printable(part))
		}
		if end {
			text.WriteByte('\n')
		}
	}
	if _, err := io.WriteString(p.w, text.String()); err != nil {
		return 0, err
	}
	return len(b), nil
}

// drawn is where this program's own escape sequences go.
func drawn(w io.Writer) io.Writer {
	if p, ok := w.(plain); ok {
		return p.w
	}
	return w
}
