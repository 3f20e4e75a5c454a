//go:build cgo

package guests_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestQuiescedFileSystem: a file system that was frozen needs no journal to be consistent, in a full and in an
// incremental; one that was not frozen does.
func TestQuiescedFileSystem(t *testing.T) {
	g := needGuest(t)
	b := newBench(t, nil)
	quiesced := engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceRequire}
	sums := map[string]string{}
	for i, name := range []string{"first", "second"} {
		sums[name] = g.write("/vda/"+name, 4) // not synced: the freeze has to do that
		got := b.backup(quiesced)
		if want := []kvmbackup.Kind{kvmbackup.KindFull, kvmbackup.KindIncremental}[i]; got.Kind != want {
			t.Errorf("backup is %v because %v", got.Kind, got.Reasons)
		}
		g.wantThawed()
		if got.Consistency != kvmbackup.ConsistencyFilesystem || got.FrozenFor <= 0 || got.FrozenFor > 10*time.Second {
			t.Errorf("consistency %v, frozen for %v", got.Consistency, got.FrozenFor)
		}
		t.Logf("%v backup: frozen for %v", got.Kind, got.FrozenFor)
		disk := b.restore(got.ID, qcow2.FormatRaw)["vda"]
		checkFS(t, disk)
		if needsRecovery(t, disk) {
			t.Error("the frozen file system needs its journal")
		}
		wantFiles(t, disk, sums)
	}
	if f, th := b.seen(engine.EventFrozen), b.seen(engine.EventThawed); len(f) != 2 || len(th) != 2 || th[0].Elapsed <= 0 {
		t.Errorf("events: %d frozen, %d thawed: %+v", len(f), len(th), th)
	}

	crash := b.backup(engine.BackupRequest{VM: kvmbackup.VMID(g.name)})
	if crash.Consistency != kvmbackup.ConsistencyCrash || crash.FrozenFor != 0 {
		t.Errorf("consistency %v, frozen for %v", crash.Consistency, crash.FrozenFor)
	}
	if disk := b.restore(crash.ID, qcow2.FormatRaw)["vda"]; !needsRecovery(t, disk) {
		t.Error("a mounted file system that was not frozen needs no journal: does the check above prove anything?")
	}
	b.wantClean(g)
}

// checkFS fails the test unless the file system is clean as it is, without its journal being replayed.
func checkFS(tb testing.TB, raw string) {
	tb.Helper()
	command(tb, "e2fsck", "-n", "-f", raw)
}

func needsRecovery(tb testing.TB, raw string) bool {
	tb.Helper()
	return strings.Contains(command(tb, "debugfs", "-R", "features", raw), "needs_recovery")
}

// wantFiles compares files in the root of a file system with their checksums.
func wantFiles(tb testing.TB, raw string, sums map[string]string) {
	tb.Helper()
	for name, want := range sums {
		path := filepath.Join(tb.TempDir(), name)
		command(tb, "debugfs", "-R", "dump /"+name+" "+path, raw)
		if got := firstField(command(tb, "sha256sum", path)); got != want {
			tb.Errorf("%s in %s has checksum %s, want %s", name, raw, got, want)
		}
	}
}

// TestThawAfterFailures: whatever goes wrong, the guest is thawed, and nothing is left.
func TestThawAfterFailures(t *testing.T) {
	g := needGuest(t)
	cause := errors.New("the host wants to stop")
	for name, c := range map[string]struct {
		fail func(b *bench, cancel context.CancelCauseFunc)
		want error
	}{
		"target removed": {func(b *bench, _ context.CancelCauseFunc) { removeTargets(b) }, nil},
		"context ended":  {func(_ *bench, cancel context.CancelCauseFunc) { cancel(cause) }, cause},
	} {
		t.Run(name, func(t *testing.T) {
			g := *g
			g.TB = t
			b := newBench(t, nil)
			ctx, cancel := context.WithCancelCause(b.ctx)
			defer cancel(nil)
			b.on(engine.EventFrozen, func(engine.Event) {
				if !g.frozen() {
					t.Error("the guest is not frozen")
				}
				c.fail(b, cancel)
			})
			within(t, 10*time.Second, "the failing backup", func() {
				_, err := b.engine.Backup(ctx, engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceTry})
				if err == nil {
					t.Error("the backup succeeded")
				}
				if c.want != nil {
					b.wantErr(err, c.want)
				}
			})
			if n := len(b.seen(engine.EventThawed)); n != 1 {
				t.Errorf("%d thawed events", n)
			}
			g.wantThawed()
			b.wantClean(&g)
		})
	}
}

// removeTargets removes the files that QEMU is about to be given.
func removeTargets(b *bench) {
	running, err := b.cfg.Store.List(b.ctx, kvmbackup.Query{Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
	if err != nil || len(running) != 1 {
		b.Errorf("running records: %v, %v", running, err)
		return
	}
	r := running[0]
	if err := os.Remove(filepath.Join(b.cfg.Repository.PartialDir(r.Path, r.ID), r.Volumes[0].File)); err != nil {
		b.Error(err)
	}
}

// TestFreezeRefused: the agent answers, and can't freeze.
func TestFreezeRefused(t *testing.T) {
	g := needGuest(t)
	g.run("touch /tmp/fail")
	t.Cleanup(func() { g.run("rm -f /tmp/fail") })
	b := newBench(t, nil)
	b.wantUnquiesced(g, kvmbackup.VMID(g.name), 20*time.Second)
}

// TestFreezeTakesTooLong: the agent is still freezing when the limit has passed, and freezes after that. It has to be
// thawed all the same.
func TestFreezeTakesTooLong(t *testing.T) {
	lab.Further(t)
	g := needGuest(t)
	g.run("touch /tmp/slow")
	t.Cleanup(func() { g.run("rm -f /tmp/slow") })
	b := newBench(t, func(c *engine.Config) { c.FreezeLimit = 2 * time.Second })
	// The freeze goes on as soon as the engine has given up waiting for it.
	g.run("(usleep 9000000; rm /tmp/slow) >/dev/null &")
	got := b.backup(engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceTry})
	if got.Consistency != kvmbackup.ConsistencyCrash || !hasReason(got, engine.ReasonQuiesceFailed) {
		t.Errorf("backup is %v because %v", got.Consistency, got.Reasons)
	}
	t.Logf("from freeze to thaw: %v; %v", got.FrozenFor, got.Reasons)
	lab.Eventually(t, "the late freeze is over", func() bool { return !strings.Contains(g.run("ls /tmp"), "slow") })
	g.waitAgent()
	g.wantThawed()
}

// TestSilentAgent: an agent that is connected and doesn't answer costs the limit, not more.
func TestSilentAgent(t *testing.T) {
	g := needGuest(t)
	g.run("kill -STOP $(pidof qemu-ga)")
	t.Cleanup(func() { g.run("kill -CONT $(pidof qemu-ga)"); g.waitAgent().wantThawed() })
	b := newBench(t, func(c *engine.Config) { c.FreezeLimit = 2 * time.Second })
	b.wantUnquiesced(g, kvmbackup.VMID(g.name), 20*time.Second)
}

// TestNoAgent: without a channel, and with a channel that nobody has opened, it is known at once.
func TestNoAgent(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for name, devices := range map[string]string{
		"no channel":    "",
		"empty channel": "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vm := bareGuest(t, devices, "")
			newBench(t, nil).wantUnquiesced(nil, kvmbackup.VMID(vm), 20*time.Second)
		})
	}
}

// wantUnquiesced takes two backups of a guest that can't be frozen: one that insists and one that doesn't.
func (b *bench) wantUnquiesced(g *guest, vm kvmbackup.VMID, limit time.Duration) {
	b.Helper()
	within(b, limit, "refusing", func() {
		_, err := b.engine.Backup(b.ctx, engine.BackupRequest{VM: vm, Quiesce: engine.QuiesceRequire})
		b.wantErr(err, kvmbackup.ErrNotConsistent)
		b.Log(err)
	})
	took := within(b, limit, "the crash-consistent backup", func() {
		got := b.backup(engine.BackupRequest{VM: vm, Quiesce: engine.QuiesceTry})
		if got.Consistency != kvmbackup.ConsistencyCrash || !hasReason(got, engine.ReasonQuiesceFailed) {
			b.Errorf("backup is %v because %v", got.Consistency, got.Reasons)
		}
	})
	b.Logf("the crash-consistent backup took %v", took)
	statuses := b.statuses(vm)
	if !slices.Equal(statuses, []kvmbackup.Status{kvmbackup.StatusFailed, kvmbackup.StatusCompleted}) {
		b.Errorf("records are %v", statuses)
	}
	if g != nil && !strings.Contains(g.run("ps -o stat,comm"), "T ") {
		g.wantThawed()
	}
}

func (b *bench) statuses(vm kvmbackup.VMID) []kvmbackup.Status {
	b.Helper()
	all, err := b.engine.List(b.ctx, kvmbackup.Query{VM: vm})
	b.must(err)
	var out []kvmbackup.Status
	for _, r := range all {
		out = append(out, r.Status)
	}
	return out
}

// TestAgentSilentAfterFreeze: the agent freezes, and then is away for longer than an answer may take.
func TestAgentSilentAfterFreeze(t *testing.T) {
	lab.Further(t)
	g := needGuest(t)
	b := newBench(t, nil)
	b.on(engine.EventFrozen, func(engine.Event) {
		g.run("kill -STOP $(pidof qemu-ga); (usleep 7000000; kill -CONT $(pidof qemu-ga)) >/dev/null &")
	})
	got := b.backup(engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceTry})
	t.Logf("frozen for %v, %v", got.FrozenFor, got.Reasons)
	if got.Consistency != kvmbackup.ConsistencyFilesystem || got.FrozenFor < 5*time.Second {
		t.Errorf("consistency %v, frozen for %v", got.Consistency, got.FrozenFor)
	}
	g.waitAgent().wantThawed()
}

// TestAgentGoesDuringJob: when an agent comes or goes during a job, the one thread in which libvirt 9.0 sees to the
// events of all domains waits 30 s for that job to end, and sees to its end only then. The backup takes that much
// longer, and is whole.
func TestAgentGoesDuringJob(t *testing.T) {
	lab.Further(t)
	if !alone(t) {
		return
	}
	g := newGuest(t)
	g.disks = []guestDisk{
		{device: "vda", path: newFS(t, filepath.Join(g.dir, "vda.qcow2"), 48)},
		{device: "vdb", path: bulkDisk(t, 160)},
	}
	g.boot()
	b := newBench(t, func(c *engine.Config) { c.StallWarn = 5 * time.Second })
	sum := g.write("/vda/file", 4)
	req := engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceRequire, BandwidthBytes: 48 << 20}
	req.OnJob = func(engine.JobControl) {
		g.run("kill -9 $(pidof qemu-ga)")
		lab.Eventually(t, "libvirt sees that the agent is gone", func() bool {
			_, err := g.agent("guest-ping")
			return err != nil
		})
	}
	b.on(engine.EventStalled, func(engine.Event) {})
	var got kvmbackup.Backup
	took := within(t, 45*time.Second, "the backup", func() { got = b.backup(req) })
	t.Logf("the backup took %v, warned of %d times", took, len(b.seen(engine.EventStalled)))
	disks := b.restore(got.ID, qcow2.FormatRaw)
	checkFS(t, disks["vda"])
	wantFiles(t, disks["vda"], map[string]string{"file": sum})
	b.wantClean(g)
}
