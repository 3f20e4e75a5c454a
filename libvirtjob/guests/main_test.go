//go:build cgo

package guests_test

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/libvirtjob/realguest"
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

func needRoot(tb testing.TB) { tb.Helper(); realguest.NeedRoot(tb) }

// removeRoot kills what helper processes have left on a root.
func removeRoot(root string) { realguest.RemoveRoot(root) }

// bareGuest starts a guest without a system that runs, with more devices, on the disk image; its name is returned.
func bareGuest(tb testing.TB, devices, image string) string {
	tb.Helper()
	return realguest.Start(tb, realguest.Config{Disks: []realguest.Disk{{Device: "vda", Path: image}}, DevicesXML: devices, Running: true}).Name
}

// needTools skips the test where a tool is missing.
func needTools(tb testing.TB, tools ...string) {
	tb.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing(tb, err)
		}
	}
}

func missing(tb testing.TB, why error) {
	tb.Helper()
	if os.Getenv("KVMBACKUP_REQUIRE_TOOLS") == "1" {
		tb.Fatalf("required here: %v", why)
	}
	tb.Skip(why)
}

// eventually polls the condition, for long: guests without KVM are slow on a busy machine.
func eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(90 * time.Second); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			tb.Fatalf("waited in vain until %s", what)
		}
	}
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
