package qcow2_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

func TestTimeLimit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tool := newToolWith(t, qcow2.Config{
		QemuImg:        script(t, "sleep 1000 & echo $! >"+dir+"/pid; wait"),
		InspectTimeout: 2 * time.Second, // the script has to get as far as its child
		Unconfined:     true,            // it writes the child's number
	})
	_, err := tool.Info(t.Context(), "/x", qcow2.InfoOptions{})
	if !errors.Is(err, qcow2.ErrTimeout) || errors.Is(err, qcow2.ErrHung) {
		t.Errorf("got %v, want ErrTimeout", err)
	}
	// The script's own child has to go too.
	pid, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, "the group is killed", func() bool {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// TestLimits: no limit has a name, and a negative one is refused.
func TestLimits(t *testing.T) {
	t.Parallel()
	img := script(t, "echo qemu-img version 1.2.3")
	for _, cfg := range []qcow2.Config{{MaxOutputBytes: -1}, {MemoryLimitBytes: -1}, {InspectTimeout: -1},
		{StallTimeout: -1}, {KillGrace: -1}} {
		cfg.QemuImg = img
		if _, err := qcow2.New(cfg); !errors.Is(err, qcow2.ErrInvalidOption) {
			t.Errorf("%+v: got %v, want ErrInvalidOption", cfg, err)
		}
	}
	tool := newToolWith(t, qcow2.Config{QemuImg: img, MemoryLimitBytes: qcow2.NoLimit, InspectTimeout: qcow2.NoLimit})
	if version, err := tool.Version(t.Context()); err != nil || version != "1.2.3" {
		t.Errorf("without limits: %q, %v", version, err)
	}
	for name, err := range map[string]error{
		"check":   second(tool.Check(t.Context(), img, qcow2.CheckOptions{Timeout: -1})),
		"map":     second(tool.Map(t.Context(), img, qcow2.MapOptions{Timeout: -1})),
		"measure": second(tool.Measure(t.Context(), img, qcow2.MeasureOptions{Timeout: -1})),
	} {
		if !errors.Is(err, qcow2.ErrInvalidOption) {
			t.Errorf("%s: got %v, want ErrInvalidOption", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestLeftoverChildIsKilled(t *testing.T) {
	t.Parallel()
	tool := newToolWith(t, qcow2.Config{
		QemuImg: script(t, "sleep 1000 & echo qemu-img version 1.2.3"), KillGrace: time.Minute,
	})
	began := time.Now()
	version, err := tool.Version(t.Context())
	if err != nil || version != "1.2.3" || time.Since(began) >= time.Minute {
		t.Errorf("got %q, %v after %s", version, err, time.Since(began))
	}
}

func TestOutputLimit(t *testing.T) {
	t.Parallel()
	tool := newToolWith(t, qcow2.Config{QemuImg: script(t, "exec yes"), MaxOutputBytes: 1 << 16})
	if _, err := tool.Info(t.Context(), "/x", qcow2.InfoOptions{}); !errors.Is(err, qcow2.ErrOutputTooLarge) {
		t.Errorf("got %v, want ErrOutputTooLarge", err)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	t.Parallel()
	tool := newToolWith(t, qcow2.Config{
		QemuImg: script(t, "yes | head -c 1000000 >&2; echo No space left on device >&2; exit 1"),
	})
	_, err := tool.Info(t.Context(), "/x", qcow2.InfoOptions{})
	var failed *qcow2.ToolError
	if !errors.Is(err, qcow2.ErrNoSpace) || !errors.As(err, &failed) || len(failed.Stderr) > 32<<10 {
		t.Errorf("got %.200v, want ErrNoSpace with bounded messages", err)
	}
	if text := err.Error(); len(text) > 4<<10 || !strings.HasSuffix(text, "\nNo space left on device") {
		t.Errorf("the error's text has %d bytes: %.4096s", len(text), text)
	}
}

func TestLongLinesAreShortened(t *testing.T) {
	t.Parallel()
	tool := newToolWith(t, qcow2.Config{
		QemuImg: script(t, "echo first >&2; yes é | tr -d '\\n' | head -c 20000 >&2; exit 1"),
	})
	_, err := tool.Info(t.Context(), "/x", qcow2.InfoOptions{})
	if text := err.Error(); len(text) > 2<<10 || !strings.Contains(text, "first\n") || !utf8.ValidString(text) {
		t.Errorf("the error's text has %d bytes: %.4096s", len(text), text)
	}
}

func TestGarbageOutput(t *testing.T) {
	t.Parallel()
	tool := newToolWith(t, qcow2.Config{QemuImg: script(t, "echo '[1,'"), StorageDaemon: script(t, "echo hello; cat")})
	if _, err := tool.Info(t.Context(), "/x", qcow2.InfoOptions{}); !errors.Is(err, qcow2.ErrProtocol) {
		t.Errorf("info: got %v, want ErrProtocol", err)
	}
	path := filepath.Join(t.TempDir(), "i")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tool.DirtyBytes(t.Context(), path, "b"); !errors.Is(err, qcow2.ErrProtocol) {
		t.Errorf("storage daemon: got %v, want ErrProtocol", err)
	}
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	body := `[ "$1" = convert ] || until [ "$(ulimit -v)" != unlimited ]; do :; done; ulimit -v >&2; exit 1`
	tool := newToolWith(t, qcow2.Config{QemuImg: script(t, body), MemoryLimitBytes: 1 << 30})
	var failed *qcow2.ToolError
	if _, err := tool.Info(t.Context(), "/x", qcow2.InfoOptions{}); !errors.As(err, &failed) ||
		failed.Stderr != "1114112" {
		t.Errorf("got %v, want a limit of 1114112 KiB: 1 GiB, and 64 MiB for the image", err)
	}
	err := tool.Convert(t.Context(), "/x", filepath.Join(t.TempDir(), "o"), qcow2.ConvertOptions{})
	if !errors.As(err, &failed) || failed.Stderr != "unlimited" {
		t.Errorf("got %v, want no limit", err)
	}
}

// TestMemoryRunsOut: what a chain needs whose disks are large is there, and who needs more is told what was missing.
func TestMemoryRunsOut(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	var chain []qcow2.Layer
	const layers, large = 48, 512 << 30 // a larger disk has no larger caches
	for i := range layers {
		path := filepath.Join(dir, fmt.Sprint(i))
		create(t, tool, path, qcow2.CreateOptions{SizeBytes: large})
		chain = append([]qcow2.Layer{{Path: path}}, chain...)
	}
	top, below := chain[0].Path, chain[1:]
	small := newToolWith(t, qcow2.Config{MemoryLimitBytes: 1}) // and 64 MiB for each image
	tight := newToolWith(t, qcow2.Config{MemoryLimitBytes: 512 << 20})
	for _, c := range []struct {
		tool  *qcow2.Tool
		below []qcow2.Layer
		want  error
	}{{small, nil, qcow2.ErrMemory}, {tight, below, nil}} {
		alone := append([]qcow2.Layer{}, c.below...)
		_, mapped := c.tool.Map(t.Context(), top, qcow2.MapOptions{Backing: alone})
		socket := filepath.Join(t.TempDir(), "s")
		server, serve := c.tool.ServeNBD(t.Context(), qcow2.NBDOptions{
			Path: top, Backing: alone, Socket: socket, ReadOnly: true,
		})
		if serve == nil {
			serve = server.Close()
		}
		to := filepath.Join(t.TempDir(), "copy")
		convert := c.tool.Convert(t.Context(), top, to, qcow2.ConvertOptions{Backing: alone})
		for what, err := range map[string]error{"map": mapped, "serve": serve, "convert": convert} {
			if !errors.Is(err, c.want) {
				t.Errorf("%s of %d images: %v, want %v", what, 1+len(c.below), err, c.want)
			}
		}
	}
}

// TestHostDies kills a process that has a copy running: the copy must not go on.
func TestHostDies(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	_, _, top := chain(t, tool, dir)
	host := exec.CommandContext(t.Context(), os.Args[0])
	host.Env = append(os.Environ(), "KVMBACKUP_TEST_CONVERT="+top)
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "running\n" {
		t.Fatalf("host says %q, %v", line, err)
	}
	if processesWith(t, top+".copy") == 0 {
		t.Error("no copy runs")
	}
	if err := host.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := host.Wait(); err == nil {
		t.Error("host ended well")
	}
	lab.Eventually(t, "the copy ends", func() bool { return processesWith(t, top+".copy") == 0 })
}

// TestHungProcess freezes the file system under a copy, which then can't be killed.
func TestHungProcess(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	tool := newToolWith(t, qcow2.Config{
		KillGrace: 100 * time.Millisecond,
		Logger:    slog.New(slog.NewTextHandler(&log, nil)),
	})
	dir := t.TempDir()
	_, _, top := chain(t, tool, dir)
	mount, thaw := frozenFileSystem(t)
	dst := filepath.Join(mount, "dst")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := tool.Convert(ctx, top, dst, qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw, TargetExists: true})
	if !errors.Is(err, qcow2.ErrHung) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want ErrHung", err)
	}
	impatient := newToolWith(t, qcow2.Config{KillGrace: 100 * time.Millisecond, StallTimeout: 300 * time.Millisecond})
	err = impatient.Convert(t.Context(), top, dst, qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw, TargetExists: true})
	if !errors.Is(err, qcow2.ErrHung) || !errors.Is(err, qcow2.ErrTimeout) {
		t.Errorf("without a deadline: %v, want ErrTimeout and ErrHung", err)
	}
	// A file that can't be created blocks in this process instead.
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	late := filepath.Join(mount, "late")
	if err := tool.Create(ctx, late, qcow2.CreateOptions{SizeBytes: mib}); !errors.Is(err, qcow2.ErrHung) {
		t.Errorf("create: got %v, want ErrHung", err)
	}
	thaw()
	lab.Eventually(t, "the process is reaped", func() bool { return processesWith(t, dst) == 0 })
	lab.Eventually(t, "the late file is taken back", func() bool {
		return strings.Contains(log.String(), "file operation that hung has ended")
	})
	if _, err := os.Lstat(late); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the late file is there: %v", err)
	}
}

// syncBuffer is a buffer for concurrent use.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// frozenFileSystem returns a mounted file system with a file "dst" of 16 MiB, on which
// every write blocks until thaw.
func frozenFileSystem(t *testing.T) (mount string, thaw func()) {
	t.Helper()
	lab.NeedRoot(t)
	lab.Need(t, "mkfs.ext4", "fsfreeze", "losetup")
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "fs"), filepath.Join(dir, "mnt")
	must := func(name string, args ...string) {
		t.Helper()
		if out, err := run(name, args...); err != nil {
			lab.Missing(t, fmt.Sprintf("no loop device here: %s: %v: %s", name, err, out))
		}
	}
	must("truncate", "-s", "64M", image)
	must("mkfs.ext4", "-q", "-F", image)
	must("mkdir", mount)
	must("mount", "-o", "loop", image, mount)
	t.Cleanup(func() { // what was killed, or is being started, may have files open there for a moment
		lab.Eventually(t, "the file system is unmounted", func() bool { _, err := run("umount", mount); return err == nil })
	})
	must("truncate", "-s", "16M", filepath.Join(mount, "dst"))
	must("fsfreeze", "-f", mount)
	frozen := true
	thaw = func() {
		if frozen {
			frozen = false
			if out, err := run("fsfreeze", "-u", mount); err != nil {
				t.Error(err, out)
			}
		}
	}
	t.Cleanup(thaw)
	return mount, thaw
}

// TestStandsStill: a tool that moves nothing is ended, whatever it is that has no time limit otherwise, and one that
// works on slowly is not.
func TestStandsStill(t *testing.T) {
	t.Parallel()
	const still = 300 * time.Millisecond
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	create(t, newTool(t), image, qcow2.CreateOptions{})
	hangs := newToolWith(t, qcow2.Config{QemuImg: script(t, "sleep 1000"), StallTimeout: still})
	alone := []qcow2.Layer{}
	for name, call := range map[string]func() error{
		"convert": func() error {
			return hangs.Convert(t.Context(), image, filepath.Join(dir, "copy"), qcow2.ConvertOptions{Backing: alone})
		},
		"convert by its links": func() error {
			return hangs.Convert(t.Context(), image, filepath.Join(dir, "copy"), qcow2.ConvertOptions{})
		},
		"compare": func() error { return hangs.Compare(t.Context(), image, image, qcow2.CompareOptions{}) },
		"check": func() error {
			return second(hangs.Check(t.Context(), image, qcow2.CheckOptions{Timeout: qcow2.NoLimit}))
		},
		"map": func() error { return second(hangs.Map(t.Context(), image, qcow2.MapOptions{Timeout: qcow2.NoLimit})) },
		"measure": func() error {
			return second(hangs.Measure(t.Context(), image, qcow2.MeasureOptions{Timeout: qcow2.NoLimit}))
		},
	} {
		if err := call(); !errors.Is(err, qcow2.ErrTimeout) || errors.Is(err, qcow2.ErrHung) {
			t.Errorf("%s: %v, want %v", name, err, qcow2.ErrTimeout)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "copy")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the copy is there: %v", err)
	}
	const steady = `i=0; while [ $i -lt 20 ]; do echo "    ($i.00/100%)"; sleep 0.1; i=$((i+1)); done`
	works := newToolWith(t, qcow2.Config{QemuImg: script(t, steady), StallTimeout: time.Second})
	last := 0.0
	err := works.Convert(t.Context(), image, filepath.Join(dir, "raw"), qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw,
		Progress: func(percent float64) { last = percent }})
	if err != nil || last != 19 {
		t.Errorf("a slow copy: %v at %v", err, last)
	}
}

// TestServerStandsStill stops the server that a digest is read through: in the middle, as storage does that no longer
// answers.
func TestServerStandsStill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	create(t, newTool(t), image, qcow2.CreateOptions{SizeBytes: 128 * mib})
	write(t, image, 1, 0, 128*mib)
	stops := script(t,
		`qemu-nbd "$@" & until read -r _ n </proc/$!/io && [ $n -gt 20000000 ]; do :; done; kill -STOP $!; wait`)
	tool := newToolWith(t, qcow2.Config{
		QemuNBD: stops, Unconfined: true, StallTimeout: 300 * time.Millisecond, InspectTimeout: 3 * time.Second,
	})
	if _, err := tool.Digest(t.Context(), image, nil); !errors.Is(err, qcow2.ErrTimeout) {
		t.Errorf("got %v, want %v", err, qcow2.ErrTimeout)
	}
}

// TestOutputOfAnyKindIsBounded: a tool that prints for ever is ended, wherever it prints.
func TestOutputOfAnyKindIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	create(t, newTool(t), image, qcow2.CreateOptions{})
	talks := func(what string) qcow2.Config {
		return qcow2.Config{
			QemuImg: script(t, what), QemuNBD: script(t, what), StorageDaemon: script(t, what), MaxOutputBytes: 1 << 16,
		}
	}
	progress := qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw, Progress: func(float64) {}}
	for name, body := range map[string]string{"messages": "exec yes >&2", "progress": "exec yes '(1.00/100%)'"} {
		tool := newToolWith(t, talks(body))
		err := tool.Convert(t.Context(), image, filepath.Join(dir, "copy"), progress)
		if !errors.Is(err, qcow2.ErrOutputTooLarge) {
			t.Errorf("convert, %s: %v, want %v", name, err, qcow2.ErrOutputTooLarge)
		}
	}
	tool := newToolWith(t, talks("yes >&2"))
	_, check := tool.Check(t.Context(), image, qcow2.CheckOptions{})
	_, digest := tool.Digest(t.Context(), image, nil)
	_, serve := tool.ServeNBD(t.Context(), qcow2.NBDOptions{Path: image, Socket: filepath.Join(dir, "s")})
	_, count := tool.DirtyBytes(t.Context(), image, "b")
	for name, err := range map[string]error{"check": check, "digest": digest, "serve": serve, "storage daemon": count} {
		if !errors.Is(err, qcow2.ErrOutputTooLarge) {
			t.Errorf("%s: %v, want %v", name, err, qcow2.ErrOutputTooLarge)
		}
	}
}
