//go:build cgo

package guests_test

import (
	"os"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// This file alone knows the harness.

func TestMain(m *testing.M) {
	code := realguest.Main(m)
	if workDir != "" {
		_ = os.RemoveAll(workDir)
	}
	os.Exit(code)
}

// rootEnv names the libvirt root that a helper process works on.
const rootEnv = "KVMBACKUP_REALGUEST_ROOT"

// connection returns the process's libvirt, which has a root of its own.
func connection(tb testing.TB) *libvirt.Connect { tb.Helper(); return realguest.Need(tb).Conn }

func libvirtRoot(tb testing.TB) string { tb.Helper(); return realguest.Need(tb).Root }

// removeRoot kills what helper processes have left on a root.
func removeRoot(root string) { realguest.RemoveRoot(root) }

// bareGuest starts a guest without a system that runs, with more devices, on the disk image; its name is returned.
func bareGuest(tb testing.TB, devices, image string) string {
	tb.Helper()
	return realguest.Start(tb, realguest.Config{Disks: []realguest.Disk{{Device: "vda", Path: image}}, DevicesXML: devices,
		Running: true}).Name
}

// within fails the test if f takes longer.
func within(tb testing.TB, limit time.Duration, what string, f func()) time.Duration {
	tb.Helper()
	began := time.Now()
	f()
	took := time.Since(began)
	if took > limit {
		tb.Errorf("%s took %v, more than %v", what, took, limit)
	}
	return took
}
