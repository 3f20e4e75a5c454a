package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// resting says whether a process that has the file in its arguments is stopped by a signal.
func resting(t *testing.T, file string) bool {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	lab.OK(t, err)
	for _, p := range processes {
		args, _ := os.ReadFile(filepath.Join(p, "cmdline")) // it may be gone
		if !bytes.Contains(args, []byte(file)) {
			continue
		}
		status, _ := os.ReadFile(filepath.Join(p, "status"))
		if strings.Contains(string(status), "\nState:\tT") {
			return true
		}
	}
	return false
}

// TestConvertKeepsPace: a copy that is ahead rests until its rate allows more, which is no standing still.
func TestConvertKeepsPace(t *testing.T) {
	t.Parallel()
	tool := newToolWith(t, qcow2.Config{StallTimeout: 500 * time.Millisecond})
	dir := t.TempDir()
	image, out := filepath.Join(dir, "image"), filepath.Join(dir, "out")
	create(t, tool, image, qcow2.CreateOptions{})
	write(t, image, 7, 0, 8*mib)
	rested := 0
	o := qcow2.ConvertOptions{BandwidthBytes: 16 * mib} // so that it doesn't end before it is looked at
	o.Rate = func() int64 {
		if resting(t, out) {
			rested++
		}
		if rested > 40 { // for longer than it may stand still
			return 0
		}
		return 1
	}
	lab.OK(t, tool.Convert(t.Context(), image, out, o))
	if rested <= 40 {
		t.Errorf("it rested at %d looks", rested)
	}
	checkRange(t, content(t, tool, out, qcow2.FormatQcow2), 7, 0, 8*mib)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	again := filepath.Join(dir, "again")
	o.Rate = func() int64 {
		if resting(t, again) {
			cancel()
		}
		return 1
	}
	lab.Fails(t, tool.Convert(ctx, image, again, o), context.Canceled)
	if _, err := os.Lstat(again); !errors.Is(err, fs.ErrNotExist) || resting(t, again) {
		t.Errorf("of a copy that was ended while it rested something is left: %v", err)
	}
}
