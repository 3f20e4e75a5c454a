package kvmbackup_test

import (
	"encoding/json"
	"errors"
	"testing"
	"unicode"

	"github.com/kvmbackup/kvmbackup"
)

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "",
		"größe 日本 a\u00a0b \U0001f600": "größe 日本 a\u00a0b \U0001f600",
		"\x1b]0;x\a\x1b[2J":            `\u001b]0;x\u0007\u001b[2J`,
		"a\nb\r\tc\x7f\x00":            `a\u000ab\u000d\u0009c\u007f\u0000`,
		"\u009b31m":                    `\u009b31m`,
		"gnp\u202eexe.\u200b":          `gnp\u202eexe.\u200b`,
		"\u2028\U000e0001":             `\u2028\udb40\udc01`,
		"\x9b31m\xff\ufffd":            `\x9b31m\xff` + "\ufffd",
	} {
		if has := kvmbackup.Printable(text); has != want {
			t.Errorf("%q: %s, want %s", text, has, want)
		}
	}
}

// FuzzPrintable: whatever the text, nothing in it reaches a terminal, and JSON means what it meant.
func FuzzPrintable(f *testing.F) {
	f.Add("\x1b[31m\u009b\xff")
	f.Fuzz(func(t *testing.T, s string) {
		has := kvmbackup.Printable(s)
		for _, r := range has {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
				t.Errorf("%q: %q is left in %q", s, r, has)
			}
		}
		if again := kvmbackup.Printable(has); again != has {
			t.Errorf("%q: twice it is %q", s, again)
		}
		encoded, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var want, read string
		err = errors.Join(json.Unmarshal(encoded, &want), json.Unmarshal([]byte(kvmbackup.Printable(string(encoded))), &read))
		if err != nil || read != want {
			t.Errorf("%q: as JSON it is %q: %v", s, read, err)
		}
	})
}
