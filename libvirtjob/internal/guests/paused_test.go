//go:build cgo

package guests_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
)

// TestPausedByError: the storage of a guest's disk runs full during a backup, so QEMU pauses the guest. When there is
// space again and the job is over, it runs on and has lost nothing.
func TestPausedByError(t *testing.T) {
	lab.Further(t)
	if !alone(t) {
		return
	}
	g, fill := fullDisk(t)
	for name, fails := range map[string]bool{"job fails": true, "job succeeds": false} {
		t.Run(name, func(t *testing.T) {
			g := *g
			g.TB = t
			b := newBench(t, nil)
			ctx, cancel := b.cancellable()
			// Slow, so that all of it happens during the job.
			req := engine.BackupRequest{VM: kvmbackup.VMID(g.name), BandwidthBytes: 1 << 20}
			var noted []string
			req.OnJob = func(job engine.JobControl) {
				fill(true)
				g.run("(dd if=/dev/urandom of=/vdb/big bs=64k count=256; sync && rm /vdb/big && echo done >/tmp/done) " +
					">/dev/null 2>&1 &")
				g.waitPaused(libvirt.DOMAIN_PAUSED_IOERROR)
				st, err := b.cfg.Executor.Inspect(b.ctx, g.ref())
				b.must(err)
				noted = st.IOErrors
				fill(false)
				if fails {
					cancel(errStop)
				} else if err := job.SetBandwidth(0); err != nil {
					t.Error(err)
				}
			}
			got, err := b.engine.Backup(ctx, req)
			if fails {
				b.wantErr(err, errStop)
			} else if b.must(err); !hasReason(got, engine.ReasonGuestResumed) {
				t.Errorf("reasons are %v", got.Reasons)
			}
			b.wantErrorsNamed(got, noted)
			if s, reason := g.state(); s != libvirt.DOMAIN_RUNNING {
				t.Fatalf("the guest is in state %v because %v", s, reason)
			}
			defer func() {
				if s, reason := g.state(); t.Failed() {
					t.Logf("the guest is in state %v because %v", s, reason)
				}
			}()
			lab.Eventually(t, "the guest has written its file", func() bool {
				return g.run("if [ -s /tmp/done ]; then cat /tmp/done; rm /tmp/done; fi") != ""
			})
			b.wantClean(&g)
		})
	}
}

// wantErrorsNamed: where libvirt notes the errors of disks, Inspect names the disk, and so does the reason on record.
func (b *bench) wantErrorsNamed(bk kvmbackup.Backup, noted []string) {
	b.Helper()
	v, err := b.cfg.Executor.(*libvirtjob.Executor).Versions(b.ctx)
	b.must(err)
	i := slices.IndexFunc(v.Features, func(f libvirtjob.Feature) bool { return f.Name == "io-errors" })
	if notes := v.Features[i].Has == libvirtjob.Available; notes != strings.Contains(strings.Join(noted, "\n"), "vdb") {
		b.Errorf("libvirt notes errors: %v, it has noted %q", notes, noted)
	}
	for _, r := range bk.Reasons {
		if r.Code == engine.ReasonGuestResumed && r.Detail != strings.Join(noted, "; ") {
			b.Errorf("the reason on record is %q, libvirt says %q", r.Detail, noted)
		}
	}
}

// TestPausedByAdministrator: a pause that is not an error's stays, whether it came before the backup or during it.
func TestPausedByAdministrator(t *testing.T) {
	g := needGuest(t)
	b := newBench(t, nil)
	t.Cleanup(func() { _ = g.domain().Resume() })
	req := engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceTry}
	req.OnJob = func(engine.JobControl) {
		if err := g.domain().Suspend(); err != nil {
			t.Error(err)
		}
	}
	for _, want := range []kvmbackup.Consistency{kvmbackup.ConsistencyFilesystem, kvmbackup.ConsistencyCrash} {
		got := b.backup(req)
		if s, reason := g.state(); s != libvirt.DOMAIN_PAUSED || reason != int(libvirt.DOMAIN_PAUSED_USER) {
			t.Errorf("the guest is in state %v because %v", s, reason)
		}
		if got.Consistency != want || hasReason(got, engine.ReasonGuestResumed) {
			t.Errorf("backup is %v, %v", got.Consistency, got.Reasons)
		}
		req.OnJob = nil
	}
	if err := g.domain().Resume(); err != nil {
		t.Fatal(err)
	}
	g.wantThawed()
}

// TestPausedWhileFrozen: the guest is paused before it can be thawed. It can't be thawed then; when somebody lets it
// run on during the job it is thawed after that.
func TestPausedWhileFrozen(t *testing.T) {
	g := needGuest(t)
	b := newBench(t, nil)
	t.Cleanup(func() { _ = g.domain().Resume() })
	b.on(engine.EventFrozen, func(engine.Event) {
		if err := g.domain().Suspend(); err != nil {
			t.Error(err)
		}
	})
	req := engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceRequire}
	if got := b.backup(req); !hasReason(got, engine.ReasonThawFailed) {
		t.Errorf("reasons are %v", got.Reasons)
	}
	resume := func(engine.JobControl) {
		if err := g.domain().Resume(); err != nil {
			t.Error(err)
		}
	}
	resume(nil)
	if !g.frozen() {
		t.Error("the guest isn't frozen: does the test prove anything?")
	}
	_, _ = g.agent("guest-fsfreeze-thaw")

	req.OnJob = resume
	if got := b.backup(req); hasReason(got, engine.ReasonThawFailed) || got.FrozenFor <= 0 {
		t.Errorf("frozen for %v, reasons are %v", got.FrozenFor, got.Reasons)
	}
	g.wantThawed()
}

// fullDisk boots a guest whose disk vdb is on a small tmpfs, and returns what fills that up or frees it.
func fullDisk(t *testing.T) (*guest, func(full bool)) {
	t.Helper()
	lab.NeedRoot(t)
	g := newGuest(t)
	small := filepath.Join(g.dir, "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=96m"); err != nil {
		lab.Missing(t, "no mounts here: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	g.disks = []guestDisk{
		{device: "vda", path: newFS(t, filepath.Join(g.dir, "vda.qcow2"), 48)},
		{device: "vdb", path: newFS(t, filepath.Join(g.dir, "vdb.qcow2"), 64), stop: true},
		{device: "vdc", path: bulkDisk(t, 256)}, // enough for a job's limit to hold until the guest is paused
	}
	moved := filepath.Join(small, "vdb.qcow2")
	command(t, "cp", g.disks[1].path, moved)
	g.disks[1].path = moved
	filler := filepath.Join(small, "filler")
	return g.boot(), func(full bool) {
		if !full {
			_ = os.Remove(filler)
			return
		}
		var st syscall.Statfs_t
		if err := syscall.Statfs(small, &st); err != nil {
			t.Fatal(err)
		}
		// 4 MiB stay free
		if err := os.WriteFile(filler, make([]byte, max(int64(st.Bavail)-1024, 0)*st.Bsize), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// waitPaused waits until the guest is paused for the reason.
func (g *guest) waitPaused(want libvirt.DomainPausedReason) {
	g.Helper()
	lab.Eventually(g, "the guest is paused", func() bool {
		s, reason := g.state()
		return s == libvirt.DOMAIN_PAUSED && reason == int(want)
	})
}
