package kvmbackup_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

func TestValidName(t *testing.T) {
	for _, s := range []string{"vm", "i-2-7-VM", "web server (old)", "Größe", "a.b", "a..b",
		"7f2d0c1a-6a5b-4d8e-9f7c-000000000001", strings.Repeat("x", 128)} {
		lab.OK(t, kvmbackup.ValidName("name", s))
	}
	for _, s := range []string{"", ".", "..", ".hidden", "-rf", " a", "a ", "a.", "a/b", "a\\b", "a:b", "a,b", "a*",
		"a?", `a"b`, "a<b", "a|b", "a\nb", "a\x00", "a\x7f", "a\u202eb", "a\u00a0b", "\xff", strings.Repeat("x", 128+1)} {
		err := kvmbackup.ValidName("name", s)
		lab.Fails(t, err, kvmbackup.ErrInvalid)
		var detail *kvmbackup.NameError
		if !errors.As(err, &detail) || detail.Name != s || detail.Reason == "" {
			t.Errorf("%q: %v", s, err)
		}
	}
}
