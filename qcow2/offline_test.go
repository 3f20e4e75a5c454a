package qcow2_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// backUp runs a backup to its end.
func backUp(t testing.TB, tool *qcow2.Tool, b qcow2.OfflineBackup) error {
	t.Helper()
	job, err := tool.StartBackup(t.Context(), b)
	if err != nil {
		return err
	}
	err = job.Wait(t.Context(), nil)
	if closeErr := job.Close(); closeErr != nil {
		t.Error(closeErr)
	}
	return err
}

// TestOfflineBackup takes a full and an incremental backup of two disks, one of them
// raw and one on a backing file, and compares every byte.
func TestOfflineBackup(t *testing.T) {
	t.Parallel()
	tool, dir, ctx := newTool(t), t.TempDir(), t.Context()
	in := func(name string) string { return filepath.Join(dir, name) }
	create(t, tool, in("golden"), qcow2.CreateOptions{})
	write(t, in("golden"), 9, 0, 4*mib)
	create(t, tool, in("root"), qcow2.CreateOptions{BackingFile: "golden"})
	create(t, tool, in("data"), qcow2.CreateOptions{Format: qcow2.FormatRaw, SizeBytes: 8 * mib})
	if err := tool.BitmapAdd(ctx, in("root"), "c1", qcow2.BitmapAddOptions{}); err != nil {
		t.Fatal(err)
	}
	write(t, in("root"), 1, mib, mib)
	writeFormat(t, in("data"), qcow2.FormatRaw, 2, 0, mib)
	before, err := os.ReadFile(in("data"))
	if err != nil {
		t.Fatal(err)
	}

	create(t, tool, in("root.full"), qcow2.CreateOptions{})
	create(t, tool, in("data.full"), qcow2.CreateOptions{SizeBytes: 8 * mib})
	err = backUp(t, tool, qcow2.OfflineBackup{Disks: []qcow2.OfflineDisk{
		{Device: "vda", Source: in("root"), Target: in("root.full")},
		{Device: "vdb", Source: in("data"), SourceFormat: qcow2.FormatRaw, Target: in("data.full")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := tool.Compare(ctx, in("root"), in("root.full"), qcow2.CompareOptions{}); err != nil {
		t.Error(err)
	}
	if string(content(t, tool, in("data.full"), qcow2.FormatQcow2)) != string(before) {
		t.Error("raw disk: contents differ")
	}

	if err := tool.BitmapClear(ctx, in("root"), "c1"); err != nil {
		t.Fatal(err)
	}
	write(t, in("root"), 3, 6*mib, 64<<10)
	create(t, tool, in("root.inc"), qcow2.CreateOptions{BackingFile: "root.full"})
	var last []qcow2.DiskProgress
	job, err := tool.StartBackup(ctx, qcow2.OfflineBackup{Disks: []qcow2.OfflineDisk{
		{Device: "vda", Source: in("root"), Target: in("root.inc"), Bitmap: "c1"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := job.Wait(ctx, func(p []qcow2.DiskProgress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(job.Wait(ctx, nil), job.Close(), job.Close(), job.Abort(ctx), job.SetBandwidth(ctx, 1)); err != nil {
		t.Errorf("after the end: %v", err)
	}
	if len(last) != 1 || last[0] != (qcow2.DiskProgress{Device: "vda", DoneBytes: 64 << 10, TotalBytes: 64 << 10}) {
		t.Errorf("progress %+v", last)
	}
	if err := tool.Compare(ctx, in("root"), in("root.inc"), qcow2.CompareOptions{}); err != nil {
		t.Error(err)
	}
	// Neither the bitmap nor the link was touched.
	if n, err := tool.DirtyBytes(ctx, in("root"), "c1"); err != nil || n != 64<<10 {
		t.Errorf("dirty afterwards: %d, %v", n, err)
	}
	if _, err := qcow2.VerifyLink(in("root.inc"), qcow2.Expect{BackingFile: "root.full"}); err != nil {
		t.Error(err)
	}
}

// disk makes a source full of data, with a bitmap, and a target.
func disk(t testing.TB, tool *qcow2.Tool, dir, device string) qcow2.OfflineDisk {
	t.Helper()
	d := qcow2.OfflineDisk{Device: device, Source: filepath.Join(dir, device), Target: filepath.Join(dir, device+".target")}
	create(t, tool, d.Source, qcow2.CreateOptions{})
	create(t, tool, d.Target, qcow2.CreateOptions{})
	if err := tool.BitmapAdd(t.Context(), d.Source, "b", qcow2.BitmapAddOptions{}); err != nil {
		t.Fatal(err)
	}
	write(t, d.Source, 7, 0, 16*mib)
	return d
}

// slowBackup starts a backup that would take an hour.
func slowBackup(t testing.TB, tool *qcow2.Tool, disks ...qcow2.OfflineDisk) *qcow2.OfflineJob {
	t.Helper()
	job, err := tool.StartBackup(t.Context(), qcow2.OfflineBackup{Disks: disks, BandwidthBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := job.Close(); err != nil {
			t.Error(err)
		}
	})
	return job
}

// TestOfflineBackupLocks checks that a VM can't start while a backup runs, and the
// other way round.
func TestOfflineBackupLocks(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	d := disk(t, tool, dir, "vda")
	raw := filepath.Join(dir, "raw")
	create(t, tool, raw, qcow2.CreateOptions{Format: qcow2.FormatRaw})
	writeFormat(t, raw, qcow2.FormatRaw, 1, 0, 16*mib)
	rawDisk := qcow2.OfflineDisk{Device: "vdb", Source: raw, SourceFormat: qcow2.FormatRaw, Target: filepath.Join(dir, "raw.target")}
	create(t, tool, rawDisk.Target, qcow2.CreateOptions{})

	for _, locked := range []struct {
		path   string
		format qcow2.Format
	}{{d.Source, qcow2.FormatQcow2}, {raw, qcow2.FormatRaw}, {d.Target, qcow2.FormatQcow2}} {
		release := openForWriting(t, locked.path, locked.format)
		err := backUp(t, tool, qcow2.OfflineBackup{Disks: []qcow2.OfflineDisk{d, rawDisk}})
		if !errors.Is(err, qcow2.ErrLocked) {
			t.Errorf("%s open: got %v, want ErrLocked", filepath.Base(locked.path), err)
		}
		release()
	}

	job := slowBackup(t, tool, d, rawDisk)
	for _, locked := range []struct{ path, format string }{{d.Source, "qcow2"}, {raw, "raw"}} {
		out, err := run("qemu-io", "-f", locked.format, "-c", "write 0 512", locked.path)
		if err == nil || !strings.Contains(out, "lock") {
			t.Errorf("%s could be written during the backup: %v %s", filepath.Base(locked.path), err, out)
		}
	}
	if err := job.SetBandwidth(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if err := job.Wait(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if err := tool.Compare(t.Context(), raw, rawDisk.Target, qcow2.CompareOptions{FormatA: qcow2.FormatRaw}); err != nil {
		t.Error(err)
	}
}

func TestOfflineBackupEndsEarly(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	disks := []qcow2.OfflineDisk{disk(t, tool, dir, "vda"), disk(t, tool, dir, "vdb")}
	reason := errors.New("lease lost")
	for name, c := range map[string]struct {
		end  func(*qcow2.OfflineJob, context.CancelCauseFunc) error
		want error
	}{
		"cancel": {func(_ *qcow2.OfflineJob, cancel context.CancelCauseFunc) error { cancel(reason); return nil }, reason},
		"abort":  {func(j *qcow2.OfflineJob, _ context.CancelCauseFunc) error { return j.Abort(t.Context()) }, qcow2.ErrAborted},
		"close":  {func(j *qcow2.OfflineJob, _ context.CancelCauseFunc) error { return j.Close() }, qcow2.ErrAborted},
	} {
		job := slowBackup(t, tool, disks...)
		ctx, cancel := context.WithCancelCause(t.Context())
		begun, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			first := true
			ended <- job.Wait(ctx, func([]qcow2.DiskProgress) {
				if first {
					close(begun)
				}
				first = false
			})
		}()
		<-begun
		if err := c.end(job, cancel); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		err := <-ended
		if !errors.Is(err, c.want) || errors.Is(err, qcow2.ErrHung) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		cancel(nil)
		// The daemon is gone: the images can be had at once.
		for _, d := range disks {
			write(t, d.Source, 1, 0, 512)
			write(t, d.Target, 1, 0, 512)
		}
	}
}

// A limit is on what is written: the holes of a thin disk pass. At QEMU's own measure this takes an hour.
func TestOfflineBackupHolesPassALimit(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	const size, data, limit = 64 << 30, 64 * mib, 16 * mib
	source, target := filepath.Join(dir, "thin"), filepath.Join(dir, "full")
	for _, path := range []string{source, target} {
		create(t, tool, path, qcow2.CreateOptions{SizeBytes: size})
	}
	write(t, source, 1, size-data, data)
	began := time.Now()
	err := backUp(t, tool, qcow2.OfflineBackup{BandwidthBytes: limit, Disks: []qcow2.OfflineDisk{{Device: "vda", Source: source, Target: target}}})
	if took := time.Since(began); err != nil || took > 3*time.Minute || took < time.Second {
		t.Fatalf("%v after %v", err, took)
	}
	if err := tool.Compare(t.Context(), source, target, qcow2.CompareOptions{}); err != nil {
		t.Error(err)
	}
}

func TestOfflineBackupOutOfSpace(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	small := newToolWith(t, qcow2.Config{StorageDaemon: script(t, `ulimit -f 8000; exec qemu-storage-daemon "$@"`)})
	bad, good := disk(t, tool, dir, "vda"), disk(t, tool, dir, "vdb")
	// The good one is small enough, but in a group it must go down with the other.
	good.Bitmap = "b"
	if err := tool.BitmapClear(t.Context(), good.Source, "b"); err != nil {
		t.Fatal(err)
	}
	write(t, good.Source, 8, 0, 64<<10)
	err := backUp(t, small, qcow2.OfflineBackup{Disks: []qcow2.OfflineDisk{bad, good}})
	if !errors.Is(err, qcow2.ErrNoSpace) || !strings.Contains(err.Error(), `"vda"`) || strings.Contains(err.Error(), `"vdb"`) {
		t.Errorf("got %v, want ErrNoSpace for vda alone", err)
	}
	if err := backUp(t, tool, qcow2.OfflineBackup{Disks: []qcow2.OfflineDisk{bad, good}}); err != nil {
		t.Errorf("with space: %v", err)
	}
}

func TestOfflineBackupErrors(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	good := disk(t, tool, dir, "vda")
	with := func(edit func(*qcow2.OfflineDisk)) qcow2.OfflineBackup {
		d := good
		edit(&d)
		return qcow2.OfflineBackup{Disks: []qcow2.OfflineDisk{d}}
	}
	larger := filepath.Join(dir, "larger")
	create(t, tool, larger, qcow2.CreateOptions{SizeBytes: 32 * mib})
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		backup qcow2.OfflineBackup
		want   error
	}{
		"no disks":         {qcow2.OfflineBackup{}, qcow2.ErrInvalidOption},
		"device twice":     {qcow2.OfflineBackup{Disks: []qcow2.OfflineDisk{good, good}}, qcow2.ErrInvalidOption},
		"bandwidth":        {qcow2.OfflineBackup{Disks: []qcow2.OfflineDisk{good}, BandwidthBytes: -1}, qcow2.ErrInvalidOption},
		"guess":            {with(func(d *qcow2.OfflineDisk) { d.SourceFormat = qcow2.FormatAuto }), qcow2.ErrInvalidOption},
		"bitmap of raw":    {with(func(d *qcow2.OfflineDisk) { d.SourceFormat, d.Bitmap = qcow2.FormatRaw, "b" }), qcow2.ErrBitmapUnsupported},
		"unknown bitmap":   {with(func(d *qcow2.OfflineDisk) { d.Bitmap = "x'" }), qcow2.ErrBitmapNotFound},
		"missing source":   {with(func(d *qcow2.OfflineDisk) { d.Source += "x" }), qcow2.ErrNotFound},
		"missing target":   {with(func(d *qcow2.OfflineDisk) { d.Target += "x" }), qcow2.ErrNotFound},
		"directory":        {with(func(d *qcow2.OfflineDisk) { d.Source = dir }), qcow2.ErrNotRegular},
		"text as target":   {with(func(d *qcow2.OfflineDisk) { d.Target = text }), qcow2.ErrFormat},
		"other size":       {with(func(d *qcow2.OfflineDisk) { d.Target = larger }), qcow2.ErrSizeMismatch},
		"source is target": {with(func(d *qcow2.OfflineDisk) { d.Target = d.Source }), qcow2.ErrLocked},
	} {
		if _, err := tool.StartBackup(t.Context(), c.backup); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	dying := newToolWith(t, qcow2.Config{StorageDaemon: script(t, "echo cannot start >&2; exit 3")})
	_, err := dying.StartBackup(t.Context(), with(func(*qcow2.OfflineDisk) {}))
	var failed *qcow2.ToolError
	if !errors.As(err, &failed) || failed.ExitCode != 3 || failed.Stderr != "cannot start" {
		t.Errorf("dying daemon: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tool.StartBackup(ctx, with(func(*qcow2.OfflineDisk) {})); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: got %v", err)
	}
}
