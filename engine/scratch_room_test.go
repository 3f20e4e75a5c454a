package engine

import (
	"errors"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
)

// TestScratchNeed: a twentieth of what is copied, and never less than the minimum.
func TestScratchNeed(t *testing.T) {
	for _, c := range []struct {
		copied int64
		ignore bool
		want   int64
	}{
		{0, false, scratchMinimum},
		{20 * scratchMinimum, false, scratchMinimum},
		{40 * scratchMinimum, false, 2 * scratchMinimum},
		{1 << 40, false, 1 << 40 / 20},
		{1 << 40, true, scratchMinimum},
	} {
		if got := scratchNeed(BackupRequest{IgnoreSpace: c.ignore}, c.copied); got != c.want {
			t.Errorf("%d bytes, ignored: %v: %d, want %d", c.copied, c.ignore, got, c.want)
		}
	}
}

// TestScratchIsShared: the room that one job was promised isn't promised again, on whichever folder of that file
// system, until that job is over. The folder with the most room is taken.
func TestScratchIsShared(t *testing.T) {
	const system, other = "none", "another" // no real ones
	folders := func() []scratchFolder {
		return []scratchFolder{
			{path: "/small", system: other, free: 30}, {path: "/a", system: system, free: 100},
			{path: "/b", system: system, free: 100},
		}
	}
	claim := func(need int64, want string) scratchClaim {
		t.Helper()
		c, err := claimScratch(folders(), need)
		if (err != nil) != (want == "") || c.path != want || err != nil && !errors.Is(err, kvmbackup.ErrScratch) {
			t.Errorf("%d bytes: in %q, %v; want %q", need, c.path, err, want)
		}
		if err != nil && !(strings.Contains(err.Error(), "/") && strings.Contains(err.Error(), "push")) {
			t.Errorf("no folder or no way out: %v", err)
		}
		return c
	}
	first := claim(60, "/a")
	claim(50, "")
	second := claim(35, "/a")
	third := claim(25, "/small")
	claim(10, "")
	first.release()
	fourth := claim(50, "/a")
	second.release()
	third.release()
	fourth.release()
	claim(101, "")
	if len(promises.by) != 0 {
		t.Errorf("promises are left: %v", promises.by)
	}
	scratchClaim{}.release()
}
