//go:build cgo

package guests_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// TestBandwidth: a limit holds from the start, and a new one at once. What QEMU reads and writes in one go (up to 64
// MiB), and what goes before libvirt's begin returns, isn't held back.
func TestBandwidth(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	vm := bareGuest(t, "", bulkDisk(t, 512))
	b := newBench(t, nil)
	const slow, fast, atOnce, raiseAt = 24 << 20, 96 << 20, (64 + 16) << 20, 160 << 20
	var control engine.JobControl
	var raised time.Time
	req := engine.BackupRequest{VM: kvmbackup.VMID(vm), BandwidthBytes: slow}
	req.OnJob = func(c engine.JobControl) { control = c }
	b.on(engine.EventProgress, func(ev engine.Event) {
		if raised.IsZero() && ev.Progress.DoneBytes > raiseAt {
			wantSpeed(t, vm, slow)
			raised = time.Now()
			b.must(control.SetBandwidth(fast))
			wantSpeed(t, vm, fast)
		}
	})
	begun := time.Now()
	b.backup(req)
	if raised.IsZero() {
		t.Fatal("the job was over before the limit was raised")
	}
	took, least := raised.Sub(begun), time.Duration(raiseAt-atOnce)*time.Second/slow*9/10
	t.Logf("%d MiB took %v", raiseAt>>20, took)
	if took < least {
		t.Errorf("%d MiB at %d MiB/s took %v, less than %v", raiseAt>>20, slow>>20, took, least)
	}
}

// wantSpeed checks the limit that QEMU has for its jobs on a domain.
func wantSpeed(t *testing.T, name string, want int64) {
	t.Helper()
	dom, err := connection(t).LookupDomainByName(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dom.Free() }()
	out, err := dom.QemuMonitorCommand(`{"execute":"query-block-jobs"}`, 0)
	if err != nil {
		t.Fatal(err)
	}
	var reply struct {
		Return []struct{ Speed int64 }
	}
	if err := json.Unmarshal([]byte(out), &reply); err != nil || len(reply.Return) != 1 || reply.Return[0].Speed != want {
		t.Errorf("the jobs are %s, want one with the speed %d", out, want)
	}
}

// bulkDisk makes a disk full of data, so that copying it takes time.
func bulkDisk(t testing.TB, mebibytes int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bulk.qcow2")
	command(t, "qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprintf("%dM", mebibytes))
	command(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -P 0x5a 0 %dM", mebibytes), path)
	return path
}

// mount is a file system of its own for a repository, that can be made to hang.
type mount struct {
	testing.TB
	dir    string
	frozen bool
}

func newMount(t *testing.T) *mount {
	t.Helper()
	lab.NeedRoot(t)
	lab.Need(t, "losetup", "mount", "umount", "fsfreeze", "mkfs.ext4")
	work, err := newWorkDir()
	if err != nil {
		t.Fatal(err)
	}
	m := &mount{TB: t}
	m.dir = filepath.Join(work, fmt.Sprintf("nas-%d", guestNumber.Add(1)))
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", "-q", "-F", m.dir+".img", "400M")
	command(t, "mount", "-o", "loop", m.dir+".img", m.dir)
	t.Cleanup(func() {
		m.goOn()
		lab.Eventually(t, "the repository's file system is unmounted", func() bool {
			return syscall.Unmount(m.dir, 0) == nil
		})
	})
	return m
}

// hang makes writers wait, as a dead file server does.
func (m *mount) hang() { m.Helper(); command(m, "fsfreeze", "-f", m.dir); m.frozen = true }

func (m *mount) goOn() {
	m.Helper()
	if m.frozen {
		command(m, "fsfreeze", "-u", m.dir)
		m.frozen = false
	}
}

// TestDeadRepository: the repository's file server dies during a job. The backup ends with an error in time although
// the job can't be ended, everything else goes on, and when the server is back all is settled.
func TestDeadRepository(t *testing.T) {
	lab.Further(t)
	if !alone(t) {
		return
	}
	nas := newMount(t)
	g := newGuest(t)
	g.disks = []guestDisk{
		{device: "vda", path: newFS(t, filepath.Join(g.dir, "vda.qcow2"), 48)},
		{device: "vdb", path: bulkDisk(t, 200)},
	}
	g.boot()
	t.Cleanup(nas.goOn) // before the guest is destroyed
	b := newBench(t, func(c *engine.Config) {
		c.Repository = newRepository(t, filepath.Join(nas.dir, "repository"))
	})
	vm := kvmbackup.VMID(g.name)
	full := b.backup(engine.BackupRequest{VM: vm, Volumes: []engine.Volume{{ID: "root", Device: "vda"}}})

	// The watchdog.
	b.limits(500*time.Millisecond, 1500*time.Millisecond, 2*time.Second)
	sum := g.write("/vda/file", 4)
	req := engine.BackupRequest{VM: vm, Policy: kvmbackup.Policy{ForceFull: true}, BandwidthBytes: 24 << 20,
		OnJob: func(engine.JobControl) {
			nas.hang()
		}}
	b.on(engine.EventStalled, func(engine.Event) {})
	stalled := func() (err error) {
		within(t, 10*time.Second, "the stalled backup", func() {
			_, err = b.engine.Backup(b.ctx, req)
			t.Log(err)
		})
		return err
	}
	err := stalled()
	for range 3 {
		if errors.Is(err, kvmbackup.ErrJobStuck) {
			break
		}
		// The limit can be set only once the job runs. On a busy machine that may be too late for a job that is to be caught.
		nas.goOn()
		b.recovered(engine.Target{VM: vm, Domain: g.name, DomainUUID: g.uuid})
		err = stalled()
	}
	b.wantErr(err, kvmbackup.ErrJobStuck)
	if ev := b.seen(engine.EventStalled); len(ev) != 1 || ev[0].Elapsed < b.cfg.StallWarn {
		t.Errorf("stall warnings: %+v", ev)
	}
	b.wantRunning(vm)

	// While it hangs every call returns, and other VMs and repositories go on.
	within(t, 10*time.Second, "recovery while it hangs", func() {
		found, err := b.engine.Recover(b.ctx, engine.Target{VM: vm, Domain: g.name, DomainUUID: g.uuid})
		if err == nil {
			t.Errorf("recovery found %+v", found)
		}
		t.Log(err)
	})
	within(t, 10*time.Second, "another backup while it hangs", func() {
		_, err := b.engine.Backup(b.ctx, engine.BackupRequest{VM: vm})
		if err == nil {
			t.Error("a backup succeeded")
		}
		t.Log(err)
	})
	within(t, 10*time.Second, "a deletion while it hangs", func() {
		ctx, cancel := context.WithTimeoutCause(b.ctx, time.Second, errStop)
		defer cancel()
		_, err := b.engine.Delete(ctx, full.ID, kvmbackup.DeleteOptions{})
		t.Log(err)
	})
	settled := otherVM(t)

	nas.goOn()
	settled()
	b.limits(0, 0, 0)
	b.recovered(engine.Target{VM: vm, Domain: g.name, DomainUUID: g.uuid})
	b.wantClean(g)
	got := b.backup(engine.BackupRequest{VM: vm, Quiesce: engine.QuiesceRequire})
	t.Logf("%v because %v", got.Kind, got.Reasons)
	disks := b.restore(got.ID, qcow2.FormatRaw)
	checkFS(t, disks["vda"])
	wantFiles(t, disks["vda"], map[string]string{"file": sum})
	command(t, "qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", g.disks[1].path, disks["vdb"])
}

// otherVM backs up another VM while a QEMU hangs. libvirt sees to what the jobs of all domains report in one thread,
// which may be waiting for that QEMU: then the watchdog ends the other backup, or leaves its job to the next operation.
// Once QEMU goes on, settled expects it to be cleaned up.
func otherVM(t *testing.T) (settled func()) {
	t.Helper()
	req := engine.BackupRequest{VM: kvmbackup.VMID(bareGuest(t, "", ""))}
	b := newBench(t, nil)
	b.limits(500*time.Millisecond, 1500*time.Millisecond, 2*time.Second)
	within(t, 10*time.Second, "another VM's backup", func() {
		_, err := b.engine.Backup(b.ctx, req)
		if err != nil && !errors.Is(err, kvmbackup.ErrJobStuck) {
			b.wantErr(err, kvmbackup.ErrStalled)
		}
		t.Log(err)
	})
	return func() {
		b.limits(0, 0, 0)
		b.recovered(engine.Target{VM: req.VM})
		b.backup(req)
	}
}

// recovered recovers until it succeeds: at first, calls that hung may not have ended yet.
func (b *bench) recovered(vm engine.Target) {
	b.Helper()
	lab.Eventually(b, "all is settled", func() bool {
		found, err := b.engine.Recover(b.ctx, vm)
		b.Logf("recovery: %+v, %v", found, err)
		return err == nil
	})
}

func (b *bench) wantRunning(vm kvmbackup.VMID) {
	b.Helper()
	s := b.statuses(vm)
	if len(s) == 0 || s[len(s)-1] != kvmbackup.StatusRunning {
		b.Errorf("records are %v", s)
	}
}

// TestCancelDuringHang: a cancel, too, ends an operation whose job can't be ended.
func TestCancelDuringHang(t *testing.T) {
	lab.Further(t)
	if !alone(t) {
		return
	}
	nas := newMount(t)
	g := needGuest(t)
	b := newBench(t, func(c *engine.Config) {
		c.Repository = newRepository(t, filepath.Join(nas.dir, "repository"))
		c.CleanupLimit = 2 * time.Second
	})
	ctx, cancel := b.cancellable()
	vm := kvmbackup.VMID(g.name)
	within(t, 10*time.Second, "the cancelled backup", func() {
		_, err := b.engine.Backup(ctx, engine.BackupRequest{VM: vm, BandwidthBytes: 16 << 20, OnJob: func(engine.JobControl) {
			nas.hang()
			time.AfterFunc(500*time.Millisecond, func() { cancel(errStop) })
		}})
		b.wantErr(err, errStop)
		// On a busy machine the job may be over before the target hangs; then it is the folder that can't be removed.
		if !errors.Is(err, kvmbackup.ErrJobStuck) && !errors.Is(err, repository.ErrUnavailable) {
			t.Errorf("the error doesn't say what is left: %v", err)
		}
	})
	b.wantRunning(vm)
	nas.goOn()
	b.recovered(engine.Target{VM: vm, Domain: g.name, DomainUUID: g.uuid})
	b.backup(engine.BackupRequest{VM: vm})
	b.wantClean(g)
}

// TestCancelAnywhere cancels, and lets a deadline pass, in every step of a backup. Until the folder is published
// nothing is left; from then on the backup is completed instead.
func TestCancelAnywhere(t *testing.T) {
	g := needGuest(t)
	vm := kvmbackup.VMID(g.name)
	req := engine.BackupRequest{VM: vm, Quiesce: engine.QuiesceTry}
	b := newBench(t, nil)
	b.on(engine.EventStep, func(engine.Event) {})
	b.backup(req)
	var steps []string
	for _, ev := range b.seen(engine.EventStep) {
		steps = append(steps, ev.Step)
	}
	t.Logf("steps: %q", steps)
	for _, step := range steps {
		ctx, cancel := b.cancellable()
		b.on(engine.EventStep, func(ev engine.Event) {
			if ev.Step == step {
				cancel(errStop)
			}
		})
		took := within(t, 10*time.Second, "cancelling in step "+step, func() {
			got, err := b.engine.Backup(ctx, req)
			published := len(b.seen(engine.EventPublished)) > 0
			if published != (err == nil) || err != nil && !errors.Is(err, errStop) {
				t.Errorf("cancelled in step %q: published %v, error %v", step, published, err)
			}
			if err == nil && got.Status != kvmbackup.StatusCompleted {
				t.Errorf("cancelled in step %q: %+v", step, got)
			}
		})
		t.Logf("cancelled in step %q: %v", step, took)
		b.wantClean(g)
		g.wantThawed()
	}
	got := b.backup(req)
	if got.Kind != kvmbackup.KindIncremental {
		t.Errorf("after all this the backup is %v because %v", got.Kind, got.Reasons)
	}
}
