package libvirtjob_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// loopDevice returns a block device over a new sparse file.
func loopDevice(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "loop")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	return lab.LoopDevice(t, file)
}

func TestKindsOfDisks(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	iso := filepath.Join(t.TempDir(), "cd.iso")
	if err := os.WriteFile(iso, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	list := []realguest.Disk{
		{Device: "vda", Serial: "serial-1"},
		{Device: "vdb", Format: "raw"},
		{Device: "vdc", Options: "compat=0.10"},
		{Device: "vdd", ReadOnly: true},
		{Device: "sda", Kind: "cdrom", Format: "raw", Path: iso, ReadOnly: true},
		{Device: "sdb", Kind: "cdrom", Empty: true, ReadOnly: true},
		{Device: "fda", Kind: "floppy", Empty: true},
	}
	want := map[string]kvmbackup.DiskStatus{
		"vda": {Format: "qcow2", Serial: "serial-1", VirtualSize: 64 << 20},
		"vdb": {Format: "raw", Untrackable: "raw", VirtualSize: 64 << 20},
		"vdc": {Format: "qcow2", Untrackable: "qcow2 version 2", VirtualSize: 64 << 20},
		"vdd": {Format: "qcow2", Skip: "read-only"},
		"sda": {Format: "raw", Skip: "cdrom"},
		"sdb": {Skip: "cdrom"},
		"fda": {Skip: "floppy"},
	}
	if os.Geteuid() == 0 {
		list = append(list, realguest.Disk{Device: "vde", Block: true, Path: loopDevice(t, 80<<20)},
			realguest.Disk{Device: "vdf", Block: true, Format: "raw", Path: loopDevice(t, 64<<20)})
		want["vde"] = kvmbackup.DiskStatus{Format: "qcow2", VirtualSize: 64 << 20}
		want["vdf"] = kvmbackup.DiskStatus{Format: "raw", Untrackable: "raw", VirtualSize: 64 << 20}
	}
	b := newBench(t, realguest.Config{Disks: list, Persistent: true})
	for _, device := range []string{"vda", "vdb", "vdc", "vde", "vdf"} {
		if _, ok := want[device]; ok {
			b.guest.Write(device, 0x11, 0, 2<<20)
		}
	}
	volumes := []kvmbackup.JobVolume{full("vda"), untracked(full("vdb")), untracked(full("vdc"))}
	if _, ok := want["vde"]; ok {
		volumes = append(volumes, full("vde"), untracked(full("vdf")))
	}
	b.wantDisks(want)
	b.backup("c1", "", volumes...)
	b.guest.Write("vda", 0x22, 0, 1<<20)
	volumes[0] = incr("vda")
	b.backup("c2", "c1", volumes...)
	// What can't be tracked is refused by libvirt, and nothing is left.
	volumes[1].Tracked = true
	job, err := b.exec.PrepareJob(b.ctx, b.ref, b.spec("c3", "c2", volumes...))
	b.must(err)
	b.wantErr(job.Begin(b.ctx), kvmbackup.ErrUnsupported)
	b.must(job.Close(b.ctx))
	b.wantCheckpoints("c1", "c2")

	b.guest.Destroy()
	volumes[1].Tracked = false
	b.wantDisks(want)
	b.backup("c4", "c2", volumes...)
	b.drop("c1")
	b.drop("c2")
	b.wantBitmaps("vda", "c4")
}

// wantDisks compares what a disk's definition decides.
func (b *bench) wantDisks(want map[string]kvmbackup.DiskStatus) {
	b.Helper()
	got := b.inspect().Disks
	if len(got) != len(want) {
		b.Errorf("%d disks, want %d", len(got), len(want))
	}
	for _, d := range got {
		w := want[d.Device]
		if w.Format != "" && d.Format != w.Format || d.Skip != w.Skip || d.Untrackable != w.Untrackable ||
			d.Serial != w.Serial || d.VirtualSize != w.VirtualSize || d.BitmapsUnknown != "" {
			b.Errorf("disk is %+v, want %+v", d, w)
		}
		if d.Skip == "" && (d.AllocatedBytes < 2<<20 || d.AllocatedBytes > d.VirtualSize) {
			b.Errorf("%s has %d bytes allocated", d.Device, d.AllocatedBytes)
		}
		if d.Skip == "" && d.Source != b.guest.Image(d.Device) {
			b.Errorf("source of %s is %q", d.Device, d.Source)
		}
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	if got := b.inspect(); got.State != kvmbackup.DomainPaused || got.PausedByError || got.Persistent ||
		got.Job != kvmbackup.JobNone {
		t.Errorf("status is %+v", got)
	}
	b.must(b.exec.Resume(b.ctx, b.ref))
	if got := b.inspect(); got.State != kvmbackup.DomainRunning {
		t.Errorf("status is %+v", got)
	}
	_, err := b.exec.Freeze(b.ctx, b.ref)
	b.wantErr(err, kvmbackup.ErrNoAgent)
	b.wantErr(b.exec.Thaw(b.ctx, b.ref), kvmbackup.ErrNoAgent)

	wrong := b.ref
	wrong.UUID = "11111111-2222-3333-4444-555555555555"
	_, err = b.exec.Inspect(b.ctx, wrong)
	b.wantErr(err, kvmbackup.ErrNoDomain)
	wrong.UUID = strings.ToUpper(b.guest.UUID)
	_, err = b.exec.Inspect(b.ctx, wrong)
	b.must(err)
}

// An active commit that waits for its pivot would keep a backup from beginning.
func TestBlockJob(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb")})
	b.backup("c1", "", full("vda"), full("vdb"))
	b.guest.Snapshot("vda", "s1")
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.guest.StartCommit("vda")
	status := b.inspect()
	if status.Job != kvmbackup.JobOther || !strings.Contains(status.JobDetail, "vda") {
		t.Errorf("status is %+v", status)
	}
	job, err := b.exec.PrepareJob(b.ctx, b.ref, b.spec("c2", "c1", incr("vda"), incr("vdb")))
	b.must(err)
	defer func() { _ = job.Close(context.Background()) }()
	b.wantErr(job.Begin(b.ctx), kvmbackup.ErrBusy)
	b.wantCheckpoints("c1")
}

func TestDefinition(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda"), Persistent: true})
	def, err := b.exec.Definition(b.ctx, b.ref, kvmbackup.DefinitionOptions{})
	b.must(err)
	if text := string(def.XML); !strings.Contains(text, b.guest.UUID) || strings.Contains(text, "<alias") ||
		def.NVRAM != nil {
		t.Errorf("definition is %s", text)
	}
}

func TestDefinitionWithNVRAM(t *testing.T) {
	t.Parallel()
	const code, vars = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
	if _, err := os.Stat(vars); err != nil {
		lab.Missing(t, err)
	}
	nvram := filepath.Join(t.TempDir(), "vars.fd")
	b := newBench(t, realguest.Config{
		Disks: disks("vda"), Persistent: true, Stopped: true,
		OSXML: "<loader readonly='yes' type='pflash'>" + code + "</loader><nvram template='" + vars + "'>" +
			nvram + "</nvram>",
		DevicesXML: "<graphics type='vnc' passwd='geheim'><listen type='socket'/></graphics>",
	})
	def, err := b.exec.Definition(b.ctx, b.ref, kvmbackup.DefinitionOptions{})
	b.must(err)
	if def.NVRAM != nil || def.NVRAMTemplate != vars || strings.Contains(string(def.XML), "geheim") {
		t.Errorf("before the first start: %d bytes, template %q", len(def.NVRAM), def.NVRAMTemplate)
	}
	b.guest.Create()
	def, err = b.exec.Definition(b.ctx, b.ref, kvmbackup.DefinitionOptions{Secrets: true})
	b.must(err)
	want, err := os.ReadFile(nvram)
	b.must(err)
	if len(want) == 0 || string(def.NVRAM) != string(want) || !strings.Contains(string(def.XML), "geheim") {
		t.Errorf("%d bytes of %d", len(def.NVRAM), len(want))
	}
}

// TestAllocatedAfterARestart: what a full copies is QEMU's figure of the images, not what was written since the start.
// A block device can't tell and counts as full.
func TestAllocatedAfterARestart(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	list := []realguest.Disk{{Device: "vda"}, {Device: "vdb", Format: "raw"}}
	if os.Geteuid() == 0 {
		list = append(list, realguest.Disk{Device: "vdc", Block: true, Path: loopDevice(t, 32<<20)},
			realguest.Disk{Device: "vdd", Block: true, Format: "raw", Path: loopDevice(t, 64<<20)})
	}
	b := newBench(t, realguest.Config{Disks: list, Persistent: true})
	for _, d := range list {
		b.guest.Write(d.Device, 0x11, 0, 5<<20)
	}
	b.backup("c1", "", full("vda"))
	b.guest.Write("vda", 0x22, 0, 3<<20)
	b.guest.Destroy()
	b.guest.Create()
	for _, d := range list {
		least, most := int64(5<<20), int64(16<<20)
		switch {
		case d.Block && d.Format == "raw":
			least, most = 64<<20, 64<<20
		case d.Block: // no more fits on it
			least, most = 32<<20, 32<<20
		}
		if got := b.disk(d.Device).AllocatedBytes; got < least || got > most {
			t.Errorf("%s (%+v) has %d bytes allocated, want %d to %d", d.Device, d, got, least, most)
		}
	}
	dirty, err := b.exec.DirtyBytes(b.ctx, b.ref, "c1")
	if b.must(err); dirty["vda"] != 3<<20 {
		t.Errorf("dirty bytes after the restart: %v", dirty)
	}
}

func TestInspectShareable(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Persistent: true, Disks: []realguest.Disk{
		{Device: "vda"}, {Device: "vdb", Format: "raw", Shareable: true},
	}})
	want := func(when string) {
		t.Helper()
		if b.disk("vda").Shareable || !b.disk("vdb").Shareable {
			t.Errorf("%s: the disks are %+v", when, b.inspect().Disks)
		}
	}
	want("running")
	b.guest.Destroy()
	want("stopped")
	b.must(b.guest.Domain().Undefine())
	b.ref.Disks = []kvmbackup.DiskRef{
		{Device: "vda", Source: b.guest.Image("vda"), Format: "qcow2"},
		{Device: "vdb", Source: b.guest.Image("vdb"), Format: "raw", Shareable: true},
	}
	want("described")
}
