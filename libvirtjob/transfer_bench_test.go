package libvirtjob_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// thin is as large as a model of a disk can be on ext4, in whole MiB.
const thin = 16<<40 - 1<<20

// BenchmarkTransfer has push and pull do the same job in turns, from PrepareJob to the end of Wait, and reports the
// medians and the median of the rounds' ratios.
func BenchmarkTransfer(b *testing.B) {
	for _, c := range []struct {
		name  string
		sizes []int64
		full  func(*realguest.Guest)
		next  func(*realguest.Guest, byte) // what makes an incremental; nil: fulls are measured
	}{
		{"full of 1 GiB", []int64{1 << 30}, func(g *realguest.Guest) { fill(g, "vda") }, nil},
		{"64 MiB in 1024 places", []int64{1 << 30}, func(g *realguest.Guest) { fill(g, "vda") },
			func(g *realguest.Guest, round byte) {
				for i := range int64(1024) {
					g.Write("vda", round, i<<20, 64<<10)
				}
			}},
		{"nothing on two disks", []int64{64 << 20, 64 << 20}, func(*realguest.Guest) {}, func(*realguest.Guest, byte) {}},
		{"thin 16 TiB", []int64{thin}, func(g *realguest.Guest) {
			g.Write("vda", 1, 0, 32<<20)
			g.Write("vda", 2, thin-32<<20, 32<<20)
		}, nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			t := newTurns(b, c.sizes)
			c.full(t.guest)
			if c.next != nil {
				for way := range t.took {
					t.job(way, "base-"+way.String(), "")
				}
			}
			clear(t.took)
			clear(t.began)
			clear(t.cpu)
			round := byte(0)
			for b.Loop() {
				for _, way := range t.ways(c.name) {
					base := ""
					if round++; c.next != nil {
						base = "base-" + way.String()
						c.next(t.guest, round)
					}
					t.job(way, fmt.Sprintf("c%d", round), base)
				}
			}
			t.report()
		})
	}
}

// turns is a guest that is backed up by push and by pull.
type turns struct {
	*testing.B
	exec  *libvirtjob.Executor
	guest *realguest.Guest
	dir   string
	took  map[kvmbackup.Transfer][]time.Duration
	began map[kvmbackup.Transfer][]time.Duration
	sizes []int64
	peak  atomic.Int64                           // of a daemon's memory, in KiB
	spent atomic.Int64                           // of the last daemon's processor time, in ticks
	cpu   map[kvmbackup.Transfer][]time.Duration // of QEMU, this process and the daemon
}

func newTurns(b *testing.B, sizes []int64) *turns {
	b.Helper()
	tool, err := qcow2.New(qcow2.Config{})
	if err != nil {
		b.Fatal(err)
	}
	t := &turns{
		B: b, dir: b.TempDir(), sizes: sizes, cpu: map[kvmbackup.Transfer][]time.Duration{},
		began: map[kvmbackup.Transfer][]time.Duration{}, took: map[kvmbackup.Transfer][]time.Duration{
			kvmbackup.TransferPush: nil, kvmbackup.TransferPull: nil,
		},
	}
	cfg := realguest.Config{}
	for i, size := range sizes {
		cfg.Disks = append(cfg.Disks, realguest.Disk{Device: "vd" + string(rune('a'+i)), SizeBytes: size})
	}
	t.guest = realguest.Start(b, cfg)
	if t.exec, err = libvirtjob.New(realguest.Need(b).Conn, libvirtjob.Config{Images: tool}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = t.exec.Close() })
	return t
}

// ways are both, in turn; of a thin disk pull alone, as a push of it takes a minute.
func (t *turns) ways(name string) []kvmbackup.Transfer {
	if name == "thin 16 TiB" {
		return []kvmbackup.Transfer{kvmbackup.TransferPull}
	}
	return []kvmbackup.Transfer{kvmbackup.TransferPush, kvmbackup.TransferPull}
}

func (t *turns) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (t *turns) job(way kvmbackup.Transfer, checkpoint, base string) {
	t.Helper()
	ctx := t.Context()
	dom := kvmbackup.DomainRef{Name: t.guest.Name}
	spec := kvmbackup.JobSpec{
		ID: kvmbackup.NewBackupID(), Dir: t.dir, CreatedAt: time.Now(), Transfer: way,
		Checkpoint: kvmbackup.CheckpointName(checkpoint), Base: kvmbackup.CheckpointName(base),
	}
	if way == kvmbackup.TransferPull {
		spec.Scratch = filepath.Join(os.TempDir(), "kb-"+string(spec.ID))
	}
	for i, size := range t.sizes {
		device := "vd" + string(rune('a'+i))
		v := kvmbackup.JobVolume{
			VolumeID: kvmbackup.VolumeID(device), Device: device, Kind: kvmbackup.KindFull, File: device + "." + checkpoint,
			VirtualSize: size, Tracked: true,
		}
		if base != "" {
			v.Kind, v.ParentFile = kvmbackup.KindIncremental, device+"."+base
		}
		spec.Volumes = append(spec.Volumes, v)
	}
	syscall.Sync()
	t.spent.Store(0)
	worked := t.processorTime()
	start := time.Now()
	job, err := t.exec.PrepareJob(ctx, dom, spec)
	t.must(err)
	begin := time.Now()
	t.must(job.Begin(ctx))
	begun := time.Now()
	if way == kvmbackup.TransferPull {
		defer t.watchMemory(libvirtjob.DaemonPID(job))()
	}
	_, err = job.Wait(ctx, nil)
	t.must(err)
	t.cpu[way] = append(t.cpu[way], t.processorTime()-worked)
	t.took[way] = append(t.took[way], time.Since(start))
	t.began[way] = append(t.began[way], begun.Sub(begin))
	t.must(job.Close(ctx))
	if base == "" && checkpoint[0] == 'b' {
		return
	}
	t.must(t.exec.DropCheckpoint(ctx, dom, spec.Checkpoint))
	for _, v := range spec.Volumes {
		t.must(os.Remove(filepath.Join(t.dir, v.File)))
	}
}

// processorTime is that of QEMU, of this process, and of the daemon as far as it was watched.
func (t *turns) processorTime() time.Duration {
	t.Helper()
	var own syscall.Rusage
	t.must(syscall.Getrusage(syscall.RUSAGE_SELF, &own))
	others := time.Duration(ticks(t.guest.PID())+t.spent.Load()) * 10 * time.Millisecond
	return time.Duration(own.Utime.Nano()+own.Stime.Nano()) + others
}

// ticks are a process's processor time in hundredths of a second, 0 for one that has ended.
func ticks(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return user + system
}

// watchMemory notes the processor time and the most memory that a pull's daemon has taken, until stop is called.
func (t *turns) watchMemory(pid int) (stop func()) {
	done := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // it may have ended
			t.spent.Store(max(t.spent.Load(), ticks(pid)))
			for line := range strings.Lines(string(text)) {
				var kibs int64
				if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kibs); n == 1 {
					t.peak.Store(max(t.peak.Load(), kibs))
				}
			}
			select {
			case <-tick.C:
			case <-done:
				tick.Stop()
				return
			}
		}
	})
	return func() { close(done); watcher.Wait() }
}

func (t *turns) report() {
	t.ReportMetric(float64(t.peak.Load())/1024, "daemon-peak-MiB")
	var ratios []float64
	for i, push := range t.took[kvmbackup.TransferPush] {
		ratios = append(ratios, float64(t.took[kvmbackup.TransferPull][i])/float64(push))
	}
	for way, took := range t.took {
		t.ReportMetric(float64(median(took))/1e6, way.String()+"-ms")
		t.ReportMetric(float64(median(t.began[way]))/1e6, way.String()+"-begin-ms")
		t.ReportMetric(float64(median(t.cpu[way]))/1e6, way.String()+"-cpu-ms")
	}
	if len(ratios) > 0 {
		t.ReportMetric(median(ratios), "pull/push")
	}
}

func median[T float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// fill writes a gigabyte without zeroes.
func fill(g *realguest.Guest, device string) {
	for i := range int64(1024) {
		g.Write(device, byte(1+i%251), i<<20, 1<<20)
	}
}
