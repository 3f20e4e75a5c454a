package offline_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/offline"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

type bench struct {
	*testing.T
	images *offline.Images
	dir    string
}

const size = 64 << 20

func newBench(t *testing.T) *bench {
	t.Helper()
	t.Parallel()
	lab.Need(t, "qemu-img", "qemu-storage-daemon", "qemu-io")
	tool, err := qcow2.New(qcow2.Config{})
	lab.OK(t, err)
	return &bench{t, offline.New(tool, offline.Config{ProgressInterval: 50 * time.Millisecond}), t.TempDir()}
}

func (b *bench) run(name string, args ...string) {
	b.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// create makes an image; options go to qemu-img create.
func (b *bench) create(name, format string, options ...string) offline.Disk {
	b.Helper()
	lab.CreateImage(b, append(append([]string{"-f", format}, options...), b.path(name), strconv.Itoa(size))...)
	return offline.Disk{Device: strings.TrimSuffix(name, filepath.Ext(name)), Path: b.path(name), Format: format}
}

func (b *bench) write(d offline.Disk, pattern byte, offset, length int) {
	b.Helper()
	b.run("qemu-io", "-f", d.Format, "-c", "write -P "+strconv.Itoa(int(pattern))+" "+strconv.Itoa(offset)+" "+
		strconv.Itoa(length), d.Path)
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) wantErr(err, want error) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Errorf("error is %v, want %q", err, want)
	}
}

func (b *bench) inspect(d offline.Disk) kvmbackup.DiskStatus {
	b.Helper()
	list, err := b.images.Inspect(b.Context(), []offline.Disk{d})
	b.must(err)
	return list[0]
}

// wantBitmaps compares bitmaps, with ! behind those that can't be used.
func (b *bench) wantBitmaps(d offline.Disk, want string) {
	b.Helper()
	var got []string
	for _, bitmap := range b.inspect(d).Bitmaps {
		name := bitmap.Name
		if bitmap.Inconsistent {
			name += "!"
		}
		got = append(got, name)
	}
	if text := strings.Join(got, " "); text != want {
		b.Errorf("bitmaps of %s are %q, want %q", d.Device, text, want)
	}
}

// volume describes one volume of a job; an incremental names its parent's file.
func volume(d offline.Disk, file, parent string) kvmbackup.JobVolume {
	v := kvmbackup.JobVolume{
		VolumeID: kvmbackup.VolumeID("id-" + d.Device), Device: d.Device, Kind: kvmbackup.KindFull,
		File: file, VirtualSize: size, Tracked: d.Format == "qcow2",
	}
	if parent != "" {
		v.Kind, v.ParentFile = kvmbackup.KindIncremental, parent
	}
	return v
}

func (b *bench) spec(checkpoint, base string, volumes ...kvmbackup.JobVolume) kvmbackup.JobSpec {
	return kvmbackup.JobSpec{
		ID: kvmbackup.NewBackupID(), Dir: b.dir, Volumes: volumes,
		Checkpoint: kvmbackup.CheckpointName(checkpoint), Base: kvmbackup.CheckpointName(base),
	}
}

func (b *bench) prepare(spec kvmbackup.JobSpec, disks ...offline.Disk) kvmbackup.Job {
	b.Helper()
	job, err := b.images.PrepareJob(b.Context(), "vm", disks, spec)
	b.must(err)
	b.Cleanup(func() { _ = job.Close(context.Background()) })
	return job
}

func (b *bench) backup(spec kvmbackup.JobSpec, disks ...offline.Disk) kvmbackup.JobResult {
	b.Helper()
	job := b.prepare(spec, disks...)
	b.must(job.Begin(b.Context()))
	result, err := job.Wait(b.Context(), nil)
	b.must(err)
	for i, v := range spec.Volumes {
		b.run("qemu-img", "compare", "-f", disks[i].Format, "-F", "qcow2", disks[i].Path, b.path(v.File))
	}
	return result
}

func TestJob(t *testing.T) {
	b := newBench(t)
	vda, vdb := b.create("vda.qcow2", "qcow2"), b.create("vdb.raw", "raw")
	b.write(vda, 1, 0, 4<<20)
	b.write(vdb, 2, 0, 4<<20)
	b.backup(b.spec("c1", "", volume(vda, "a1", ""), volume(vdb, "b1", "")), vda, vdb)
	b.wantBitmaps(vda, "c1")
	b.write(vda, 3, 1<<20, 1<<20)
	sizes, err := b.images.DirtyBytes(b.Context(), []offline.Disk{vda, vdb}, "c1")
	if err != nil || len(sizes) != 1 || sizes["vda"] != 1<<20 {
		t.Errorf("dirty bytes are %v, %v", sizes, err)
	}
	result := b.backup(b.spec("c2", "c1", volume(vda, "a2", "a1"), volume(vdb, "b2", "")), vda, vdb)
	if result.CopiedBytes["id-vda"] != 1<<20 || result.CopiedBytes["id-vdb"] != size || result.TotalBytes != size+1<<20 {
		t.Errorf("result is %+v", result)
	}
	b.wantBitmaps(vda, "c1 c2")
	for range 2 {
		b.must(b.images.DropBitmap(b.Context(), []offline.Disk{vda, vdb}, "c1"))
	}
	b.wantBitmaps(vda, "c2")
	if result := b.backup(b.spec("c3", "c2", volume(vda, "a3", "a2")), vda); result.TotalBytes != 0 {
		t.Errorf("result is %+v", result)
	}
}

func TestFailedBeginLeavesNoBitmap(t *testing.T) {
	b := newBench(t)
	vda, vdb := b.create("vda.qcow2", "qcow2"), b.create("vdb.qcow2", "qcow2")
	b.run("qemu-img", "bitmap", "--add", vdb.Path, "taken")
	job := b.prepare(b.spec("taken", "", volume(vda, "a1", ""), volume(vdb, "b1", "")), vda, vdb)
	b.wantErr(job.Begin(b.Context()), kvmbackup.ErrCheckpointExists)
	b.wantBitmaps(vda, "")
	b.wantBitmaps(vdb, "taken")

	// The daemon refuses targets of a wrong size.
	wrong := b.spec("c2", "", volume(vda, "a2", ""), volume(vdb, "b2", ""))
	wrong.Volumes[1].VirtualSize = 2 * size
	job = b.prepare(wrong, vda, vdb)
	b.wantErr(job.Begin(b.Context()), kvmbackup.ErrInvalid)
	b.wantBitmaps(vda, "")
	b.wantBitmaps(vdb, "taken")
	_, err := job.Wait(b.Context(), nil)
	b.wantErr(err, kvmbackup.ErrNoJob)
	b.must(job.Abort(b.Context()))
}

func TestAbort(t *testing.T) {
	b := newBench(t)
	vda := b.create("vda.qcow2", "qcow2")
	b.write(vda, 1, 0, 32<<20)
	spec := b.spec("c1", "", volume(vda, "a1", ""))
	spec.BandwidthBytes = 64 << 10
	job := b.prepare(spec, vda)
	b.must(job.Begin(b.Context()))
	b.wantErr(job.Begin(b.Context()), kvmbackup.ErrInvalid)

	ctx, cancel := context.WithCancelCause(b.Context())
	enough, calls := errors.New("enough"), 0
	_, err := job.Wait(ctx, func(p kvmbackup.JobProgress) {
		if calls++; calls == 3 {
			cancel(enough)
		}
		if len(p.Volumes) != 1 || p.Volumes[0].Device != "vda" || p.TotalBytes > 0 && p.TotalBytes != size {
			t.Errorf("progress is %+v", p)
		}
	})
	b.wantErr(err, enough)
	// The image can be looked at, but not be written to.
	b.wantBitmaps(vda, "c1")
	b.wantErr(b.images.DropBitmap(b.Context(), []offline.Disk{vda}, "c1"), kvmbackup.ErrImageLocked)
	b.must(job.Abort(b.Context()))
	b.must(job.Abort(b.Context()))
	_, err = job.Wait(b.Context(), nil)
	b.wantErr(err, kvmbackup.ErrJobFailed)
	b.must(b.images.DropBitmap(b.Context(), []offline.Disk{vda}, "c1"))
	b.wantBitmaps(vda, "")
}

func TestBandwidth(t *testing.T) {
	b := newBench(t)
	vda, vdb := b.create("vda.qcow2", "qcow2"), b.create("vdb.qcow2", "qcow2")
	b.write(vda, 1, 0, 32<<20)
	spec := b.spec("c1", "", volume(vda, "a1", ""), volume(vdb, "b1", ""))
	spec.BandwidthBytes = 64 << 10
	job := b.prepare(spec, vda, vdb)
	b.must(job.Begin(b.Context()))
	b.wantErr(job.SetBandwidth(b.Context(), -1), kvmbackup.ErrInvalid)
	b.must(job.SetBandwidth(b.Context(), 0))
	var last kvmbackup.JobProgress
	_, err := job.Wait(b.Context(), func(p kvmbackup.JobProgress) { last = p })
	b.must(err)
	if last.DoneBytes != 2*size || last.TotalBytes != 2*size {
		t.Errorf("progress is %+v", last)
	}
	b.must(job.Close(b.Context()))
	b.must(job.Close(b.Context()))
}

func TestCloseEndsTheJob(t *testing.T) {
	b := newBench(t)
	vda := b.create("vda.qcow2", "qcow2")
	b.write(vda, 1, 0, 32<<20)
	spec := b.spec("c1", "", volume(vda, "a1", ""))
	spec.BandwidthBytes = 64 << 10
	job := b.prepare(spec, vda)
	b.must(job.Begin(b.Context()))
	b.must(job.Close(b.Context()))
	_, err := job.Wait(b.Context(), nil)
	b.wantErr(err, kvmbackup.ErrJobFailed)
	b.write(vda, 2, 0, 1<<20)
	b.wantBitmaps(vda, "c1")
}

func TestInspect(t *testing.T) {
	b := newBench(t)
	base := b.create("base.qcow2", "qcow2")
	b.write(base, 1, 0, 4<<20)
	b.run("qemu-img", "bitmap", "--add", base.Path, "both")
	b.run("qemu-img", "bitmap", "--add", base.Path, "lower")
	top := offline.Disk{Device: "top", Path: b.path("top.qcow2"), Format: "qcow2"}
	b.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", top.Path)
	b.write(top, 2, 4<<20, 2<<20)
	b.run("qemu-img", "bitmap", "--add", top.Path, "both")
	b.run("qemu-img", "bitmap", "--add", top.Path, "upper")
	b.run("qemu-img", "bitmap", "--add", "--disable", top.Path, "off")
	b.wantBitmaps(top, "both! upper off! lower!")
	if got := b.inspect(top).AllocatedBytes; got < 6<<20 || got > 8<<20 {
		t.Errorf("%d bytes allocated", got)
	}
	for _, name := range []kvmbackup.CheckpointName{"both", "lower", "nothing"} {
		b.must(b.images.DropBitmap(b.Context(), []offline.Disk{top}, name))
	}
	b.wantBitmaps(top, "upper off!")
	b.wantBitmaps(base, "")

	old := b.create("old.qcow2", "qcow2", "-o", "compat=0.10")
	if got := b.inspect(old); got.Untrackable != "qcow2 version 2" || got.VirtualSize != size {
		t.Errorf("disk is %+v", got)
	}
	raw := b.create("raw.raw", "raw")
	if got := b.inspect(raw); got.Untrackable != "raw" || got.VirtualSize != size || got.AllocatedBytes > 1<<20 {
		t.Errorf("disk is %+v", got)
	}
	skipped := offline.Disk{
		Device: "sda", Path: "/nowhere", Format: "raw", Skip: "cdrom", Serial: "1", Description: "a disc",
	}
	if got := b.inspect(skipped); got.Skip != "cdrom" || got.Serial != "1" || got.Source != "a disc" {
		t.Errorf("disk is %+v", got)
	}
	remote := offline.Disk{Device: "vdz", Format: "raw", Description: "nbd:x"}
	if got := b.inspect(remote); got.Unreadable == "" {
		t.Errorf("disk is %+v", got)
	}
	_, err := b.images.PrepareJob(b.Context(), "vm", []offline.Disk{remote}, b.spec("", "", volume(remote, "z", "")))
	b.wantErr(err, kvmbackup.ErrUnsupported)
}

// What is encrypted says so and can't be read, and nobody tries to change it; what was only made to look so by a guest
// is not.
func TestEncrypted(t *testing.T) {
	b := newBench(t)
	secret := func(format, option string) []string {
		return []string{"--object", "secret,id=s,data=x", "-o",
			option + "key-secret=s" + map[bool]string{true: "," + option + "iter-time=10"}[format == "luks"]}
	}
	luks := b.create("luks.qcow2", "qcow2",
		append([]string{"-o", "encrypt.format=luks"}, secret("luks", "encrypt.")...)...)
	aes := b.create("aes.qcow2", "qcow2", append([]string{"-o", "encrypt.format=aes"}, secret("aes", "encrypt.")...)...)
	inner := b.create("inner.luks", "luks", secret("luks", "")...)
	over := func(name string, below offline.Disk) offline.Disk {
		d := offline.Disk{Device: name, Path: b.path(name), Format: "qcow2"}
		b.run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", below.Path, "-F", below.Format, d.Path,
			strconv.Itoa(size))
		return d
	}
	defined := offline.Disk{Device: "raw", Path: inner.Path, Format: "raw", Encryption: "luks"}
	for _, c := range []struct {
		disk offline.Disk
		want string
	}{{luks, "luks"}, {aes, "aes"}, {over("a", luks), "luks"}, {over("b", aes), "aes"}, {over("c", inner), "luks"},
		{defined, "luks"}} {
		got := b.inspect(c.disk)
		if got.Encryption != c.want || !strings.Contains(got.Unreadable, "encrypted ("+c.want+")") || got.Bitmaps != nil {
			b.Errorf("%s: disk is %+v", c.disk.Device, got)
		}
		_, err := b.images.PrepareJob(b.Context(), "vm", []offline.Disk{c.disk}, b.spec("c1", "", volume(c.disk, "t", "")))
		b.wantErr(err, kvmbackup.ErrUnsupported)
	}
	if got := b.inspect(defined); got.VirtualSize != 0 || got.Untrackable != "raw" {
		b.Errorf("a raw one's size can't be told: %+v", got)
	}
	guests := offline.Disk{Device: "raw", Path: inner.Path, Format: "raw"} // encrypted by the guest itself
	if got := b.inspect(guests); got.Encryption != "" || got.Unreadable != "" {
		b.Errorf("disk is %+v", got)
	}

	b.run("qemu-img", "bitmap", "--add", "--object", "secret,id=s,data=x", "--image-opts",
		"driver=qcow2,encrypt.key-secret=s,file.filename="+luks.Path, "c1")
	plain := b.create("plain.qcow2", "qcow2")
	b.run("qemu-img", "bitmap", "--add", plain.Path, "c1")
	both := []offline.Disk{luks, plain}
	if sizes, err := b.images.DirtyBytes(b.Context(), both, "c1"); err != nil || len(sizes) != 1 {
		b.Errorf("dirty bytes are %v, %v", sizes, err)
	}
	b.must(b.images.DropBitmap(b.Context(), both, "c1"))
	b.wantBitmaps(plain, "")
	if out, err := exec.Command("qemu-img", "info", luks.Path).Output(); err != nil ||
		!strings.Contains(string(out), "c1") {
		b.Errorf("the bitmap is not there: %v, %s", err, out)
	}
}

// One disk over an image that is elsewhere doesn't hide the others.
func TestBelowIsElsewhere(t *testing.T) {
	b := newBench(t)
	vda := b.create("vda.qcow2", "qcow2")
	var disks []offline.Disk
	for i, below := range []string{"nbd://localhost/x",
		`json:{"driver":"raw","file":{"driver":"nbd","host":"h","port":"1"}}`} {
		d := offline.Disk{Device: "vd" + strconv.Itoa(i), Path: b.path(strconv.Itoa(i)), Format: "qcow2"}
		b.run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", below, "-F", "raw", d.Path, strconv.Itoa(size))
		disks = append(disks, d)
	}
	got, err := b.images.Inspect(b.Context(), append(disks, vda))
	b.must(err)
	if got[0].Unreadable == "" || got[1].Unreadable == "" || got[2].Unreadable != "" {
		b.Errorf("disks are %+v", got)
	}
}

func TestInternalSnapshots(t *testing.T) {
	b := newBench(t)
	vda := b.create("vda.qcow2", "qcow2")
	for _, name := range []string{"one", "another one"} {
		b.run("qemu-img", "snapshot", "-c", name, vda.Path)
	}
	if got := b.inspect(vda).Snapshots; len(got) != 2 || got[0] != "one" || got[1] != "another one" {
		b.Errorf("snapshots are %q", got)
	}
}

// A raw disk whose guest has written a qcow2 header into it stays raw, and a backing file without a format is refused.
func TestFormatsAreNotGuessed(t *testing.T) {
	b := newBench(t)
	inner := b.create("inner.qcow2", "qcow2", "-b", "/etc/passwd", "-F", "raw")
	raw := offline.Disk{Device: "raw", Path: inner.Path, Format: "raw"}
	if got := b.inspect(raw); got.VirtualSize == size || got.Untrackable != "raw" {
		t.Errorf("disk is %+v", got)
	}
	for _, format := range []string{"", "auto"} {
		_, err := b.images.Inspect(b.Context(), []offline.Disk{{Device: "raw", Path: inner.Path, Format: format}})
		b.wantErr(err, kvmbackup.ErrInvalid)
	}
	b.create("base.raw", "raw")
	top := offline.Disk{Device: "top", Path: b.path("top.qcow2"), Format: "qcow2"}
	b.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top.Path)
	b.forgetBackingFormat(top.Path)
	if got := b.inspect(top); !strings.Contains(got.Unreadable, "qemu-img rebase -u -b base.raw -F FORMAT "+top.Path) {
		t.Errorf("unreadable is %q", got.Unreadable)
	}
}

// A backing file of which the image doesn't say the format has the one that libvirt starts with, and what the two say
// differently is refused. A guest's own header in a raw backing file counts for nothing.
func TestBackingFormatFromDefinition(t *testing.T) {
	b := newBench(t)
	base := b.create("base.raw", "raw")
	b.write(base, 1, 0, 1<<20)
	hostile, err := os.ReadFile(b.create("hostile.qcow2", "qcow2", "-b", "/etc/passwd", "-F", "raw").Path)
	b.must(err)
	f, err := os.OpenFile(base.Path, os.O_WRONLY, 0)
	b.must(err)
	_, err = f.Write(hostile)
	b.must(errors.Join(err, f.Close()))
	top := offline.Disk{
		Device: "top", Path: b.path("top.qcow2"), Format: "qcow2", Below: []string{base.Path},
		BelowFormats: []string{"raw"}, Ends: true,
	}
	b.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top.Path)
	b.write(top, 2, 2<<20, 1<<20)
	b.forgetBackingFormat(top.Path)
	if got := b.inspect(top); got.Unreadable != "" || len(got.Layers) != 2 {
		t.Fatalf("disk is %+v", got)
	}
	v := volume(top, "v", "")
	job := b.prepare(b.spec("c1", "", v), top)
	b.must(job.Begin(b.Context()))
	_, err = job.Wait(b.Context(), nil)
	b.must(err)
	b.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", base.Path, "-F", "raw", top.Path)
	b.run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", top.Path, b.path(v.File))

	for name, formats := range map[string][]string{"another": {"qcow2"}, "none": {""}} {
		top.BelowFormats = formats
		if got := b.inspect(top); (got.Unreadable != "") != (name == "another") {
			t.Errorf("%s: unreadable is %q", name, got.Unreadable)
		}
	}
}

// One image that nobody can read doesn't hide the others, whatever is wrong with it.
func TestUnreadable(t *testing.T) {
	b := newBench(t)
	vda := b.create("vda.qcow2", "qcow2")
	remote := b.create("remote.qcow2", "qcow2")
	b.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "nbd://localhost:1/x", "-F", "raw", remote.Path)
	b.must(os.WriteFile(b.path("text"), []byte("this was an image"), 0o644))
	for name, d := range map[string]offline.Disk{
		"remote base": remote, "network": {Device: "vdb", Format: "raw", Description: "nbd:x"},
		"damaged":  {Device: "vdb", Path: b.path("text"), Format: "qcow2"},
		"missing":  {Device: "vdb", Path: b.path("gone"), Format: "qcow2"},
		"a folder": {Device: "vdb", Path: b.path("."), Format: "raw"},
	} {
		status, err := b.images.Inspect(b.Context(), []offline.Disk{vda, d})
		b.must(err)
		if status[0].Unreadable != "" || status[1].Unreadable == "" || status[1].InUse {
			t.Errorf("%s: status is %+v", name, status)
		}
		t.Log(name, status[1].Unreadable)
		sizes, err := b.images.DirtyBytes(b.Context(), []offline.Disk{vda, d}, "c1")
		if b.must(err); len(sizes) != 0 {
			t.Errorf("%s: dirty bytes are %v", name, sizes)
		}
		b.must(b.images.DropBitmap(b.Context(), []offline.Disk{vda, d}, "c1"))
	}
}

// forgetBackingFormat blanks the header extension that has the backing file's format.
func (b *bench) forgetBackingFormat(path string) {
	b.Helper()
	data, err := os.ReadFile(path)
	b.must(err)
	i := strings.Index(string(data[:4096]), "\xe2\x79\x2a\xca")
	if i < 0 {
		b.Fatal("no such extension")
	}
	copy(data[i:], "\x12\x34\x56\x78") // unknown extensions are ignored
	b.must(os.WriteFile(path, data, 0o644))
}

func TestErrors(t *testing.T) {
	b := newBench(t)
	vda := b.create("vda.qcow2", "qcow2")
	disks := []offline.Disk{vda}
	_, err := b.images.PrepareJob(b.Context(), "vm", disks, b.spec("c2", "c1", volume(vda, "a", "p")))
	b.wantErr(err, kvmbackup.ErrCheckpointInconsistent)
	other := vda
	other.Device = "vdz"
	_, err = b.images.PrepareJob(b.Context(), "vm", disks, b.spec("c1", "", volume(other, "a", "")))
	b.wantErr(err, kvmbackup.ErrNoVolume)
	_, err = b.images.PrepareJob(b.Context(), "vm", disks, b.spec("c1", "", volume(vda, "vda.qcow2", "")))
	b.wantErr(err, kvmbackup.ErrTargetExists)

	gone := offline.Disk{Device: "vdb", Path: b.path("gone"), Format: "qcow2"}
	status, err := b.images.Inspect(b.Context(), []offline.Disk{vda, gone})
	b.must(err)
	if len(status) != 2 || status[0].Unreadable != "" || status[1].Unreadable == "" || status[1].BitmapsUnknown == "" {
		b.Errorf("status is %+v", status)
	}
	b.must(b.images.DropBitmap(b.Context(), []offline.Disk{gone}, "c1"))
}

// A thin disk takes what it holds, neither time nor tables for its holes.
func TestThinDisk(t *testing.T) {
	b := newBench(t)
	const thin = 16 << 40
	vda := offline.Disk{Device: "vda", Path: b.path("thin"), Format: "qcow2"}
	b.run("qemu-img", "create", "-q", "-f", "qcow2", vda.Path, strconv.Itoa(thin))
	b.write(vda, 1, 0, 32<<20)
	b.write(vda, 2, thin-32<<20, 32<<20)
	v := volume(vda, "full", "")
	v.VirtualSize = thin
	job := b.prepare(b.spec("c1", "", v), vda)
	began := time.Now()
	b.must(job.Begin(b.Context()))
	result, err := job.Wait(b.Context(), nil)
	b.must(err)
	took := time.Since(began)
	info, err := os.Stat(b.path("full"))
	b.must(err)
	t.Logf("%v, %d bytes", took, info.Size())
	if took > time.Minute || info.Size() > 70<<20 || result.TotalBytes != thin ||
		result.Transfer != kvmbackup.TransferOffline {
		t.Errorf("it took %v and has %d bytes; result %+v", took, info.Size(), result)
	}
}

// While a job runs no guest can start on any of the disks, whatever its format.
func TestDisksAreLocked(t *testing.T) {
	b := newBench(t)
	vda, vdb := b.create("vda.qcow2", "qcow2"), b.create("vdb.raw", "raw")
	b.write(vda, 1, 0, 4<<20)
	b.write(vdb, 1, 0, 4<<20)
	spec := b.spec("c1", "", volume(vda, "a", ""), volume(vdb, "b", ""))
	spec.BandwidthBytes = 1024
	job := b.prepare(spec, vda, vdb)
	b.must(job.Begin(b.Context()))
	for _, d := range []offline.Disk{vda, vdb} {
		out, err := exec.Command("qemu-io", "-f", d.Format, "-c", "write 0 512", d.Path).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "lock") {
			t.Errorf("%s could be written: %v, %s", d.Device, err, out)
		}
	}
	b.must(job.SetBandwidth(b.Context(), 0))
	_, err := job.Wait(b.Context(), nil)
	b.must(err)
	b.write(vdb, 2, 0, 4096)
}

// What is put in a target's place after it was made is neither written nor opened.
func TestTargetIsExchanged(t *testing.T) {
	b := newBench(t)
	vda := b.create("vda.qcow2", "qcow2")
	b.write(vda, 1, 0, 4<<20)
	b.must(os.WriteFile(b.path("canary"), []byte("untouched"), 0o600))
	job := b.prepare(b.spec("c1", "", volume(vda, "a", "")), vda)
	b.must(errors.Join(os.Rename(b.path("a"), b.path("moved")), os.Symlink(b.path("canary"), b.path("a"))))
	b.must(job.Begin(b.Context()))
	_, err := job.Wait(b.Context(), nil)
	b.must(err)
	b.run("qemu-img", "compare", vda.Path, b.path("moved"))
	if text, err := os.ReadFile(b.path("canary")); err != nil || string(text) != "untouched" {
		t.Errorf("canary is %q, %v", text, err)
	}
}

// TestFolderOfTargetsExchanged: where the folder of the targets is a link, or a FIFO, nothing is made, and nobody
// waits.
func TestFolderOfTargetsExchanged(t *testing.T) {
	b := newBench(t)
	vda := b.create("vda.qcow2", "qcow2")
	spec := b.spec("c1", "", volume(vda, "t", ""))
	elsewhere := t.TempDir()
	for name, put := range map[string]func(string) error{
		"a link": func(dir string) error { return os.Symlink(elsewhere, dir) },
		"a FIFO": func(dir string) error { return exec.Command("mkfifo", dir).Run() },
	} {
		spec.Dir = filepath.Join(t.TempDir(), "folder")
		b.must(put(spec.Dir))
		ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
		if _, err := b.images.PrepareJob(ctx, "vm", []offline.Disk{vda}, spec); err == nil || ctx.Err() != nil {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	if made, err := os.ReadDir(elsewhere); err != nil || len(made) > 0 {
		t.Errorf("made elsewhere: %v, %v", made, err)
	}
}

// TestFolderOfTargetsExchangedBeforeTheirRemoval: a tool fails, and meanwhile the folder of the targets has become a
// link to another VM's. What was made goes, and what has its name there stays.
func TestFolderOfTargetsExchangedBeforeTheirRemoval(t *testing.T) {
	b := newBench(t)
	vda := b.create("vda.qcow2", "qcow2")
	for name, make := range map[string]func(*qcow2.Tool, kvmbackup.JobSpec) error{
		"qemu-img": func(tool *qcow2.Tool, spec kvmbackup.JobSpec) error {
			_, err := offline.CreateTargets(b.Context(), tool, spec)
			return err
		},
		"qemu-storage-daemon": func(tool *qcow2.Tool, spec kvmbackup.JobSpec) error {
			_, err := offline.ServeTargets(b.Context(), tool, spec)
			return err
		},
	} {
		dir := t.TempDir()
		spec, other, fails := b.spec("c1", "", volume(vda, "t", "")), filepath.Join(dir, "other"), filepath.Join(dir, name)
		spec.Dir = filepath.Join(dir, "mine")
		b.must(errors.Join(os.Mkdir(spec.Dir, 0o755), os.Mkdir(other, 0o755)))
		b.must(os.WriteFile(filepath.Join(other, "t"), []byte("a backup"), 0o600))
		b.must(os.WriteFile(fails, []byte("#!/bin/sh\ncd "+dir+" && mv mine moved && ln -s other mine\nexit 1\n"), 0o755))
		tool, err := qcow2.New(qcow2.Config{QemuImg: fails, StorageDaemon: fails, Unconfined: true})
		b.must(err)
		if err := make(tool, spec); err == nil {
			t.Errorf("%s: no error of a tool that fails", name)
		}
		if text, err := os.ReadFile(filepath.Join(other, "t")); err != nil || string(text) != "a backup" {
			t.Errorf("%s: the other VM's file is %q, %v", name, text, err)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "moved")); err != nil || len(left) > 0 {
			t.Errorf("%s: left is %v, %v", name, left, err)
		}
	}
}

// TestParentsBehindALink: what a disk is compared with isn't read where its folder, or the VM's, is a link to
// another's.
func TestParentsBehindALink(t *testing.T) {
	b := newBench(t)
	vda := b.create("vda.qcow2", "qcow2")
	b.write(vda, 1, 0, 4<<20)
	in := func(path string) string { return b.path(filepath.FromSlash(path)) }
	for _, dir := range []string{"vm/job", "vm/parent", "other/parent", "other/job"} {
		b.must(os.MkdirAll(in(dir), 0o755))
	}
	b.run("qemu-img", "convert", "-O", "qcow2", vda.Path, in("vm/parent/f"))
	b.run("qemu-img", "convert", "-O", "qcow2", vda.Path, in("other/parent/f"))
	v := volume(vda, "t", "../parent/f")
	v.Compare, v.Parent = true, []string{in("vm/parent/f")}
	spec := b.spec("c1", "c0", v)
	spec.Dir, spec.Transfer = in("vm/job"), kvmbackup.TransferOffline
	for exchanged, to := range map[string]string{"vm/parent": "../other/parent", "vm": "other"} {
		b.must(errors.Join(os.Rename(in(exchanged), in("moved")), os.Symlink(to, in(exchanged))))
		job, err := b.images.PrepareJob(b.Context(), "vm", []offline.Disk{vda}, spec)
		if err == nil {
			t.Errorf("%s is a link, and is read", exchanged)
			_ = job.Close(b.Context())
		}
		b.must(errors.Join(os.Remove(in(exchanged)), os.Rename(in("moved"), in(exchanged))))
	}
	if made, err := os.ReadDir(in("other/job")); err != nil || len(made) > 0 {
		t.Errorf("made elsewhere: %v, %v", made, err)
	}
	b.must(b.prepare(spec, vda).Close(b.Context()))
}
