package copier_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

const mib = 1 << 20

// bench has disks and copies them.
type bench struct {
	testing.TB
	tool   *qcow2.Tool
	dir    string
	silent bool // the sources answer no request
}

func newBench(t testing.TB) *bench {
	t.Helper()
	lab.Need(t, "qemu-img", "qemu-storage-daemon", "qemu-io")
	tool, err := qcow2.New(qcow2.Config{})
	lab.OK(t, err)
	return &bench{TB: t, tool: tool, dir: t.TempDir()}
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) run(name string, args ...string) string {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), name, args...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "failed") {
		b.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// image makes a source with a bitmap "b", to which then is done what qemu-io's commands say.
func (b *bench) image(name string, size int64, commands ...string) qcow2.Source {
	b.Helper()
	s := qcow2.Source{Path: b.path(name), Backing: []qcow2.Layer{}}
	lab.OK(b, b.tool.Create(b.Context(), s.Path, qcow2.CreateOptions{SizeBytes: size}))
	b.io(s, commands...)
	return s
}

func (b *bench) io(s qcow2.Source, commands ...string) {
	b.Helper()
	for _, c := range commands {
		b.run("qemu-io", "-f", "qcow2", "-c", c, s.Path)
	}
}

func (b *bench) track(s qcow2.Source, bitmap string) {
	b.Helper()
	lab.OK(b, b.tool.BitmapAdd(b.Context(), s.Path, bitmap, qcow2.BitmapAddOptions{}))
}

// pair is a copy with its two daemons.
type pair struct {
	*copier.Copy
	sources *qcow2.SourceServer
	targets *qcow2.TargetServer
}

// connect makes targets named after the sources, and connects.
func (b *bench) connect(bandwidth int64, backing string, sources ...qcow2.Source) *pair {
	b.Helper()
	return b.connectWith(copier.Disk{}, bandwidth, backing, sources...)
}

// connectWith has what is common to the disks.
func (b *bench) connectWith(common copier.Disk, bandwidth int64, backing string, sources ...qcow2.Source) *pair {
	b.Helper()
	from, err := b.tool.ServeSources(b.Context(), sources)
	lab.OK(b, err)
	b.Cleanup(func() { lab.OK(b, from.Close(time.Second)) })
	dial := from.Dial
	if b.silent {
		dial = silent(dial)
	}
	var made []qcow2.NewTarget
	var disks []copier.Disk
	for _, s := range sources {
		f, err := os.OpenFile(s.Path+".target", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
		lab.OK(b, err)
		b.Cleanup(func() { _ = f.Close() })
		size := b.size(s)
		made = append(made, qcow2.NewTarget{File: f, SizeBytes: size, BackingFile: backing})
	}
	to, err := b.tool.ServeTargets(b.Context(), made)
	lab.OK(b, err)
	b.Cleanup(func() { _ = to.Close(time.Second) })
	for i, s := range sources {
		disks = append(disks, copier.Disk{
			Name: filepath.Base(s.Path), Bitmap: s.Bitmap,
			Source: copier.End{Dial: dial, Export: from.Export(i)}, Target: copier.End{Dial: to.Dial, Export: to.Export(i)},
			Parent: common.Parent, Index: common.Index, Alone: common.Alone, Sums: common.Sums,
		})
	}
	c, err := copier.Connect(b.Context(), disks, bandwidth)
	lab.OK(b, err)
	b.Cleanup(c.Close)
	lab.OK(b, from.Hide())
	lab.OK(b, to.Hide())
	return &pair{c, from, to}
}

func (b *bench) size(s qcow2.Source) int64 {
	b.Helper()
	info, err := b.tool.Info(b.Context(), s.Path, qcow2.InfoOptions{Format: s.Format})
	lab.OK(b, err)
	return info.VirtualSizeBytes
}

func (b *bench) finish(p *pair) {
	b.Helper()
	lab.OK(b, p.Run(b.Context()))
	lab.OK(b, p.sources.Close(time.Second))
	lab.OK(b, p.Flush(b.Context()))
	lab.OK(b, p.targets.Finish(b.Context()))
}

func (b *bench) same(s qcow2.Source, target string) {
	b.Helper()
	lab.OK(b, b.tool.Compare(b.Context(), s.Path, target, qcow2.CompareOptions{FormatA: s.Format}))
	b.run("qemu-img", "check", "-q", target)
}

// held is how many bytes of clusters an image has itself, of data and of zeroes.
func (b *bench) held(path string) (data, zero int64) {
	b.Helper()
	extents, err := b.tool.Map(b.Context(), path, qcow2.MapOptions{Backing: []qcow2.Layer{}})
	lab.OK(b, err)
	for _, x := range extents {
		switch {
		case x.Data:
			data += x.LengthBytes
		case x.Present:
			zero += x.LengthBytes
		}
	}
	return data, zero
}

func TestFullThenIncremental(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const size = 64*mib + 512
	s := b.image("a", size, "write -P 1 0 8M", "write -P 2 10M 4k", "write -P 0 20M 1M", "write -z 30M 1M",
		"write -P 3 67108864 512")
	b.finish(b.connect(0, "", s))
	b.same(s, b.path("a.target"))
	data, zero := b.held(b.path("a.target"))
	lab.Equal(t, "data of the full", data, 8*mib+64<<10+512)
	lab.Equal(t, "zeroes of the full", zero, 0)

	lab.OK(t, os.Rename(b.path("a.target"), b.path("full")))
	b.track(s, "b")
	b.io(s, "write -z 0 3M", "discard 4M 1M", "write -P 4 5M 100", "write -P 0 7M 64k", "write -P 5 40M 5M",
		"write -P 6 67108864 512")
	s.Bitmap = "b"
	p := b.connect(0, "full", s)
	b.finish(p)
	b.same(s, b.path("a.target"))
	data, zero = b.held(b.path("a.target"))
	lab.Equal(t, "data of the incremental", data, 5*mib+64<<10+512)
	lab.Equal(t, "zeroes of the incremental", zero, 4*mib+64<<10)
	lab.Equal(t, "progress", p.Progress()[0], copier.Progress{
		DoneBytes: 9*mib + 128<<10 + 512, TotalBytes: 9*mib + 128<<10 + 512,
	})
}

// A thin disk takes what it holds: neither time nor tables for its holes.
func TestThinDisk(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const size = 16 << 40
	s := b.image("thin", size, "write -P 1 0 32M", fmt.Sprintf("write -P 2 %d 32M", int64(size-32*mib)))
	began := time.Now()
	b.finish(b.connect(0, "", s))
	took := time.Since(began)
	t.Logf("a full of 64 MiB on a disk of 16 TiB took %v", took)
	var stored syscall.Stat_t
	lab.OK(t, syscall.Stat(b.path("thin.target"), &stored))
	if took > time.Minute || stored.Blocks*512 > 70*mib {
		t.Errorf("it took %v and has %d bytes", took, stored.Blocks*512)
	}
}

// Several disks, raw ones with pieces of data smaller than a cluster too, come out as they are.
func TestSeveralDisks(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	raw := qcow2.Source{Path: b.path("raw"), Format: qcow2.FormatRaw}
	f, err := os.Create(raw.Path)
	lab.OK(t, err)
	for i := range 2000 {
		_, err := f.WriteAt([]byte{byte(i)}, int64(i)*13*4096)
		lab.OK(t, err)
	}
	lab.OK(t, f.Truncate(128*mib))
	lab.OK(t, f.Close())
	sources := []qcow2.Source{raw}
	for i := range 5 {
		sources = append(sources, b.image(fmt.Sprint("d", i), 32*mib, "write -P 7 0 20M"))
	}
	b.finish(b.connect(0, "", sources...))
	for _, s := range sources {
		b.same(s, s.Path+".target")
	}
}

func TestBandwidth(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	s := b.image("a", 1<<40, "write -P 1 0 16M", "write -P 2 500G 16M")
	began := time.Now()
	b.finish(b.connect(16*mib, "", s))
	if took := time.Since(began); took < 1900*time.Millisecond || took > 20*time.Second {
		t.Errorf("32 MiB at 16 MiB/s took %v: holes are to pass", took)
	}
	p := b.connect(64<<10, "", s) // it would take 8 minutes
	ended := make(chan error)
	go func() { ended <- p.Run(t.Context()) }()
	lab.OK(t, p.SetBandwidth(0))
	lab.OK(t, <-ended)
	lab.Fails(t, p.SetBandwidth(-1), qcow2.ErrInvalidOption)
}

// A cancel is answered at once, also while a server doesn't answer.
func TestCancel(t *testing.T) {
	t.Parallel()
	for _, stopped := range []string{"none", "source", "target"} {
		t.Run(stopped, func(t *testing.T) {
			b := newBench(t)
			s := b.image("a", 64*mib, "write -P 1 0 64M")
			p := b.connect(mib, "", s)
			pids := map[string]int{"source": p.sources.PID(), "target": p.targets.PID()}
			if pid, ok := pids[stopped]; ok {
				lab.OK(t, syscall.Kill(pid, syscall.SIGSTOP))
			}
			reason := errors.New("lease lost")
			ctx, cancel := context.WithCancelCause(t.Context())
			ended := make(chan error)
			go func() { ended <- p.Run(ctx) }()
			<-time.After(50 * time.Millisecond) // mostly in mid-flight
			began := time.Now()
			cancel(reason)
			lab.Fails(t, <-ended, reason)
			if took := time.Since(began); took > time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestSilentSource: a source that negotiates and then answers no request keeps Connect waiting for nothing, and Run no
// longer than its context.
func TestSilentSource(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.silent = true
	p := b.connect(0, "", b.image("a", mib))
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	cancel(errStop)
	lab.Fails(t, <-ended, errStop)
}

var errStop = errors.New("stop")

// silent dials connections on which no request gets to the server.
func silent(dial func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		return requestless{conn}, err
	}
}

type requestless struct{ net.Conn }

func (c requestless) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte{0x25, 0x60, 0x95, 0x13}) { // as a request begins
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// A server that dies is an error, whichever it is.
func TestServerDies(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"source", "target"} {
		t.Run(which, func(t *testing.T) {
			b := newBench(t)
			s := b.image("a", 64*mib, "write -P 1 0 64M")
			p := b.connect(mib, "", s)
			pid := map[string]int{"source": p.sources.PID(), "target": p.targets.PID()}[which]
			ended := make(chan error)
			go func() { ended <- p.Run(t.Context()) }()
			lab.OK(t, syscall.Kill(pid, syscall.SIGKILL))
			err := <-ended
			if err == nil || !strings.Contains(err.Error(), which) {
				t.Errorf("error is %v", err)
			}
			var tool *qcow2.ToolError
			if !errors.As(errors.Join(p.sources.Explain(err), p.targets.Explain(err)), &tool) {
				t.Error("nobody says how the daemon ended")
			}
		})
	}
}
