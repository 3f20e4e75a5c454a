package crash_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

const (
	mib   = 1 << 20
	small = 8 * mib
	// big is so much that a job isn't through before its bandwidth is limited, which libvirt can do only after the begin.
	big = 64 << 30
)

// guest is a VM that processes hand on to one another: all that is known of it is in its folder and in libvirt.
// Beside each image is a model, a raw file with what the disk has to hold.
type guest struct {
	t         *testing.T
	host      *host
	conn      *connection
	kvm       bool
	name      string
	dir       string // of images and models
	devices   []string
	size      int64 // of each disk
	transient bool
	ran       bool // this process has started it
}

// openGuest makes the images on first use. Its callers define and start the domain.
func openGuest(t *testing.T, h *host, name, dir string, size int64, devices ...string) *guest {
	t.Helper()
	g := &guest{t: t, host: h, conn: h.Conn, kvm: h.Accelerated, name: name, dir: dir, size: size, devices: devices}
	if _, err := os.Stat(dir); err == nil {
		return g
	}
	g.must("make folder", os.MkdirAll(dir, 0o755))
	for _, d := range devices {
		g.tool("qemu-img", "create", "-q", "-f", "qcow2", g.image(d), fmt.Sprint(size))
		g.must("chmod", os.Chmod(g.image(d), 0o666))
		g.must("make model", os.WriteFile(g.model(d), nil, 0o644))
		g.must("make model", os.Truncate(g.model(d), size))
	}
	return g
}

func (g *guest) image(device string) string { return filepath.Join(g.dir, device+".qcow2") }

func (g *guest) model(device string) string { return filepath.Join(g.dir, device+".model") }

func (g *guest) must(step string, err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatalf("guest %s: %s: %v", g.name, step, err)
	}
}

func (g *guest) tool(name string, args ...string) []byte {
	g.t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(g.t.Context(), name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || name == "qemu-io" && bytes.Contains(out, []byte("failed")) {
		g.t.Fatalf("%s %q: %v: %s%s", name, args, err, out, stderr.String())
	}
	if stderr.Len() > 0 {
		g.t.Logf("%s %q: %s", name, args, stderr.String())
	}
	return out
}

func (g *guest) xml() string {
	kind := "qemu"
	if g.kvm {
		kind = "kvm"
	}
	var disks strings.Builder
	for _, d := range g.devices {
		fmt.Fprintf(&disks, "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/>"+
			"<target dev='%s' bus='virtio'/><alias name='ua-%s'/></disk>", g.image(d), d, d)
	}
	id := uuid.NewSHA1(uuid.NameSpaceOID, []byte(g.name)) // a transient one keeps its UUID
	return fmt.Sprintf(`<domain type='%s'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/><apic/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>%s
<controller type='usb' model='none'/><memballoon model='none'/><video><model type='none'/></video></devices></domain>`,
		kind, g.name, id, disks.String())
}

// define makes the domain known, if it isn't.
func (g *guest) define() {
	g.t.Helper()
	if dom, err := g.conn.LookupDomainByName(g.name); err == nil {
		g.must("free", dom.Free())
		return
	}
	dom, err := g.conn.DomainDefineXML(g.xml())
	g.must("define", err)
	g.must("free", dom.Free())
}

// start starts the guest paused, if it doesn't run.
func (g *guest) start() {
	g.t.Helper()
	if g.transient {
		dom, err := g.conn.DomainCreateXML(g.xml(), libvirt.DOMAIN_START_PAUSED)
		g.must("create", err)
		g.must("free", dom.Free())
		return
	}
	g.define()
	if !g.running() {
		if g.ran {
			g.host.Drain(g.t)
		}
		g.ran = true
		g.with("start", func(dom *libvirt.Domain) error { return dom.CreateWithFlags(libvirt.DOMAIN_START_PAUSED) })
	}
}

// with calls f on the domain, which has to succeed.
func (g *guest) with(step string, f func(*libvirt.Domain) error) {
	g.t.Helper()
	dom, err := g.conn.LookupDomainByName(g.name)
	g.must("look up", err)
	defer func() { _ = dom.Free() }()
	g.must(step, f(dom))
}

func (g *guest) running() bool {
	dom, err := g.conn.LookupDomainByName(g.name)
	if err != nil {
		return false
	}
	defer func() { _ = dom.Free() }()
	active, err := dom.IsActive()
	return err == nil && active
}

// destroy ends QEMU in an orderly way, so that bitmaps are stored.
func (g *guest) destroy() {
	g.t.Helper()
	g.with("destroy", func(dom *libvirt.Domain) error {
		err := dom.Destroy()
		if errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
			return nil // what a process says that took the domain over
		}
		return err
	})
	eventually(g.t, "the guest is stopped", func() bool { return !g.running() })
}

// remove ends the guest at the test's end.
func (g *guest) remove() {
	dom, err := g.conn.LookupDomainByName(g.name)
	if err != nil {
		return
	}
	defer func() { _ = dom.Free() }()
	_ = dom.Destroy()
	_ = dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
}

// write fills a range of MiBs of a disk with a byte, and of its model.
func (g *guest) write(device string, pattern byte, at, length int64) {
	g.t.Helper()
	g.io(device, fmt.Sprintf("write -P %#x %d %d", pattern, at*mib, length*mib))
	f, err := os.OpenFile(g.model(device), os.O_WRONLY, 0)
	g.must("write model", err)
	_, err = f.WriteAt(bytes.Repeat([]byte{pattern}, int(length*mib)), at*mib)
	g.must("write model", errors.Join(err, f.Close()))
}

// blank makes every block of a disk a changed one, without storing anything.
func (g *guest) blank(device string) {
	g.t.Helper()
	g.io(device, fmt.Sprintf("write -z -n 0 %d", g.size))
	g.must("blank model", errors.Join(os.Truncate(g.model(device), 0), os.Truncate(g.model(device), g.size)))
}

func (g *guest) io(device, command string) {
	g.t.Helper()
	if !g.running() {
		g.tool("qemu-io", "-f", "qcow2", "-c", command, g.image(device))
		return
	}
	g.with("write", func(dom *libvirt.Domain) error {
		line := fmt.Sprintf("qemu-io -d /machine/peripheral/ua-%s/virtio-backend %q", device, command)
		out, err := dom.QemuMonitorCommand(line, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_HMP)
		if err == nil && out != "" {
			err = errors.New(out)
		}
		return err
	})
}

// lost takes the models from the images of a guest whose QEMU was killed: what it hadn't written is lost.
func (g *guest) lost() {
	g.t.Helper()
	for _, d := range g.devices {
		g.tool("qemu-img", "convert", "-O", "raw", g.image(d), g.model(d))
	}
}

// keep copies the models to a folder: what a backup taken now has to give back.
func (g *guest) keep(dir string) {
	g.t.Helper()
	g.must("keep content", os.MkdirAll(dir, 0o755))
	for _, d := range g.devices {
		g.tool("cp", "--sparse=always", "--reflink=auto", g.model(d), filepath.Join(dir, d))
	}
}

// bitmaps returns the names of a disk's bitmaps, "!" behind inconsistent ones. A running guest's QEMU is asked.
func (g *guest) bitmaps(device string) []string {
	g.t.Helper()
	var names []string
	if g.running() {
		names = g.liveBitmaps(device)
	} else {
		names = g.storedBitmaps(device)
	}
	slices.Sort(names)
	return names
}

func (g *guest) liveBitmaps(device string) (names []string) {
	g.t.Helper()
	var answer struct {
		Return []struct {
			Driver  string `json:"drv"`
			File    string
			Bitmaps []struct {
				Name         string
				Inconsistent bool
			} `json:"dirty-bitmaps"`
		}
	}
	g.with("query bitmaps", func(dom *libvirt.Domain) error {
		text, err := dom.QemuMonitorCommand(`{"execute":"query-named-block-nodes","arguments":{"flat":true}}`,
			libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(text), &answer)
	})
	for _, n := range answer.Return {
		if n.Driver != "qcow2" || n.File != g.image(device) {
			continue
		}
		for _, b := range n.Bitmaps {
			names = append(names, flagged(b.Name, b.Inconsistent))
		}
	}
	return names
}

func (g *guest) storedBitmaps(device string) (names []string) {
	g.t.Helper()
	var info struct {
		Specific struct {
			Data struct {
				Bitmaps []struct {
					Name  string
					Flags []string
				}
			}
		} `json:"format-specific"`
	}
	g.must("read image", json.Unmarshal(g.tool("qemu-img", "info", "--output=json", g.image(device)), &info))
	for _, b := range info.Specific.Data.Bitmaps {
		names = append(names, flagged(b.Name, slices.Contains(b.Flags, "in-use")))
	}
	return names
}

func flagged(name string, inconsistent bool) string {
	if inconsistent {
		return name + "!"
	}
	return name
}

// checkpoints returns what libvirt lists, each with its devices.
func (g *guest) checkpoints() map[string][]string {
	g.t.Helper()
	found := map[string][]string{}
	if g.transient && !g.running() {
		return found
	}
	g.with("list checkpoints", func(dom *libvirt.Domain) error {
		list, err := dom.ListAllCheckpoints(0)
		for i := range list {
			text, again := list[i].GetXMLDesc(libvirt.DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
			var def libvirtxml.DomainCheckpoint
			err = errors.Join(err, again, def.Unmarshal(text), list[i].Free())
			found[def.Name] = nil
			if def.Disks == nil {
				continue
			}
			for _, d := range def.Disks.Disks {
				if d.Checkpoint == "bitmap" {
					found[def.Name] = append(found[def.Name], d.Name)
				}
			}
		}
		return err
	})
	return found
}

// qemuJobs returns the block jobs that QEMU itself knows.
func (g *guest) qemuJobs() string {
	g.t.Helper()
	if !g.running() {
		return ""
	}
	var text string
	g.with("query jobs", func(dom *libvirt.Domain) (err error) {
		text, err = dom.QemuMonitorCommand(`{"execute":"query-jobs"}`, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
		return err
	})
	if strings.Contains(text, `"return":[]`) {
		return ""
	}
	return text
}
