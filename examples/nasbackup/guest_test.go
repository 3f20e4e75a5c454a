package main

import (
	"errors"
	"flag"
	"fmt"
	"html"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
)

// The end-to-end test runs the program as a process of its own, as it is one libvirt root to one process, and in
// between this test binary as the guest's handler. asEnv says which of the two a process is.
const asEnv = "NASBACKUP_TEST_AS"

func TestMain(m *testing.M) {
	time.Local = time.UTC // the golden files have local times
	switch os.Getenv(asEnv) {
	case "program":
		if err := giveUpRoot(); err != nil {
			panic(err)
		}
		main()
	case "guest":
		if err := errors.Join(giveUpRoot(), handleGuest(os.Args[1], os.Args[2], os.Args[3:])); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		_ = flag.Set("test.parallel", "4") // the tests with a lab mostly wait for processes to start and end
		os.Exit(testpg.Main(m))
	}
}

// giveUpRoot makes root an ordinary user where the package that makes libvirt's own users isn't installed: libvirt as
// root runs QEMU as one of those.
func giveUpRoot() error {
	if !needsNobody() {
		return nil
	}
	return errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody))
}

const nobody = 65534

func needsNobody() bool {
	for _, name := range []string{"libvirt-qemu", "qemu"} {
		if _, err := user.Lookup(name); err == nil {
			return false
		}
	}
	return os.Geteuid() == 0
}

// handleGuest does one thing with the guest of a folder: start, start it with UEFI, stop it and all others, define NAME
// UUID (another with the same disks), boot NAME (another that is defined), xml NAME, write DISK PATTERN OFFSET LENGTH,
// or spread DISK PATTERN OFFSET LENGTH END, which writes at every other LENGTH from OFFSET to END. The guest lives on
// after this process.
func handleGuest(dir, action string, args []string) error {
	if err := libvirtjob.RunEventLoop(); err != nil {
		return err
	}
	conn, err := libvirt.NewConnect(rootURI(dir))
	if err != nil {
		return err
	}
	defer func() { _, _ = conn.Close() }()
	switch action {
	case "start", "start-uefi":
		return startGuest(conn, dir, action == "start-uefi")
	case "stop":
		return stopGuests(conn)
	case "define":
		dom, err := defineGuest(conn, dir, args[0], args[1], "", "")
		if err != nil {
			return err
		}
		return dom.Free()
	case "boot", "xml":
		return otherGuest(conn, action, args[0])
	}
	dom, err := conn.LookupDomainByName(guestName)
	if err != nil {
		return err
	}
	defer func() { _ = dom.Free() }()
	if action == "spread" {
		return spreadGuest(dom, args)
	}
	return writeGuest(dom, args)
}

func stopGuests(conn *libvirt.Connect) error {
	doms, err := conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
	for _, dom := range doms {
		// A process that took the domain over says "not running" although it did stop it.
		if stopErr := dom.Destroy(); !errors.Is(stopErr, libvirt.ERR_OPERATION_INVALID) {
			err = errors.Join(err, stopErr)
		}
		err = errors.Join(err, dom.Free())
	}
	return err
}

// otherGuest starts a domain, paused, or prints its definition; nothing for one that isn't defined.
func otherGuest(conn *libvirt.Connect, action, name string) error {
	dom, err := conn.LookupDomainByName(name)
	if errors.Is(err, libvirt.ERR_NO_DOMAIN) && action == "xml" {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = dom.Free() }()
	if action == "boot" {
		return dom.CreateWithFlags(libvirt.DOMAIN_START_PAUSED)
	}
	text, err := dom.GetXMLDesc(0)
	fmt.Print(text)
	return err
}

func spreadGuest(dom *libvirt.Domain, args []string) error {
	var numbers [3]int // offset, length, end
	for i := range numbers {
		n, err := strconv.Atoi(args[2+i])
		if err != nil {
			return err
		}
		numbers[i] = n
	}
	for at := numbers[0]; at < numbers[2]; at += 2 * numbers[1] {
		if err := writeGuest(dom, []string{args[0], args[1], strconv.Itoa(at), args[3]}); err != nil {
			return err
		}
	}
	return nil
}

const (
	guestName = "vm1"
	guestUUID = "0b0e7a3c-8a3c-4f0e-9a53-6f6b3cf1a001"
	guestMAC  = "52:54:00:0a:0b:0c"
)

func rootURI(dir string) string { return "qemu:///embed?root=" + filepath.Join(dir, "libvirt") }

// startGuest starts it paused: it has no system. With UEFI it also has a network card, and a port to a file of the
// host.
func startGuest(conn *libvirt.Connect, dir string, uefi bool) error {
	osXML, devices := "", ""
	if uefi {
		osXML = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>" +
			"<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>" + filepath.Join(dir, guestName+"_VARS.fd") + "</nvram>"
		devices = "<interface type='user'><mac address='" + guestMAC + "'/></interface>" +
			"<serial type='file'><source path='" + filepath.Join(dir, "serial.log") + "'/></serial>"
	}
	dom, err := defineGuest(conn, dir, guestName, guestUUID, osXML, devices)
	if err != nil {
		return err
	}
	defer func() { _ = dom.Free() }()
	return dom.CreateWithFlags(libvirt.DOMAIN_START_PAUSED)
}

func defineGuest(conn *libvirt.Connect, dir, name, uuid, osXML, devices string) (*libvirt.Domain, error) {
	kind := "qemu"
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		kind = "kvm"
		_ = f.Close()
	}
	var disks string
	for _, device := range []string{"vda", "vdb"} {
		disks += fmt.Sprintf("<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>"+
			"<target dev='%s' bus='virtio'/><serial>serial-%s</serial></disk>", filepath.Join(dir, device+".qcow2"),
			device, device)
	}
	return conn.DomainDefineXML(fmt.Sprintf(`<domain type='%s'><name>%s</name><uuid>%s</uuid>
<memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type>%s</os><features><acpi/><apic/></features>
<devices>%s%s
<controller type='usb' model='none'/><memballoon model='none'/><video><model type='none'/></video></devices></domain>`,
		kind, html.EscapeString(name), uuid, osXML, disks, devices))
}

func writeGuest(dom *libvirt.Domain, args []string) error {
	disk, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	command := fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "write -P %s %s %s"`, disk,
		args[1], args[2], args[3])
	answer, err := dom.QemuMonitorCommand(command, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_HMP)
	if err == nil && answer != "" {
		err = fmt.Errorf("%s: %s", command, answer)
	}
	return err
}
