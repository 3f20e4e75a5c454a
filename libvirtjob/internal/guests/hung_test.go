//go:build cgo

package guests_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// TestHungQEMU: a dead target may stop all of QEMU, which then doesn't answer libvirt either. No call waits for it
// longer than the limit, other VMs go on, and when QEMU is back all is settled.
func TestHungQEMU(t *testing.T) {
	if !alone(t) {
		return
	}
	vm := kvmbackup.VMID(bareGuest(t, "", bulkDisk(t, 200)))
	b := newBench(t, nil)
	b.limits(500*time.Millisecond, 1500*time.Millisecond, 2*time.Second)
	goOn := func() {}
	t.Cleanup(func() { goOn() })
	stalled := func() (err error) {
		within(t, 10*time.Second, "the stalled backup", func() {
			req := engine.BackupRequest{VM: vm, BandwidthBytes: 16 << 20, Policy: kvmbackup.Policy{ForceFull: true}}
			req.OnJob = func(engine.JobControl) { goOn = hangQEMU(t, string(vm)) }
			_, err = b.engine.Backup(b.ctx, req)
			t.Log(err)
		})
		return err
	}
	err := stalled()
	for range 3 {
		if err != nil {
			break
		}
		goOn() // the job was through before its limit was set
		err = stalled()
	}
	b.wantErr(err, kvmbackup.ErrJobStuck)
	b.wantRunning(vm)
	for name, f := range map[string]func() error{
		"recovery": func() error { _, err := b.engine.Recover(b.ctx, engine.Target{VM: vm}); return err },
		"a backup": func() error { _, err := b.engine.Backup(b.ctx, engine.BackupRequest{VM: vm}); return err },
		"a plan":   func() error { _, err := b.engine.Plan(b.ctx, engine.BackupRequest{VM: vm}); return err },
	} {
		within(t, 10*time.Second, name+" while QEMU hangs", func() {
			if err := f(); err == nil {
				t.Errorf("%s succeeded", name)
			} else {
				t.Log(err)
			}
		})
	}
	settled := otherVM(t)

	goOn()
	settled()
	b.limits(0, 0, 0)
	b.recovered(engine.Target{VM: vm})
	b.backup(engine.BackupRequest{VM: vm})
}

// hangQEMU stops QEMU's process until goOn is called.
func hangQEMU(t *testing.T, name string) (goOn func()) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(libvirtRoot(t), "run", "qemu", name+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 2 {
		t.Fatal(pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
}
