package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/user"
	"path/filepath"
	"syscall"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// This file fakes what a real host has: a libvirt and a guest that writes to its disks. The guest has no operating
// system and stays paused; its writes are injected into QEMU, which to QEMU's bitmaps is the same.

const guestName = "demo"

// The guest's disks, as numbers for writes.
const (
	vda = iota
	vdb
)

// writes are what a guest may do to its disks.
type writes []struct {
	disk         int
	value        byte
	offset, size int64
}

// disk is one disk of the guest. Its twin is a plain file that gets the same writes and never sees QEMU.
type disk struct {
	device     string
	size, data int64 // bytes: in all, and random ones at the start
	image      string
	twin       string
}

// host is a throw-away folder with a libvirt of its own in it, and one guest.
type host struct {
	dir    string
	nas    string // stands for a mount
	uri    string
	images *qcow2.Tool
	conn   *libvirt.Connect
	disks  []*disk
}

// newHost starts the guest. Close must be called, also to end what was begun before an error.
func newHost(ctx context.Context, images *qcow2.Tool) (*host, error) {
	h := &host{images: images}
	h.disks = []*disk{{device: "vda", size: 1 << 30, data: 256 << 20}, {device: "vdb", size: 256 << 20, data: 16 << 20}}
	if err := h.makeFolders(); err != nil {
		return h, err
	}
	for _, d := range h.disks {
		if err := h.fill(ctx, d); err != nil {
			return h, err
		}
	}
	if err := h.connect(); err != nil {
		return h, err
	}
	dom, err := h.conn.DomainDefineXML(h.xml())
	if err != nil {
		return h, err
	}
	defer func() { _ = dom.Free() }()
	return h, dom.CreateWithFlags(libvirt.DOMAIN_START_PAUSED)
}

func (h *host) makeFolders() (err error) {
	if err := giveUpRoot(); err != nil {
		return err
	}
	if h.dir, err = os.MkdirTemp("", "quickstart-"); err != nil { // short: the paths of sockets below it are limited
		return err
	}
	h.uri = "qemu:///embed?root=" + filepath.Join(h.dir, "libvirt")
	h.nas = filepath.Join(h.dir, "nas")
	if err := os.Chmod(h.dir, 0o755); err != nil { // QEMU may run as another user
		return err
	}
	etc := filepath.Join(h.dir, "libvirt", "etc")
	if err := errors.Join(os.Mkdir(h.nas, 0o755), os.MkdirAll(etc, 0o755)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(etc, "qemu.conf"), []byte(qemuConf()), 0o644)
}

// qemuConf keeps libvirt from starting a log daemon, which stays, and lets QEMU run as the user of this program.
func qemuConf() string {
	conf := "stdio_handler = \"file\"\n"
	if os.Geteuid() == 0 {
		conf += "user = \"+0\"\ngroup = \"+0\"\n"
	}
	return conf
}

// giveUpRoot makes root an ordinary user where the package that makes libvirt's own users isn't installed: libvirt as
// root runs QEMU as one of those.
func giveUpRoot() error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"libvirt-qemu", "qemu"} {
		if _, err := user.Lookup(name); err == nil {
			return nil
		}
	}
	const nobody = 65534
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody))
}

// connect opens libvirt's QEMU driver within this process: no daemon is needed.
func (h *host) connect() (err error) {
	// Without these libvirt prints warnings, also in processes that it forks, and leaves files in the user's home.
	for name, value := range map[string]string{"LIBVIRT_LOG_OUTPUTS": "4:file:/dev/null", "LIBVIRT_DEBUG": "4",
		"HOME": h.dir} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if err := libvirtjob.RunEventLoop(); err != nil {
		return err
	}
	h.conn, err = libvirt.NewConnect(h.uri)
	return err
}

// Close destroys the guest and removes the folder.
func (h *host) Close() error {
	var errs []error
	if h.conn != nil {
		errs = append(errs, h.destroy())
		_, err := h.conn.Close()
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(h.dir))...)
}

// destroy stops the guest and makes libvirt forget it, its checkpoints included.
func (h *host) destroy() error {
	dom, err := h.conn.LookupDomainByName(guestName)
	if errors.Is(err, libvirt.ERR_NO_DOMAIN) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dom.Free() }()
	persistent, err := dom.IsPersistent()
	if err != nil {
		return err
	}
	if err := dom.Destroy(); err != nil && !errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
		return err
	}
	if !persistent {
		return nil
	}
	return dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
}

// recreate destroys the guest and creates it again as a transient domain, as some cloud platforms have them: libvirt
// knows nothing of its past.
func (h *host) recreate() error {
	if err := h.destroy(); err != nil {
		return err
	}
	dom, err := h.conn.DomainCreateXML(h.xml(), libvirt.DOMAIN_START_PAUSED)
	if err != nil {
		return err
	}
	return dom.Free()
}

// fill makes the twin, with random bytes at its start, and the image as a copy of it.
func (h *host) fill(ctx context.Context, d *disk) error {
	d.twin, d.image = filepath.Join(h.dir, d.device+".twin"), filepath.Join(h.dir, d.device+".qcow2")
	f, err := os.Create(d.twin)
	if err != nil {
		return err
	}
	var seed [32]byte
	copy(seed[:], d.device)
	_, err = io.CopyN(f, rand.NewChaCha8(seed), d.data)
	if err := errors.Join(err, f.Truncate(d.size), f.Close()); err != nil {
		return err
	}
	return h.images.Convert(ctx, d.twin, d.image, qcow2.ConvertOptions{SourceFormat: qcow2.FormatRaw})
}

// write lets the guest write, to the twins as well.
func (h *host) write(all writes) error {
	dom, err := h.conn.LookupDomainByName(guestName)
	if err != nil {
		return err
	}
	defer func() { _ = dom.Free() }()
	for _, w := range all {
		command := fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "write -P %#x %d %d"`,
			w.disk, w.value, w.offset, w.size)
		answer, err := dom.QemuMonitorCommand(command, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_HMP)
		if err == nil && answer != "" { // QEMU reports errors of these commands as text
			err = fmt.Errorf("%s: %s", command, answer)
		}
		if err == nil {
			err = writeAt(h.disks[w.disk].twin, bytes.Repeat([]byte{w.value}, int(w.size)), w.offset)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeAt(path string, data []byte, offset int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, offset)
	return errors.Join(err, f.Close())
}

// copyDisks copies what the disks hold now to NAME.DEVICE.qcow2, without asking QEMU.
func (h *host) copyDisks(ctx context.Context, name string) error {
	for _, d := range h.disks {
		if err := h.images.Convert(ctx, d.twin, h.copyOf(name, d.device),
			qcow2.ConvertOptions{SourceFormat: qcow2.FormatRaw}); err != nil {
			return err
		}
	}
	return nil
}

func (h *host) copyOf(name, device string) string {
	return filepath.Join(h.dir, name+"."+device+".qcow2")
}

func (h *host) xml() string {
	kind := "qemu" // emulation
	if h.accelerated() {
		kind = "kvm"
	}
	var disks string
	for _, d := range h.disks {
		disks += fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>"+
			"<target dev='%s' bus='virtio'/></disk>", d.image, d.device)
	}
	return fmt.Sprintf(`<domain type='%s'><name>%s</name><uuid>6f1c1c0e-54fd-4e39-9b62-6a3a3b1d0d11</uuid>
<memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/><apic/></features>
<devices>%s<controller type='usb' model='none'/><memballoon model='none'/><video><model type='none'/></video>
</devices></domain>`,
		kind, guestName, disks)
}

// accelerated says whether libvirt offers KVM and this process may use it.
func (h *host) accelerated() bool {
	if _, err := h.conn.GetDomainCapabilities("", "x86_64", "pc", "kvm", 0); err != nil {
		return false
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	return err == nil && f.Close() == nil
}
