package kvmbackup

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Printable returns s as one line that a terminal or a log shows and doesn't obey. Names on a share, what a guest's
// agent says and texts of records may hold anything. Line feeds, escape sequences, marks that turn the direction of
// writing and all else that isn't a printable character come out as the escapes of JSON (\u001b), and bytes that aren't
// UTF-8 as \xff. So JSON stays what it was, and a text that is printable already comes out as it is.
func Printable(s string) string {
	if at := strings.IndexFunc(s, hidden); at < 0 && utf8.ValidString(s) {
		return s
	}
	var out strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&out, `\x%02x`, s[0])
		case !hidden(r):
			out.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
		s = s[size:]
	}
	return out.String()
}

// hidden tells what a terminal doesn't show as a character or a space.
func hidden(r rune) bool { return !unicode.IsGraphic(r) || r == '\u2028' || r == '\u2029' }
