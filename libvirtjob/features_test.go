package libvirtjob_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// hasFeature is what the executor says.
func (b *bench) hasFeature(name string) libvirtjob.Availability {
	b.Helper()
	v, err := b.exec.Versions(b.ctx)
	b.must(err)
	i := slices.IndexFunc(v.Features, func(f libvirtjob.Feature) bool { return f.Name == name })
	if i < 0 {
		b.Fatalf("no feature %q in %+v", name, v)
	}
	return v.Features[i].Has
}

// TestVersions: what is there is named; what can be asked for is known.
func TestVersions(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	v, err := b.exec.Versions(b.ctx)
	b.must(err)
	for _, version := range []string{v.Libvirt, v.QEMU, v.QEMUImg} {
		if !regexp.MustCompile(`^\d+\.\d+\.\d+`).MatchString(version) {
			t.Errorf("version %q in %+v", version, v)
		}
	}
	for _, f := range v.Features {
		if f.Has != libvirtjob.Available && f.Has != libvirtjob.Unavailable || f.Detail == "" {
			t.Errorf("%+v", f)
		}
	}
	for _, name := range []string{"stopped", "nvram"} { // of what the tests need
		if has := b.hasFeature(name); has != libvirtjob.Available {
			t.Errorf("%s: %s", name, has)
		}
	}
	if got := b.inspect(); got.State != kvmbackup.DomainPaused || got.Job != kvmbackup.JobNone {
		t.Errorf("the guest that was asked about is %+v", got)
	}
	t.Log(v)
}

// powerOff is a boot sector that switches the machine off: out 0x604, 0x2000 (ACPI's sleep state 5 on this machine).
var powerOff = []byte{0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd}

// TestGuestShutsDownDuringBackup: the backup is whole where libvirt keeps the domain for it, and fails where it
// doesn't.
func TestGuestShutsDownDuringBackup(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: bigDisks("vda"), Persistent: true})
	b.backup("c0", "", full("vda"))
	b.spread("vda", 0x22)
	for i, c := range powerOff {
		b.guest.Write("vda", c, int64(i), 1)
	}
	b.guest.Write("vda", 0x55, 510, 1)
	b.guest.Write("vda", 0xaa, 511, 1)
	keeps := b.hasFeature("keep-on-shutdown") == libvirtjob.Available
	job, spec := b.slow("c1", "c0", incr("vda"))
	b.guest.Resume()
	state := func() libvirt.DomainState {
		state, _, err := b.guest.Domain().GetState()
		b.must(err)
		return state
	}
	if keeps { // libvirt resets and pauses it
		wait(t, "the guest has switched itself off", func() bool { return state() == libvirt.DOMAIN_PAUSED })
		if got := b.inspect(); got.Job != kvmbackup.JobBackup || got.PausedByError {
			t.Errorf("the domain that is kept is %+v", got)
		}
		b.must(job.SetBandwidth(b.ctx, 0))
	}
	_, err := job.Wait(b.ctx, nil)
	if !keeps {
		b.wantErr(err, kvmbackup.ErrJobFailed) // libvirt may say so before it has seen QEMU's end
		return
	}
	b.must(err)
	wait(t, "the domain is off", func() bool { return !b.guest.Running() })
	b.keep(spec)
	b.wantBitmaps("vda", "c0", "c1")
}

// wait polls for what nothing tells of.
func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	limit, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-limit:
			t.Fatalf("after a minute: not %s", what)
		case <-tick.C:
		}
	}
}

// TestLayerLimit: a domain starts on a chain of as many files, and where the limit is this libvirt's own, on no more.
func TestLayerLimit(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	limit, err := b.exec.LayerLimit(b.ctx)
	b.must(err)
	const enough = 40
	most := min(limit, enough)
	top := ""
	for i := range most + 1 {
		args := []string{"create", "-q", "-f", "qcow2"}
		if top != "" {
			args = append(args, "-b", top, "-F", "qcow2")
		}
		next := filepath.Join(b.dir, fmt.Sprintf("layer-%d", i))
		if out, err := exec.Command("qemu-img", append(args, next, "1M")...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		top = next
	}
	starts := func(image string) bool {
		name := b.guest.Name + "-" + filepath.Base(image)
		dom, err := b.guest.Host.Conn.DomainCreateXML(fmt.Sprintf(`<domain type='qemu'><name>%s</name>
<memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>
<target dev='vda' bus='virtio'/></disk><controller type='usb' model='none'/></devices></domain>`,
			name, image), libvirt.DOMAIN_START_PAUSED)
		if err != nil {
			t.Logf("%s: %v", filepath.Base(image), err)
			return false
		}
		_ = dom.Destroy()
		_ = dom.Free()
		return true
	}
	if !starts(filepath.Join(b.dir, fmt.Sprintf("layer-%d", most-1))) {
		t.Errorf("no domain starts on a chain of %d files", most)
	}
	if limit < enough && starts(top) {
		t.Errorf("a domain starts on a chain of %d files, the limit is %d", most+1, limit)
	}
}
