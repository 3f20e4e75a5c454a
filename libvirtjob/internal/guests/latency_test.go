//go:build cgo

package guests_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// syncWriter is a guest that writes 4 KiB after 4 KiB, synchronously, and measures how long each takes.
type syncWriter struct {
	*guest
	mebibytes int
	paused    atomic.Int64 // how often somebody has paused it
}

// latency is what the guest has measured; syncwriter has the same.
type latency struct {
	Writes, Errors int
	P50, P99, Max  time.Duration
	Error          string
}

func (l latency) String() string {
	return fmt.Sprintf("%d writes, %d errors %s, p50 %v, p99 %v, max %v", l.Writes, l.Errors, l.Error,
		l.P50.Round(time.Microsecond), l.P99.Round(time.Microsecond), l.Max.Round(time.Microsecond))
}

// startSyncWriter boots a guest with a disk vda of so many MiB, all of them data. Its program comes on another disk.
func startSyncWriter(tb testing.TB, mebibytes int) *syncWriter {
	tb.Helper()
	program := filepath.Join(tb.TempDir(), "syncwriter")
	build := exec.CommandContext(tb.Context(), "go", "build", "-o", program, "./syncwriter")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
	info, err := os.Stat(program)
	lab.OK(tb, err)
	lab.OK(tb, os.Truncate(program, (info.Size()+1<<20)&^(1<<20-1)))
	w := &syncWriter{
		guest: newGuest(tb, guestDisk{device: "vda", path: bulkDisk(tb, mebibytes)},
			guestDisk{device: "vdb", path: program, format: "raw"}), mebibytes: mebibytes,
	}
	w.boot()
	w.countPauses()
	w.run("cat /dev/vdb >/tmp/syncwriter && chmod +x /tmp/syncwriter")
	w.run(fmt.Sprintf("/tmp/syncwriter /dev/vda %d /tmp/result >/tmp/log 2>&1 & echo $! >/tmp/pid; while [ ! -e "+
		"/tmp/result ]; do usleep 10000; done", int64(mebibytes)<<20))
	return w
}

func (w *syncWriter) countPauses() {
	w.Helper()
	conn := connection(w)
	id, err := conn.DomainEventLifecycleRegister(w.domain(),
		func(_ *libvirt.Connect, _ *libvirt.Domain, ev *libvirt.DomainEventLifecycle) {
			if ev.Event == libvirt.DOMAIN_EVENT_SUSPENDED {
				w.paused.Add(1)
			}
		})
	lab.OK(w, err)
	w.Cleanup(func() { lab.OK(w, conn.DomainEventDeregister(id)) })
}

// begin forgets what was measured so far.
func (w *syncWriter) begin() {
	w.Helper()
	w.run("touch /tmp/result; kill -USR1 $(cat /tmp/pid); while [ -e /tmp/result ]; do usleep 10000; done")
}

// end returns what was measured since begin, with the write that is under way.
func (w *syncWriter) end() (l latency) {
	w.Helper()
	out := w.run("kill -USR2 $(cat /tmp/pid); while [ ! -e /tmp/result ]; do kill -0 $(cat /tmp/pid) || cat /tmp/log; " +
		"usleep 10000; done; cat /tmp/result")
	lab.OK(w, json.Unmarshal([]byte(out), &l))
	return l
}

// idle is what the guest measures when nobody takes a backup.
func (w *syncWriter) idle(span time.Duration) latency {
	w.Helper()
	w.begin()
	<-time.After(span)
	return w.end()
}

// trial is a full of a syncWriter's disk to a share that something is wrong with.
type trial struct {
	*bench
	w     *syncWriter
	share *share
	way   kvmbackup.Transfer
}

// fault is what is wrong with a share while a full is copied to it.
type fault struct {
	name    string
	speed   int64 // in bytes per second; 0: as fast as it can
	stalled bool  // for a time, from the begin of the job on
	full    bool  // it has room for half of the disk
}

var faults = []fault{
	{name: "fast"},
	{name: "10 MB/s", speed: 10e6},
	{name: "stalled", speed: 20e6, stalled: true}, // so that the job is there still
	{name: "full", full: true},
}

// happens is what a fault does once the job has begun.
func (f fault) happens(s *share, stall time.Duration) func() {
	return func() {
		if f.stalled {
			s.stall()
			time.AfterFunc(stall, s.goOn)
		}
	}
}

func newTrial(t testing.TB, w *syncWriter, way kvmbackup.Transfer, f fault) *trial {
	t.Helper()
	room := w.mebibytes*2 + 64
	if f.full {
		room = w.mebibytes/2 + 16
	}
	s := newShare(t, room)
	scratch := shortDir(t)
	b := newBench(t, func(c *engine.Config) {
		c.Repository = newRepository(t, filepath.Join(s.dir, "repository"))
		c.Scratch = []string{scratch}
	})
	s.throttle(f.speed)
	return &trial{b, w, s, way}
}

// shortDir is a folder for a scratch, whose path has to be short.
func shortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "s-") //nolint:usetesting // see above
	lab.OK(tb, err)
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// full takes one, and returns what the guest has measured while QEMU had the job.
func (t *trial) full(ctx context.Context, onJob func()) (measured latency, err error) {
	t.Helper()
	ended := false
	end := func() {
		if !ended {
			measured, ended = t.w.end(), true
		}
	}
	req := engine.BackupRequest{
		VM: kvmbackup.VMID(t.w.name), Volumes: []engine.Volume{{ID: "v", Device: "vda"}}, IgnoreSpace: true,
	}
	req.Policy.Transfer, req.Policy.ForceFull = t.way, true
	req.OnJob = func(engine.JobControl) { t.w.begin(); onJob() }
	t.on(engine.EventStep, func(ev engine.Event) {
		if ev.Step == "check targets" {
			end()
		}
	})
	_, err = t.engine.Backup(ctx, req)
	end()
	return measured, err
}

// TestGuestWritesOn: a guest that writes all the time while it is backed up by pull has no write that fails, isn't
// paused, and never waits for the share: be that slow, stalled or full. By push it waits for as long as a share is
// stalled.
func TestGuestWritesOn(t *testing.T) {
	lab.Further(t)
	if !alone(t) {
		return
	}
	const stall = 4 * time.Second
	w := startSyncWriter(t, 64)
	t.Logf("idle: %v", w.idle(2*time.Second))
	for _, f := range faults {
		for _, way := range []kvmbackup.Transfer{kvmbackup.TransferPull, kvmbackup.TransferPush} {
			if way == kvmbackup.TransferPush && !f.stalled {
				continue
			}
			t.Run(f.name+" "+way.String(), func(t *testing.T) {
				b := newTrial(t, w, way, f)
				measured, err := b.full(b.ctx, f.happens(b.share, stall))
				for range 3 {
					if way == kvmbackup.TransferPull || measured.Max >= stall*3/4 {
						break
					}
					t.Logf("all was written before the share stalled: %v; %v", measured, err)
					b = newTrial(t, w, way, f)
					measured, err = b.full(b.ctx, f.happens(b.share, stall))
				}
				t.Logf("%v; %v", measured, err)
				if (err != nil) != f.full {
					t.Errorf("error is %v", err)
				}
				switch {
				case way == kvmbackup.TransferPush && measured.Max < stall*3/4:
					t.Errorf("by push the longest write took %v: is the share stalled?", measured.Max)
				case way == kvmbackup.TransferPull:
					w.wantUnharmed(t, measured, stall/2)
				}
			})
		}
	}
}

func (w *syncWriter) wantUnharmed(t *testing.T, l latency, longest time.Duration) {
	t.Helper()
	if l.Writes == 0 || l.Errors > 0 || l.Max > longest {
		t.Errorf("the guest has measured %v, want no error and no write that takes longer than %v", l, longest)
	}
	if state, reason := w.state(); state != libvirt.DOMAIN_RUNNING || w.paused.Load() > 0 {
		t.Errorf("the guest is in state %d, for reason %d, and was paused %d times", state, reason, w.paused.Load())
	}
}

// TestAbortWhileTheShareHangs: a cancel ends a pull job at once, although the share doesn't answer, and the guest
// doesn't notice. A push job stays until the share answers, and has the guest wait until then.
func TestAbortWhileTheShareHangs(t *testing.T) {
	if !alone(t) {
		return
	}
	const atOnce, hang = 2 * time.Second, 5 * time.Second
	w := startSyncWriter(t, 64)
	for _, way := range []kvmbackup.Transfer{kvmbackup.TransferPull, kvmbackup.TransferPush} {
		t.Run(way.String(), func(t *testing.T) {
			b, measured, took, err := w.abort(t, way, hang)
			for range 3 {
				if way == kvmbackup.TransferPull || errors.Is(err, kvmbackup.ErrJobStuck) {
					break
				}
				t.Log("all was written before the share stalled")
				b, measured, took, err = w.abort(t, way, hang)
			}
			b.wantErr(err, errStop)
			if way == kvmbackup.TransferPull {
				w.wantUnharmed(t, measured, atOnce)
			}
			if (took < atOnce) != (way == kvmbackup.TransferPull) {
				t.Errorf("the job was gone after %v", took)
			}
			b.limits(0, 0, 0)
			b.recovered(engine.Target{VM: kvmbackup.VMID(w.name), Domain: w.name, DomainUUID: w.uuid})
			b.wantClean(w.guest)
		})
	}
}

// abort cancels a full while its share hangs, and returns after how long libvirt's job was gone.
func (w *syncWriter) abort(t *testing.T, way kvmbackup.Transfer, hang time.Duration) (b *trial, measured latency,
	took time.Duration, err error) {
	t.Helper()
	b = newTrial(t, w, way, fault{speed: 10e6})
	b.limits(0, 0, time.Second)
	ctx, cancel := b.cancellable()
	gone := make(chan time.Duration, 1)
	measured, err = b.full(ctx, func() {
		b.share.stall()
		time.AfterFunc(500*time.Millisecond, func() {
			time.AfterFunc(hang, b.share.goOn)
			cancel(errStop)
			gone <- w.jobGone()
		})
	})
	took = <-gone
	t.Logf("the job was gone after %v; %v; %v", took, measured, err)
	return b, measured, took, err
}

// jobGone returns after how long libvirt has no job on the domain.
func (w *syncWriter) jobGone() time.Duration {
	began := time.Now()
	lab.Eventually(w, "libvirt's job is gone", func() bool {
		info, err := w.domain().GetJobStats(0)
		return err == nil && info.Type == libvirt.DOMAIN_JOB_NONE
	})
	return time.Since(began)
}

// BenchmarkGuestWrites reports what a guest that writes synchronously measures during a full of its disk of 512 MiB, by
// pull and by push, to a share that is fast, slow, stalled for a minute or full; and just before, when nobody takes
// one.
func BenchmarkGuestWrites(b *testing.B) {
	w := startSyncWriter(b, 512)
	for _, f := range faults {
		for _, way := range []kvmbackup.Transfer{kvmbackup.TransferPull, kvmbackup.TransferPush} {
			b.Run(f.name+" "+way.String(), func(b *testing.B) {
				for b.Loop() {
					t := newTrial(b, w, way, f)
					idle := w.idle(5 * time.Second)
					measured, err := t.full(t.ctx, f.happens(t.share, time.Minute))
					if f.full != (err != nil) {
						b.Errorf("error is %v", err)
					}
					idle.report(b, "idle")
					measured.report(b, way.String())
					b.ReportMetric(float64(measured.P99)/float64(idle.P99), "p99/idle")
					b.ReportMetric(float64(measured.Errors), "errors")
					b.ReportMetric(float64(w.paused.Load()), "pauses")
				}
			})
		}
	}
}

func (l latency) report(b *testing.B, when string) {
	b.Helper()
	b.ReportMetric(float64(l.P50)/1e6, when+"-p50-ms")
	b.ReportMetric(float64(l.P99)/1e6, when+"-p99-ms")
	b.ReportMetric(float64(l.Max)/1e6, when+"-max-ms")
	b.ReportMetric(float64(l.Writes), when+"-writes")
}
