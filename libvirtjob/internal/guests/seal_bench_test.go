//go:build cgo

package guests_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/internal/writeback"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// kinds are the ways in which BenchmarkSmallerAndSealed stores the same backup.
var kinds = []string{"plain", "zstd", "sealed", "sealed zstd"}

// BenchmarkSmallerAndSealed takes the same backups by pull in each way, in turns, of 512 MiB of which half is random
// and the rest compresses, and restores chains of ten. It reports medians, and the medians of the rounds' ratios to
// plain.
func BenchmarkSmallerAndSealed(b *testing.B) {
	r := &rounds{B: b, dir: b.TempDir(), took: map[string][]time.Duration{}, stored: map[string]int64{}}
	var err error
	r.tool, err = qcow2.New(qcow2.Config{})
	lab.OK(b, err)
	r.exec, err = libvirtjob.New(realguest.Need(b).Conn, libvirtjob.Config{Images: r.tool})
	lab.OK(b, err)
	b.Cleanup(func() { _ = r.exec.Close() })
	r.guest = realguest.Start(b, realguest.Config{
		Disks: []realguest.Disk{{Device: "vda", SizeBytes: 512 << 20}}, Persistent: true, Stopped: true,
	})
	r.guest.Random("vda", 0, 256<<20)
	r.guest.Create()
	r.guest.Write("vda", 7, 256<<20, 256<<20)
	share := newShare(b, 2048)
	command(b, "mount", "-o", "remount,async", share.dir) // as a client has it: the last flush counts
	share.throttle(50 << 20)
	chains, bases := map[string][]qcow2.Layer{}, map[string]link{}
	for _, kind := range kinds {
		chains[kind] = r.chain(kind)
		bases[kind] = r.job("base", kind, r.dir, "base", link{})
	}
	for b.Loop() {
		for _, kind := range kinds {
			r.full("full", kind, r.dir)
		}
		for _, kind := range kinds[:2] {
			r.full("full at 50 MB/s", kind, share.dir)
		}
		for _, kind := range kinds {
			r.job("nothing", kind, r.dir, "empty", bases[kind])
			r.restore(kind, chains[kind])
		}
	}
	r.report()
}

// link is one file of a chain.
type link struct {
	layer      qcow2.Layer
	checkpoint string
}

type rounds struct {
	*testing.B
	tool   *qcow2.Tool
	exec   *libvirtjob.Executor
	guest  *realguest.Guest
	dir    string
	number int
	took   map[string][]time.Duration
	stored map[string]int64
}

// chain is a full and nine incrementals of 32 MiB in places of 1 MiB, the newest first, of the same data in each kind.
func (r *rounds) chain(kind string) (layers []qcow2.Layer) {
	r.Helper()
	random := rand.NewChaCha8([32]byte{1})
	for i := range int64(10) {
		l := qcow2.Layer{Path: filepath.Join(r.dir, fmt.Sprintf("%s %d", kind, i))}
		target := qcow2.NewTarget{SizeBytes: 512 << 20}
		step, count := int64(1), int64(512)
		if i > 0 {
			step, count, target.BackingFile = 16, 32, fmt.Sprintf("%s %d", kind, i-1)
		}
		if strings.HasSuffix(kind, "zstd") {
			target.CompressionType = "zstd"
		}
		if strings.HasPrefix(kind, "sealed") {
			l.Secret = qcow2.NewSecret(l.Path)
			target.Secret = l.Secret
		}
		r.write(target, l.Path, func(n int64) (int64, []byte, bool) {
			data := make([]byte, 1<<20)
			if n%2 == 0 {
				_, _ = random.Read(data)
			}
			copy(data, l.Path)
			return (n*step + i) % 512 << 20, data, n < count
		})
		layers = append([]qcow2.Layer{l}, layers...)
	}
	return layers
}

// write makes a target of what next gives.
func (r *rounds) write(target qcow2.NewTarget, path string, next func(n int64) (int64, []byte, bool)) {
	r.Helper()
	var err error
	target.File, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	lab.OK(r, err)
	defer func() { lab.OK(r, target.File.Close()) }()
	server, err := r.tool.ServeTargets(r.Context(), []qcow2.NewTarget{target})
	lab.OK(r, err)
	conn, err := server.Dial(r.Context())
	lab.OK(r, err)
	client, err := nbd.Open(r.Context(), conn, nbd.Options{Export: server.Export(0)})
	lab.OK(r, err)
	for n := int64(0); ; n++ {
		at, data, more := next(n)
		if !more {
			break
		}
		lab.OK(r, client.WriteAt(data, at))
	}
	lab.OK(r, client.Flush())
	client.Disconnect()
	lab.OK(r, server.Finish(r.Context()))
}

func (r *rounds) full(what, kind, dir string) {
	r.Helper()
	l := r.job(what, kind, dir, "full", link{})
	if info, err := os.Stat(l.layer.Path); err == nil {
		r.stored[kind] = info.Sys().(*syscall.Stat_t).Blocks * 512
	}
	r.drop(l)
}

func (r *rounds) drop(l link) {
	r.Helper()
	lab.OK(r, r.exec.DropCheckpoint(r.Context(), kvmbackup.DomainRef{Name: r.guest.Name},
		kvmbackup.CheckpointName(l.checkpoint)))
	lab.OK(r, os.Remove(l.layer.Path))
}

// job takes one backup and measures it from PrepareJob to the end of Wait, with the flush of what was written.
func (r *rounds) job(what, kind, dir, name string, base link) link {
	r.Helper()
	r.number++
	l := link{checkpoint: fmt.Sprintf("%s-%d", name, r.number)}
	l.layer.Path = filepath.Join(dir, l.checkpoint)
	v := kvmbackup.JobVolume{
		VolumeID: "v", Device: "vda", Kind: kvmbackup.KindFull, File: l.checkpoint, VirtualSize: 512 << 20, Tracked: true,
	}
	spec := kvmbackup.JobSpec{
		ID: kvmbackup.NewBackupID(), Dir: dir, CreatedAt: time.Now(), Transfer: kvmbackup.TransferPull,
		Checkpoint: kvmbackup.CheckpointName(l.checkpoint), Base: kvmbackup.CheckpointName(base.checkpoint),
	}
	spec.Scratch = filepath.Join(os.TempDir(), "kb-"+string(spec.ID))
	if base.checkpoint != "" {
		v.Kind, v.ParentFile = kvmbackup.KindIncremental, filepath.Base(base.layer.Path)
	}
	if kind == "zstd" || kind == "sealed zstd" {
		v.Compression = kvmbackup.CompressionZstd
	}
	if kind == "sealed" || kind == "sealed zstd" {
		key := kvmbackup.NewDataKey()
		spec.DataKey, l.layer.Secret = &key, qcow2.NewSecret(key.ImageSecret(v.File))
	}
	spec.Volumes = []kvmbackup.JobVolume{v}
	syscall.Sync()
	began := time.Now()
	j, err := r.exec.PrepareJob(r.Context(), kvmbackup.DomainRef{Name: r.guest.Name}, spec)
	lab.OK(r, err)
	target, err := os.Open(l.layer.Path)
	lab.OK(r, err)
	stop := writeback.Start(target) // as the engine has it
	lab.OK(r, j.Begin(r.Context()))
	_, err = j.Wait(r.Context(), nil)
	lab.OK(r, err)
	<-stop()
	lab.OK(r, target.Close())
	r.took[what+", "+kind] = append(r.took[what+", "+kind], time.Since(began))
	lab.OK(r, j.Close(r.Context()))
	if what == "nothing" {
		r.drop(l)
	}
	return l
}

func (r *rounds) restore(kind string, layers []qcow2.Layer) {
	r.Helper()
	out := filepath.Join(r.dir, "restored")
	began := time.Now()
	lab.OK(r, r.tool.Convert(r.Context(), layers[0].Path, out, qcow2.ConvertOptions{
		Secret: layers[0].Secret, Backing: layers[1:],
	}))
	r.took["restore of ten, "+kind] = append(r.took["restore of ten, "+kind], time.Since(began))
	lab.OK(r, os.Remove(out))
}

func (r *rounds) report() {
	middle := func(values []float64) float64 { slices.Sort(values); return values[len(values)/2] }
	for _, what := range []string{"full", "full at 50 MB/s", "nothing", "restore of ten"} {
		plain := r.took[what+", plain"]
		for _, kind := range kinds {
			var ms, ratio []float64
			for i, took := range r.took[what+", "+kind] {
				ms, ratio = append(ms, float64(took)/1e6), append(ratio, float64(took)/float64(plain[i]))
			}
			if name := strings.ReplaceAll(what+","+kind, " ", "-"); len(ms) > 0 {
				r.ReportMetric(middle(ms), name+"-ms")
				r.ReportMetric(middle(ratio), name+"/plain")
			}
		}
	}
	for _, kind := range kinds {
		r.ReportMetric(float64(r.stored[kind])/float64(r.stored["plain"]), strings.ReplaceAll(kind, " ", "-")+"-stored/plain")
	}
}
