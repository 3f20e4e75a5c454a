package differential_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/realguest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

func TestMain(m *testing.M) { os.Exit(realguest.Main(m)) }

// realHost is a guest of QEMU.
type realHost struct {
	tb        testing.TB
	g         *realguest.Guest
	tool      *qcow2.Tool
	exec      *libvirtjob.Executor
	transient bool
	small     bool // the repositories are file systems that can be filled
	devices   []string
	made      int
}

// panicking turns the harness's failures into ours, which can be printed with their history.
type panicking struct{ testing.TB }

func (p panicking) Fatalf(format string, args ...any) { panic(failure{fmt.Sprintf(format, args...)}) }
func (p panicking) Fatal(args ...any)                 { panic(failure{fmt.Sprint(args...)}) }

func newReal(t *testing.T, size int64, transient, small bool) *realHost {
	t.Helper()
	realguest.Need(t)
	if small {
		realguest.NeedRoot(t)
	}
	r := &realHost{tb: panicking{t}, transient: transient, small: small, devices: []string{"vda", "sda"}}
	cfg := realguest.Config{Persistent: !transient}
	for _, device := range r.devices {
		cfg.Disks = append(cfg.Disks, realguest.Disk{Device: device, SizeBytes: size})
	}
	r.g = realguest.Start(r.tb, cfg)
	var err error
	r.tool, err = qcow2.New(qcow2.Config{})
	must(err)
	r.exec, err = libvirtjob.New(r.g.Host.Conn, libvirtjob.Config{Images: r.tool, ProgressInterval: 20 * time.Millisecond})
	must(err)
	return r
}

func (r *realHost) vmName() string               { return r.g.Name }
func (r *realHost) executor() kvmbackup.Executor { return r.exec }
func (r *realHost) images() engine.Images        { return r.tool }
func (r *realHost) destroy()                     { r.g.Destroy() }
func (r *realHost) source(device string) string  { return r.g.Image(device) }
func (r *realHost) commit(device string)         { r.g.Commit(device) }
func (r *realHost) pause()                       { r.g.Suspend() }
func (r *realHost) resume()                      { r.g.Resume() }

// finishJob waits for QEMU.
func (r *realHost) finishJob() {
	realguest.Eventually(r.tb, "the job has ended", func() bool {
		st, err := r.exec.Inspect(r.tb.Context(), kvmbackup.DomainRef{Name: r.g.Name})
		return errors.Is(err, kvmbackup.ErrNoDomain) || err == nil && st.Job == kvmbackup.JobNone
	})
}

func (r *realHost) mount(dir string) {
	if !r.small {
		return
	}
	r.run("mount", "-t", "tmpfs", "-o", "size=64m,mode=777", "tmpfs", dir)
	r.tb.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

func (r *realHost) fill(dir string) {
	var space syscall.Statfs_t
	must(syscall.Statfs(dir, &space))
	f, err := os.Create(hog(dir))
	must(err)
	must(syscall.Fallocate(int(f.Fd()), 0, 0, int64(space.Bavail)*space.Bsize))
	must(f.Close())
}

func (r *realHost) free(dir string) {
	if err := os.Remove(hog(dir)); !errors.Is(err, os.ErrNotExist) {
		must(err)
	}
}

func hog(dir string) string { return filepath.Join(dir, "hog") }

// start waits for libvirt to forget a transient guest that went by itself.
func (r *realHost) start() {
	var err error
	realguest.Eventually(r.tb, "the guest's predecessor is gone", func() bool {
		err = r.g.TryCreate()
		return !errors.Is(err, libvirt.ERR_OPERATION_FAILED)
	})
	must(err)
}

// crash kills QEMU. What the guest wrote is flushed first: the simulator loses no writes.
func (r *realHost) crash() {
	for _, device := range r.devices {
		command := fmt.Sprintf("qemu-io %s flush", r.g.TopNode(device))
		out, err := r.g.Domain().QemuMonitorCommand(command, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_HMP)
		must(err)
		if strings.TrimSpace(out) != "" {
			panic(failure{command + ": " + out})
		}
	}
	r.g.Kill9()
}

func (r *realHost) end() {
	_ = r.exec.Close()
	dom, err := r.g.Host.Conn.LookupDomainByName(r.g.Name)
	if err != nil {
		return
	}
	_ = dom.Destroy()
	_ = dom.Free()
}

func (r *realHost) write(device string, pattern byte, offset, length int64) {
	r.g.Write(device, pattern, offset, length)
}

func (r *realHost) zero(device string, offset, length int64) { r.g.WriteZeroes(device, offset, length) }

func (r *realHost) attach(device, source string) {
	if source == "" {
		r.made++
		source = filepath.Join(r.g.Dir, fmt.Sprintf("new-%d.qcow2", r.made))
		r.run("qemu-img", "create", "-q", "-f", "qcow2", source, fmt.Sprint(diskSize))
		must(os.Chmod(source, 0o666))
	}
	r.g.AttachDisk(realguest.Disk{Device: device, Path: source, SizeBytes: diskSize})
	r.devices = append(r.devices, device)
}

func (r *realHost) detach(device string) string {
	source := r.source(device)
	r.g.DetachDisk(device)
	r.devices = []string{"vda"}
	return source
}

func (r *realHost) grow(device string, size int64) error {
	return r.g.Domain().BlockResize(device, uint64(size), libvirt.DOMAIN_BLOCK_RESIZE_BYTES)
}

func (r *realHost) snapshot(device string) {
	r.made++
	r.g.Snapshot(device, fmt.Sprintf("layer-%d", r.made))
}

// checkpoint makes one as another program would.
func (r *realHost) checkpoint(name string, devices ...string) {
	def := libvirtxml.DomainCheckpoint{Name: name, Disks: &libvirtxml.DomainCheckpointDisks{}}
	for _, device := range r.devices {
		mode := "no"
		for _, d := range devices {
			if d == device {
				mode = "bitmap"
			}
		}
		def.Disks.Disks = append(def.Disks.Disks, libvirtxml.DomainCheckpointDisk{Name: device, Checkpoint: mode})
	}
	text, err := def.Marshal()
	must(err)
	cp, err := r.g.Domain().CreateCheckpointXML(text, 0)
	must(err)
	must(cp.Free())
}

func (r *realHost) bitmap(device, name string, running bool) {
	if !running {
		r.run("qemu-img", "bitmap", "--add", r.source(device), name)
		return
	}
	r.g.QMP("block-dirty-bitmap-add", map[string]any{"node": r.g.TopNode(device), "name": name, "persistent": true}, nil)
}

func (r *realHost) dropBitmap(device, name string) {
	r.g.QMP("block-dirty-bitmap-remove", map[string]any{"node": r.g.TopNode(device), "name": name}, nil)
}

func (r *realHost) dropCheckpoint(name string, metadataOnly bool) {
	cp, err := r.g.Domain().CheckpointLookupByName(name, 0)
	must(err)
	var flags libvirt.DomainCheckpointDeleteFlags
	if metadataOnly {
		flags = libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
	}
	must(cp.Delete(flags))
	must(cp.Free())
}

func (r *realHost) run(name string, args ...string) {
	out, err := exec.CommandContext(r.tb.Context(), name, args...).CombinedOutput()
	if err != nil {
		panic(failure{fmt.Sprintf("%s %q: %v: %s", name, args, err, out)})
	}
}
