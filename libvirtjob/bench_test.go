package libvirtjob_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// bench is an executor with one guest and the backups that a test has taken of it.
type bench struct {
	*testing.T
	ctx   context.Context //nolint:containedctx // a test has one, and every helper needs it
	exec  *libvirtjob.Executor
	guest *realguest.Guest
	ref   kvmbackup.DomainRef
	dir   string // of the backups
	way   kvmbackup.Transfer
	room  string // where scratches are made

	models map[string]*realguest.Model // file in dir: what it has to hold
	last   map[string]string           // device: its newest file
}

func newBench(t *testing.T, cfg realguest.Config) *bench {
	t.Helper()
	guest := realguest.Start(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	b := &bench{
		T: t, ctx: ctx, guest: guest, ref: kvmbackup.DomainRef{Name: guest.Name, UUID: guest.UUID}, dir: t.TempDir(),
		exec: newExecutor(t), models: map[string]*realguest.Model{}, last: map[string]string{},
	}
	b.must(os.Chmod(b.dir, 0o777))
	b.room = shortDir(t)
	return b
}

// shortDir is a folder with a path that leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// both runs a test by push and by pull; a sparse one in one of these ways, by the seed and the name of the test.
func both(t *testing.T, sparse int, test func(*testing.T, kvmbackup.Transfer)) {
	t.Helper()
	t.Parallel()
	ways := []kvmbackup.Transfer{kvmbackup.TransferPush, kvmbackup.TransferPull}
	if sparse > 1 {
		ways = lab.Either(t, ways[0], ways[1])
	}
	for _, way := range ways {
		t.Run(way.String(), func(t *testing.T) { test(t, way) })
	}
}

func newExecutor(t *testing.T) *libvirtjob.Executor {
	t.Helper()
	tool, err := qcow2.New(qcow2.Config{})
	if err != nil {
		t.Fatal(err)
	}
	exec, err := libvirtjob.New(realguest.Need(t).Conn, libvirtjob.Config{
		Images: tool, ProgressInterval: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Close() })
	return exec
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// wantErr fails the test unless err is all of the sentinels.
func (b *bench) wantErr(err error, sentinels ...error) {
	b.Helper()
	for _, s := range sentinels {
		if !errors.Is(err, s) {
			b.Errorf("error is %v, want %q", err, s)
		}
	}
}

// full and incr name a volume's kind in a spec: device, and where an incremental starts from.
func full(device string) kvmbackup.JobVolume {
	return kvmbackup.JobVolume{Device: device, Kind: kvmbackup.KindFull, Tracked: true}
}

func incr(device string) kvmbackup.JobVolume {
	return kvmbackup.JobVolume{Device: device, Kind: kvmbackup.KindIncremental, Tracked: true}
}

func untracked(v kvmbackup.JobVolume) kvmbackup.JobVolume {
	v.Tracked = false
	return v
}

// spec completes the volumes of a job named after its checkpoint.
func (b *bench) spec(checkpoint, base string, volumes ...kvmbackup.JobVolume) kvmbackup.JobSpec {
	b.Helper()
	spec := kvmbackup.JobSpec{
		ID: kvmbackup.NewBackupID(), Checkpoint: kvmbackup.CheckpointName(checkpoint), Base: kvmbackup.CheckpointName(base),
		Dir: b.dir, CreatedAt: time.Now(), Transfer: b.way,
	}
	if b.way == kvmbackup.TransferPull {
		spec.Scratch = filepath.Join(b.room, string(spec.ID))
	}
	for _, v := range volumes {
		v.VolumeID = kvmbackup.VolumeID("id-" + v.Device)
		v.File = v.Device + "." + checkpoint + ".qcow2"
		v.VirtualSize = b.disk(v.Device).VirtualSize
		if v.Kind == kvmbackup.KindIncremental {
			v.ParentFile = b.last[v.Device]
		}
		spec.Volumes = append(spec.Volumes, v)
	}
	return spec
}

func (b *bench) inspect() kvmbackup.DomainStatus {
	b.Helper()
	status, err := b.exec.Inspect(b.ctx, b.ref)
	b.must(err)
	return status
}

func (b *bench) disk(device string) kvmbackup.DiskStatus {
	b.Helper()
	for _, d := range b.inspect().Disks {
		if d.Device == device {
			return d
		}
	}
	b.Fatalf("no disk %s", device)
	return kvmbackup.DiskStatus{}
}

func (b *bench) begin(spec kvmbackup.JobSpec) kvmbackup.Job {
	b.Helper()
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	b.Cleanup(func() { _ = job.Close(context.Background()) })
	b.must(job.Begin(b.ctx))
	return job
}

// backup takes a backup and keeps what each file has to hold.
func (b *bench) backup(checkpoint, base string, volumes ...kvmbackup.JobVolume) kvmbackup.JobResult {
	b.Helper()
	spec := b.spec(checkpoint, base, volumes...)
	job := b.begin(spec)
	result, err := job.Wait(b.ctx, nil)
	b.must(err)
	b.keep(spec)
	b.must(job.Close(b.ctx))
	if files := realguest.Files(b.room); len(files) > 0 {
		b.Errorf("left in the scratch: %q", files)
	}
	return result
}

// keep records the spec's files as good backups of the disks as they are now, and compares them.
func (b *bench) keep(spec kvmbackup.JobSpec) {
	b.Helper()
	for _, v := range spec.Volumes {
		b.models[v.File] = b.guest.Model(v.Device).Snapshot()
		b.last[v.Device] = v.File
	}
	b.compareAll()
}

// compareAll compares every backup so far.
func (b *bench) compareAll() {
	b.Helper()
	for file, model := range b.models {
		model.Compare(b.T, filepath.Join(b.dir, file))
	}
}

// wantBitmaps checks the bitmaps on a disk, as QEMU or the image says and as Inspect says.
func (b *bench) wantBitmaps(device string, want ...string) {
	b.Helper()
	if got := b.guest.Bitmaps(device); !slices.Equal(got, want) {
		b.Errorf("bitmaps on %s are %q, want %q", device, got, want)
	}
	b.wantBitmapState(device, want...)
}

// wantBitmapState checks what Inspect says.
func (b *bench) wantBitmapState(device string, want ...string) {
	b.Helper()
	var names []string
	for _, bitmap := range b.disk(device).Bitmaps {
		name := bitmap.Name
		if bitmap.Inconsistent {
			name += "!"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		b.Errorf("Inspect finds bitmaps %q on %s, want %q", names, device, want)
	}
}

// wantCheckpoints checks what libvirt lists.
func (b *bench) wantCheckpoints(want ...string) {
	b.Helper()
	if got := b.guest.Checkpoints(); !slices.Equal(got, want) {
		b.Errorf("checkpoints are %q, want %q", got, want)
	}
	var names []string
	for _, c := range b.inspect().Checkpoints {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		b.Errorf("Inspect finds checkpoints %q, want %q", names, want)
	}
}

// drop drops a checkpoint twice, because that is allowed.
func (b *bench) drop(name string) {
	b.Helper()
	for range 2 {
		b.must(b.exec.DropCheckpoint(b.ctx, b.ref, kvmbackup.CheckpointName(name)))
	}
}

func disks(devices ...string) []realguest.Disk {
	var out []realguest.Disk
	for _, d := range devices {
		out = append(out, realguest.Disk{Device: d})
	}
	return out
}
