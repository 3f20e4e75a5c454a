package restoretest_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

const (
	vm      = "vm1"
	cluster = kvmbackuptest.ClusterBytes
	disk    = 16 * cluster // the size of a disk, unless a test says otherwise
)

type contents map[kvmbackup.VolumeID]kvmbackuptest.Content

// world is a host with a running VM, a store, a repository, the real qemu-img, and what every backup has to contain.
type world struct {
	testing.TB
	dir, nas string
	h        *kvmbackuptest.Hypervisor
	store    kvmbackup.Store
	repo     *repository.Repository
	images   *watched
	cfg      engine.Config
	engine   *engine.Engine
	volumes  []engine.Volume
	held     map[kvmbackup.BackupID]contents
	seed     uint64
	outs     int
}

// newWorld makes a running VM with the disks of these devices; the volume on vda is v-vda.
func newWorld(t testing.TB, devices ...string) *world {
	t.Helper()
	if len(devices) == 0 {
		devices = []string{"vda", "vdb"}
	}
	l := &world{
		TB: t, dir: t.TempDir(), h: kvmbackuptest.NewHypervisor(), store: memstore.New(), images: &watched{Tool: newTool(t)},
		held: map[kvmbackup.BackupID]contents{},
	}
	l.nas = filepath.Join(l.dir, "nas")
	for _, sub := range []string{"nas", "images"} {
		l.ok(os.Mkdir(filepath.Join(l.dir, sub), 0o755))
	}
	d := kvmbackuptest.Domain{Name: vm}
	for _, device := range devices {
		d.Disks = append(d.Disks, l.disk(device, disk))
		l.volumes = append(l.volumes, volume(device))
	}
	l.ok(l.h.Define(d))
	l.ok(l.h.Start(vm))
	var err error
	l.repo, err = repository.Init(t.Context(), l.nas, repository.Options{NoSync: true})
	l.ok(err)
	l.open()
	return l
}

// open starts a new host process on the world's store and repository.
func (l *world) open() {
	l.Helper()
	if l.cfg.Prefix == "" {
		l.cfg.Prefix = "kvmbackup"
	}
	l.cfg.Store, l.cfg.Repository, l.cfg.Images, l.cfg.Executor = l.store, l.repo, l.images, l.h.Executor()
	var err error
	l.engine, err = engine.New(l.cfg)
	l.ok(err)
}

func volume(device string) engine.Volume {
	return engine.Volume{ID: kvmbackup.VolumeID("v-" + device), Device: device}
}

func (l *world) disk(device string, size int64) kvmbackuptest.Disk {
	return kvmbackuptest.Disk{Device: device, Source: filepath.Join(l.dir, "images", device+".qcow2"), SizeBytes: size}
}

func (l *world) source(device string) string {
	l.Helper()
	path, err := l.h.Source(vm, device)
	l.ok(err)
	return path
}

// write lets the guest write n clusters of new data.
func (l *world) write(device string, at, n int64) {
	l.Helper()
	l.seed++
	l.ok(l.h.Write(vm, device, at*cluster, kvmbackuptest.Pattern(l.seed, int(n*cluster))))
}

// now is what the guest sees on the world's volumes.
func (l *world) now() contents {
	l.Helper()
	c := contents{}
	for _, v := range l.volumes {
		content, err := l.h.Content(vm, v.Device)
		l.ok(err)
		c[v.ID] = content
	}
	return c
}

// backup takes a backup and remembers what the guest saw.
func (l *world) backup(opts ...func(*engine.BackupRequest)) kvmbackup.Backup {
	l.Helper()
	req := engine.BackupRequest{VM: vm, Volumes: l.volumes}
	for _, o := range opts {
		o(&req)
	}
	held := l.now()
	b, err := l.engine.Backup(l.Context(), req)
	l.ok(err)
	l.held[b.ID] = held
	return b
}

func full(r *engine.BackupRequest)    { r.Policy.ForceFull = true }
func digests(r *engine.BackupRequest) { r.Digests = true }

// chain takes n backups, each after new writes to every volume.
func (l *world) chain(n int, opts ...func(*engine.BackupRequest)) []kvmbackup.Backup {
	l.Helper()
	var all []kvmbackup.Backup
	for i := range n {
		for k, v := range l.volumes {
			l.write(v.Device, (l.at()+int64(k))%14, 2)
		}
		o := slices.Clone(opts)
		if i == 0 {
			o = append(o, full)
		}
		all = append(all, l.backup(o...))
	}
	return all
}

// at is a place on a disk that moves on with every write.
func (l *world) at() int64 { return int64(l.seed * 5 % 14) }

// out makes a new folder for restores.
func (l *world) out() string {
	l.Helper()
	l.outs++
	dir := filepath.Join(l.dir, fmt.Sprintf("out%d", l.outs))
	l.ok(os.Mkdir(dir, 0o755))
	return dir
}

// restore restores and compares every volume that came of it.
func (l *world) restore(req engine.RestoreRequest) engine.Restored {
	l.Helper()
	if req.Dir == "" && req.InPlace == nil {
		req.Dir = l.out()
	}
	r, err := l.engine.Restore(l.Context(), req)
	l.ok(err)
	l.compare(r.Volumes, l.held[req.Backup])
	return r
}

// compare wants every restored volume to hold exactly its content.
func (l *world) compare(vols []engine.RestoredVolume, want contents) {
	l.Helper()
	for _, v := range vols {
		c, known := want[v.VolumeID]
		if !known {
			l.Fatalf("volume %s was restored, which the backup doesn't have", v.VolumeID)
		}
		l.holds(v.Path, v.Format, c)
	}
}

// holds wants an image to have that content, nothing but zeroes behind it, and nothing below it.
func (l *world) holds(path string, format qcow2.Format, want kvmbackuptest.Content) {
	l.Helper()
	got := l.read(path, format)
	if format == qcow2.FormatRaw && got.SizeBytes() > want.SizeBytes() {
		l.Fatalf("%s has %d bytes, want %d", path, got.SizeBytes(), want.SizeBytes())
	}
	if diff := got.Diff(want); diff != "" {
		l.Fatalf("%s: %s", path, diff)
	}
}

func (l *world) read(path string, format qcow2.Format) kvmbackuptest.Content {
	l.Helper()
	if format == qcow2.FormatRaw {
		c, err := kvmbackuptest.ReadRaw(path)
		l.ok(err)
		return c
	}
	h, err := qcow2.ReadHeaderFile(path)
	l.ok(err)
	if h.BackingFile != "" {
		l.Fatalf("%s stands on %q", path, h.BackingFile)
	}
	c, err := kvmbackuptest.ReadFiles(path)
	l.ok(err)
	return c
}

// file is the absolute path of a volume's file in the repository.
func (l *world) file(b kvmbackup.Backup, id kvmbackup.VolumeID) string {
	l.Helper()
	v, there := b.Volume(id)
	if !there {
		l.Fatalf("backup %s has no volume %s", b.ID, id)
	}
	return l.repo.FilePath(b.Path, v.File)
}

func (l *world) get(id kvmbackup.BackupID) kvmbackup.Backup {
	l.Helper()
	b, err := l.store.Backup(l.Context(), id)
	l.ok(err)
	return b
}

func (l *world) active() kvmbackup.CheckpointName {
	l.Helper()
	rec, err := l.store.VM(l.Context(), vm)
	l.ok(err)
	return rec.ActiveCheckpoint
}

func (l *world) ok(err error) {
	l.Helper()
	if err != nil {
		l.Fatalf("%v", err)
	}
}

// fails wants an error that is all of the targets.
func (l *world) fails(err error, targets ...error) {
	l.Helper()
	if err == nil {
		l.Fatalf("no error, want %v", targets)
	}
	l.is(err, targets...)
}

// empty wants a folder without anything in it.
func (l *world) empty(dir string) {
	l.Helper()
	left, err := os.ReadDir(dir)
	l.ok(err)
	if len(left) > 0 {
		l.Fatalf("left in %s: %v", dir, left)
	}
}

// watched is the real qemu-img, with a hook before each call that opens files.
type watched struct {
	*qcow2.Tool
	checker *qcow2.Tool // in Tool's place for checks, unless nil
	before  func(call, path string) error
}

func (w *watched) call(name, path string) error {
	if w.before == nil {
		return nil
	}
	return w.before(name, qcow2.FileName(path))
}

func (w *watched) Header(ctx context.Context, path string, secret *qcow2.Secret) (qcow2.Header, error) {
	if err := w.call("header", path); err != nil {
		return qcow2.Header{}, err
	}
	return w.Tool.Header(ctx, path, secret)
}

func (w *watched) Check(ctx context.Context, path string, o qcow2.CheckOptions) (qcow2.CheckResult, error) {
	if err := w.call("check", path); err != nil {
		return qcow2.CheckResult{}, err
	}
	return cmp.Or(w.checker, w.Tool).Check(ctx, path, o)
}

func (w *watched) Create(ctx context.Context, path string, o qcow2.CreateOptions) error {
	if err := w.call("create", path); err != nil {
		return err
	}
	return w.Tool.Create(ctx, path, o)
}

func (w *watched) Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error {
	if err := w.call("convert", src); err != nil {
		return err
	}
	return w.Tool.Convert(ctx, src, dst, o)
}

func (w *watched) ServeNBD(ctx context.Context, o qcow2.NBDOptions) (*qcow2.NBDServer, error) {
	if err := w.call("serve", o.Path); err != nil {
		return nil, err
	}
	return w.Tool.ServeNBD(ctx, o)
}

func (w *watched) Digest(ctx context.Context, path string, backing []qcow2.Layer) (string, error) {
	if err := w.call("digest", path); err != nil {
		return "", err
	}
	return w.Tool.Digest(ctx, path, backing)
}

func (w *watched) FileDigest(ctx context.Context, path string) (string, error) {
	if err := w.call("file digest", path); err != nil {
		return "", err
	}
	return w.Tool.FileDigest(ctx, path)
}

func (w *watched) DeviceDigest(ctx context.Context, path string, size int64) (string, error) {
	if err := w.call("device digest", path); err != nil {
		return "", err
	}
	return w.Tool.DeviceDigest(ctx, path, size)
}
