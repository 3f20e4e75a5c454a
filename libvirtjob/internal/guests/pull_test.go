//go:build cgo

package guests_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// writer is a guest that overwrites a disk again and again, as fast as it can, and counts what fails.
type writer struct{ *guest }

// startWriter boots a guest with a disk of so many MiB, all of them data.
func startWriter(t *testing.T, mebibytes int) writer {
	t.Helper()
	w := writer{newGuest(t, guestDisk{device: "vda", path: bulkDisk(t, mebibytes)}).boot()}
	w.run("tr '\\0' x </dev/zero | head -c 8388608 >/tmp/data") // zeroes would be skipped
	w.run(fmt.Sprintf("( while [ ! -e /tmp/stop ]; do for i in $(seq 0 %d); do dd if=/tmp/data of=/dev/vda bs=64k "+
		"seek=$((i*128)) conv=notrunc,fsync 2>/tmp/last "+
		"&& echo >>/tmp/rounds || echo >>/tmp/failed; done; done ) >/dev/null 2>&1 &", mebibytes/8-1))
	return w
}

func (w writer) count(file string) int {
	w.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(w.run("cat " + file + " 2>/dev/null | wc -l")))
	if err != nil {
		w.Fatal(err)
	}
	return n
}

// wantUnharmed wants the guest to run, and none of its writes to have failed.
func (w writer) wantUnharmed() {
	w.Helper()
	if state, reason := w.state(); state != libvirt.DOMAIN_RUNNING {
		w.Fatalf("the guest is in state %d, for reason %d", state, reason)
	}
	if failed := w.count("/tmp/failed"); failed > 0 {
		w.Errorf("%d rounds of the guest's writes have failed: %s", failed, w.run("cat /tmp/last"))
	}
}

// wantWrites waits until the guest has written 8 MiB more.
func (w writer) wantWrites() {
	w.Helper()
	before := w.count("/tmp/rounds")
	lab.Eventually(w, "the guest writes on", func() bool { return w.count("/tmp/rounds") > before })
}

// TestScratchTooSmall: a guest that writes as fast as it can doesn't notice that the scratch is too small, whatever its
// size. The job goes before, and the error has the figures.
func TestScratchTooSmall(t *testing.T) {
	lab.Further(t)
	if !alone(t) {
		return
	}
	lab.NeedRoot(t)
	w := startWriter(t, 512)
	for _, size := range []int{530, 560} {
		for round := range 2 {
			scratch := mountScratch(t, size)
			b := newBench(t, func(c *engine.Config) { c.Scratch = []string{scratch} })
			w.wantWrites()
			req := engine.BackupRequest{VM: kvmbackup.VMID(w.name), BandwidthBytes: 1 << 20}
			req.Policy.Transfer = kvmbackup.TransferPull
			_, err := b.engine.Backup(b.ctx, req)
			w.wantUnharmed()
			var full *kvmbackup.ScratchFullError
			if !errors.As(err, &full) || full.WriteRate <= 0 || full.Free <= 0 || full.Folder != scratch {
				t.Errorf("scratch of %d MiB, round %d: %v", size, round, err)
			}
			t.Log(err)
			b.wantClean(w.guest)
			if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
				t.Errorf("left in the scratch: %v, %v", left, err)
			}
			w.wantWrites()
		}
	}
	w.wantUnharmed()
}

func mountScratch(t *testing.T, mebibytes int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s-") //nolint:usetesting // its path has to be short
	if err != nil {
		t.Fatal(err)
	}
	command(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mebibytes), "tmpfs", dir)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run(); _ = os.Remove(dir) })
	return dir
}
