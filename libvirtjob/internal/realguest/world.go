//go:build cgo

package realguest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/executortest"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// World is a guest of QEMU in the hands of executortest, under an executor of libvirtjob.
type World struct {
	tb      testing.TB
	g       *Guest
	tool    *qcow2.Tool
	exec    *libvirtjob.Executor
	devices []string
	made    int
}

var (
	_ executortest.World       = (*World)(nil)
	_ executortest.Grower      = (*World)(nil)
	_ executortest.Snapshotter = (*World)(nil)
	_ executortest.Plugger     = (*World)(nil)
	_ executortest.Meddler     = (*World)(nil)
	_ executortest.Filler      = (*World)(nil)
	_ executortest.AgentSwitch = (*World)(nil)
)

// NewWorld makes a world on the test's host. What Close leaves goes with the test.
func NewWorld(tb testing.TB) *World {
	tb.Helper()
	h := Need(tb)
	w := &World{tb: panicking{tb}}
	var err error
	if w.tool, err = qcow2.New(qcow2.Config{}); err != nil {
		tb.Fatal(err)
	}
	if w.exec, err = libvirtjob.New(h.Conn, libvirtjob.Config{Images: w.tool,
		ProgressInterval: 20 * time.Millisecond}); err != nil {
		tb.Fatal(err)
	}
	return w
}

// PullWorld is a World whose running guest is backed up by pull.
type PullWorld struct{ *World }

var _ executortest.Puller = PullWorld{}

// Scratch implements executortest.Puller.
func (w PullWorld) Scratch() (string, error) {
	dir, err := os.MkdirTemp("", "s-")
	w.tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir, err
}

// failed is a failure of a Guest that a World returns.
type failed struct{ text string }

// panicking turns the failures of a Guest into panics of its methods, and those into errors of a World's.
type panicking struct{ testing.TB }

func (p panicking) Fatalf(format string, args ...any) { panic(failed{fmt.Sprintf(format, args...)}) }
func (p panicking) Fatal(args ...any)                 { panic(failed{fmt.Sprint(args...)}) }

// try returns the failure of what f does to a guest.
func try(f func()) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case failed:
			err = errors.New(r.text)
		default:
			panic(r)
		}
	}()
	f()
	return nil
}

// Executor implements executortest.World.
func (w *World) Executor() kvmbackup.Executor { return w.exec }

// Images implements executortest.World.
func (w *World) Images() engine.Images { return w.tool }

// Share implements executortest.World.
func (w *World) Share() (string, error) {
	dir := w.tb.TempDir()
	return dir, os.Chmod(dir, 0o777)
}

// Make implements executortest.World.
func (w *World) Make(d executortest.Domain) (name string, err error) {
	err = try(func() { w.g = Start(w.tb, w.config(d)) })
	if err != nil {
		return "", err
	}
	return w.g.Name, nil
}

// MakeWithAgent implements executortest.AgentSwitch, with a guest as Boot starts one.
func (w *World) MakeWithAgent(d executortest.Domain) (name string, err error) {
	if err := try(func() { w.g = Boot(w.tb, w.config(d)) }); err != nil {
		return "", err
	}
	return w.g.Name, nil
}

func (w *World) config(d executortest.Domain) Config {
	cfg := Config{Persistent: !d.Transient}
	for _, disk := range d.Disks {
		cfg.Disks = append(cfg.Disks, Disk{Device: disk.Device, SizeBytes: disk.SizeBytes})
		w.devices = append(w.devices, disk.Device)
	}
	return cfg
}

// Start implements executortest.World. It waits for libvirt to forget a transient guest that went by itself.
func (w *World) Start() error {
	var started error
	err := try(func() {
		lab.Eventually(w.tb, "the guest's predecessor is gone", func() bool {
			started = w.g.TryCreate()
			return !errors.Is(started, libvirt.ERR_OPERATION_FAILED)
		})
	})
	return errors.Join(err, started)
}

// Stop implements executortest.World.
func (w *World) Stop() error { return try(w.g.Destroy) }

// Kill implements executortest.World.
func (w *World) Kill() error {
	return try(func() {
		for _, device := range w.devices {
			w.g.Flush(device)
		}
		w.g.Kill9()
	})
}

// Pause implements executortest.World.
func (w *World) Pause() error { return try(w.g.Suspend) }

// Resume implements executortest.World. libvirt refuses to resume what runs.
func (w *World) Resume() error {
	return try(func() {
		state, _, err := w.g.Domain().GetState()
		if w.g.must("state", err); state != libvirt.DOMAIN_RUNNING {
			w.g.Resume()
		}
	})
}

// Source implements executortest.World.
func (w *World) Source(device string) (path string, err error) {
	err = try(func() { path = w.g.Image(device) })
	return path, err
}

// Write implements executortest.World.
func (w *World) Write(device string, pattern byte, offset, length int64) error {
	return try(func() { w.g.Write(device, pattern, offset, length) })
}

// Zero implements executortest.World.
func (w *World) Zero(device string, offset, length int64) error {
	return try(func() { w.g.WriteZeroes(device, offset, length) })
}

// FinishJob implements executortest.World: it waits for QEMU.
func (w *World) FinishJob() error {
	return try(func() {
		lab.Eventually(w.tb, "the job has ended", func() bool {
			st, err := w.exec.Inspect(w.tb.Context(), kvmbackup.DomainRef{Name: w.g.Name})
			return errors.Is(err, kvmbackup.ErrNoDomain) || err == nil && st.Job == kvmbackup.JobNone
		})
	})
}

// Close implements executortest.World.
func (w *World) Close() error {
	err := w.exec.Close()
	if w.g == nil {
		return err
	}
	dom, lookup := w.g.Host.Conn.LookupDomainByName(w.g.Name)
	if lookup != nil {
		return err // it is gone already
	}
	_ = dom.Destroy() // it may be off
	return errors.Join(err, dom.Free())
}

// Grow implements executortest.Grower.
func (w *World) Grow(device string, sizeBytes int64) error {
	return w.g.Domain().BlockResize(device, uint64(sizeBytes), libvirt.DOMAIN_BLOCK_RESIZE_BYTES)
}

// Snapshot implements executortest.Snapshotter.
func (w *World) Snapshot(device string) error {
	w.made++
	return try(func() { w.g.Snapshot(device, fmt.Sprintf("layer-%d", w.made)) })
}

// Commit implements executortest.Snapshotter.
func (w *World) Commit(device string) error { return try(func() { w.g.Commit(device) }) }

// Attach implements executortest.Plugger.
func (w *World) Attach(d executortest.Disk, source string) error {
	if source == "" {
		w.made++
		source = filepath.Join(w.g.Dir, fmt.Sprintf("new-%d.qcow2", w.made))
		if err := errors.Join(w.run("qemu-img", "create", "-q", "-f", "qcow2", source, fmt.Sprint(d.SizeBytes)),
			os.Chmod(source, 0o666)); err != nil {
			return err
		}
	}
	w.devices = append(w.devices, d.Device)
	return try(func() { w.g.AttachDisk(Disk{Device: d.Device, Path: source, SizeBytes: d.SizeBytes}) })
}

// Detach implements executortest.Plugger.
func (w *World) Detach(device string) (string, error) {
	source, err := w.Source(device)
	if err != nil {
		return "", err
	}
	w.devices = slices.DeleteFunc(w.devices, func(d string) bool { return d == device })
	return source, try(func() { w.g.DetachDisk(device) })
}

// AddCheckpoint implements executortest.Meddler.
func (w *World) AddCheckpoint(name string, devices ...string) error {
	def := libvirtxml.DomainCheckpoint{Name: name, Disks: &libvirtxml.DomainCheckpointDisks{}}
	for _, device := range w.devices {
		mode := "no"
		if slices.Contains(devices, device) {
			mode = "bitmap"
		}
		def.Disks.Disks = append(def.Disks.Disks, libvirtxml.DomainCheckpointDisk{Name: device, Checkpoint: mode})
	}
	text, err := def.Marshal()
	if err != nil {
		return err
	}
	cp, err := w.g.Domain().CreateCheckpointXML(text, 0)
	if err != nil {
		return err
	}
	return cp.Free()
}

// RemoveCheckpoint implements executortest.Meddler.
func (w *World) RemoveCheckpoint(name string, metadataOnly bool) error {
	cp, err := w.g.Domain().CheckpointLookupByName(name, 0)
	if err != nil {
		return err
	}
	var flags libvirt.DomainCheckpointDeleteFlags
	if metadataOnly {
		flags = libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
	}
	return errors.Join(cp.Delete(flags), cp.Free())
}

// AddBitmap implements executortest.Meddler.
func (w *World) AddBitmap(device, name string) error {
	if !w.g.Running() {
		source, err := w.Source(device)
		if err != nil {
			return err
		}
		return w.run("qemu-img", "bitmap", "--add", source, name)
	}
	return try(func() {
		w.g.QMP("block-dirty-bitmap-add", map[string]any{"node": w.g.TopNode(device), "name": name, "persistent": true}, nil)
	})
}

// RemoveBitmap implements executortest.Meddler.
func (w *World) RemoveBitmap(device, name string) error {
	return try(func() {
		w.g.QMP("block-dirty-bitmap-remove", map[string]any{"node": w.g.TopNode(device), "name": name}, nil)
	})
}

// SmallShare implements executortest.Filler: a file system in memory, which root alone can mount.
func (w *World) SmallShare() (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("not root: a file system that can be filled can't be mounted")
	}
	dir, err := w.Share()
	if err != nil {
		return "", err
	}
	if err := w.run("mount", "-t", "tmpfs", "-o", "size=64m,mode=777", "tmpfs", dir); err != nil {
		return "", err
	}
	w.tb.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir, nil
}

// Fill implements executortest.Filler.
func (w *World) Fill(dir string) error {
	var space syscall.Statfs_t
	if err := syscall.Statfs(dir, &space); err != nil {
		return err
	}
	f, err := os.Create(hog(dir))
	if err != nil {
		return err
	}
	return errors.Join(syscall.Fallocate(int(f.Fd()), 0, 0, int64(space.Bavail)*space.Bsize), f.Close())
}

// Free implements executortest.Filler.
func (w *World) Free(dir string) error {
	if err := os.Remove(hog(dir)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func hog(dir string) string { return filepath.Join(dir, "hog") }

func (w *World) run(name string, args ...string) error {
	out, err := exec.CommandContext(w.tb.Context(), name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, out)
	}
	return nil
}
