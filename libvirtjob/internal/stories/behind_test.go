package stories_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// What another program writes to a disk while the VM is off. A tool of QEMU's marks it in the image's bitmaps, and one
// that is killed leaves those broken: either way the next backup has it. Of what is written in the file itself no
// bitmap knows: a backup that goes by them lacks it, and can't say so. The comparison that comes every few backups
// finds it.
func TestWrittenWhileOff(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := compare(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 8)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	while := func(off func()) {
		s.guest.Destroy()
		off()
		s.start()
	}
	while(func() { s.byTool("vda", 0x21, 2) })
	if v, _ := s.compared(nil).Volume("vol-vda"); v.DirtyBytes != mib {
		t.Errorf("%d bytes are marked, a tool of QEMU's has written %d", v.DirtyBytes, mib)
	}
	while(func() { s.byTool("vda", 0x31, 3, "flush", "sigraise 9") })
	s.compared(map[string]int64{"vda": 1})

	while(func() { s.behind("vda", 0x41, 5) })
	b := s.compared(nil)
	v, _ := b.Volume("vol-vda")
	if v.DirtyBytes != 0 || hasReason(b, engine.ReasonBitmapMissed) {
		t.Errorf("by bitmap it has %d bytes: %v", v.DirtyBytes, b.Reasons)
	}
	newest := len(s.taken) - 1
	was, file := s.taken[newest].content["vol-vda"].Path(), s.repo.FilePath(b.Path, v.File)
	err := s.images.Compare(s.ctx, was, file, qcow2.CompareOptions{FormatA: qcow2.FormatRaw})
	if !errors.Is(err, qcow2.ErrDifferent) {
		t.Errorf("a backup by bitmap has what no bitmap shows: %v", err)
	}
	s.taken = s.taken[:newest] // it isn't what the disk held

	s.policy.CompareEvery = b.Position + 1
	b = s.compared(map[string]int64{"vda": 1, "vdb": 0})
	if !hasReason(b, engine.ReasonBitmapMissed) {
		t.Errorf("it isn't on record: %v", b.Reasons)
	}
	s.write("vda", 0x51, 1, 1)
	s.compared(nil)
	s.restoreAll()
}

// byTool has qemu-io write a MiB of a stopped guest's disk, and do more then.
func (s *story) byTool(device string, pattern byte, at int64, more ...string) {
	s.Helper()
	args := []string{"-f", "qcow2", "-c", fmt.Sprintf("write -P %d %dM 1M", pattern, at)}
	for _, c := range more {
		args = append(args, "-c", c)
	}
	out, err := exec.CommandContext(s.ctx, "qemu-io", append(args, s.guest.Image(device))...).CombinedOutput()
	if err != nil && len(more) == 0 {
		s.Fatalf("%v: %s", err, out)
	}
	s.fill(s.guest.Model(device).Path(), pattern, at*mib)
}

// behind changes a MiB of a stopped guest's disk in the image's file, of which its bitmaps know nothing.
func (s *story) behind(device string, pattern byte, at int64) {
	s.Helper()
	extents, err := s.images.Map(s.ctx, s.guest.Image(device), qcow2.MapOptions{Backing: []qcow2.Layer{}})
	s.must(err)
	s.fill(s.guest.Image(device), pattern, offsetIn(s.T, extents, at*mib))
	s.fill(s.guest.Model(device).Path(), pattern, at*mib)
}

// fill fills a MiB of a file with a byte.
func (s *story) fill(path string, pattern byte, at int64) {
	s.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	s.must(err)
	_, err = f.WriteAt(bytes.Repeat([]byte{pattern}, mib), at)
	s.must(errors.Join(err, f.Close()))
}

// offsetIn is where the image's file has the disk's MiB.
func offsetIn(t *testing.T, extents []qcow2.Extent, at int64) int64 {
	t.Helper()
	for _, x := range extents {
		if x.Data && x.StartBytes <= at && at+mib <= x.StartBytes+x.LengthBytes {
			return *x.OffsetBytes + at - x.StartBytes
		}
	}
	t.Fatalf("%d isn't in one piece of %+v", at, extents)
	return 0
}
