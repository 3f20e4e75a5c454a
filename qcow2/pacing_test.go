package qcow2

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/pace"
)

// TestBudget plays a copy that writes 1 GiB/s whenever it doesn't rest, and is looked at every 20 ms.
func TestBudget(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	var b budget
	now, written, rests := time.Unix(0, 0), int64(0), false
	play := func(limit int64, seconds int) (wrote int64) {
		before := written
		for range seconds * int(time.Second/paceInterval) {
			now = now.Add(paceInterval)
			if !rests {
				written += int64(paceInterval) * (1 << 30) / int64(time.Second)
			}
			rests = b.ahead(limit, now, written)
		}
		return written - before
	}
	for _, c := range []struct{ limit, seconds, least, most int64 }{
		{10 * mib, 100, 980 * mib, 1040 * mib},
		{100 * mib, 10, 960 * mib, 1040 * mib},  // more, from the next look on
		{1 * mib, 100, 60 * mib, 125 * mib},     // less, likewise
		{2 << 30, 10, 10200 * mib, 10240 * mib}, // more than it can do
		{10 * mib, 100, 980 * mib, 1040 * mib},  // and nothing is saved up of that
	} {
		if wrote := play(c.limit, int(c.seconds)); wrote < c.least || wrote > c.most {
			t.Errorf("%d MiB/s: %d MiB in %d s", c.limit/mib, wrote/mib, c.seconds)
		}
	}
}

func TestLower(t *testing.T) {
	t.Parallel()
	for _, c := range [][3]int64{{0, 0, 0}, {0, 5, 5}, {5, 0, 5}, {5, 6, 5}, {6, 5, 5}} {
		if got := lower(c[0], c[1]); got != c[2] {
			t.Errorf("of %d and %d: %d", c[0], c[1], got)
		}
	}
}

// TestDigestKeepsPace: a digest asks for every byte that it reads, and waiting for that is no standing still.
func TestDigestKeepsPace(t *testing.T) {
	t.Parallel()
	lab.Need(t, "qemu-img")
	tool, err := New(Config{StallTimeout: time.Second})
	lab.OK(t, err)
	path := filepath.Join(t.TempDir(), "file")
	lab.OK(t, os.WriteFile(path, bytes.Repeat([]byte("data"), 3*digestPiece/4), 0o600))
	lab.OK(t, os.Truncate(path, 1<<30)) // a hole costs nothing
	want, err := tool.FileDigest(t.Context(), path)
	lab.OK(t, err)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		got, err := tool.FileDigest(pace.WithLimit(t.Context(), pace.NewLimit(1<<20)), path)
		lab.OK(t, err)
		lab.Equal(t, "digest", got, want)
		lab.Equal(t, "when the last piece may be read", time.Since(began).Round(time.Second), 8*time.Second)
		ctx, cancel := context.WithTimeout(pace.WithLimit(t.Context(), pace.NewLimit(1)), time.Minute)
		defer cancel()
		_, err = tool.FileDigest(ctx, path)
		lab.Fails(t, err, context.DeadlineExceeded)
	})
}
