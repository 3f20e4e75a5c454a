//go:build cgo

package guests_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// guest is a virtual machine with a system. Its methods fail the test on errors.
type guest struct {
	testing.TB
	name, uuid string
	dir        string
	disks      []guestDisk
	console    *console
}

type guestDisk struct {
	device, path string
	format       string // default qcow2
	stop         bool   // an error of its image pauses the guest
}

// bootLimit is for a busy machine: guests boot without KVM.
const bootLimit = 3 * time.Minute

var guestNumber atomic.Int64

// newGuest describes a guest that is not booted yet.
func newGuest(tb testing.TB, disks ...guestDisk) *guest {
	tb.Helper()
	dir, err := newWorkDir()
	if err != nil {
		tb.Fatal(err)
	}
	g := &guest{
		TB: tb, name: fmt.Sprintf("guest-%d-%d", os.Getpid(), guestNumber.Add(1)), uuid: uuid.NewString(), disks: disks,
	}
	g.dir = filepath.Join(dir, g.name)
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	return g
}

// boot starts the guest. It is destroyed at the test's end.
func (g *guest) boot() *guest {
	g.Helper()
	g.Cleanup(func() { destroy(connection(g), g.name) })
	g.start(g.xml())
	g.Cleanup(func() { _ = g.console.conn.Close() })
	return g
}

// start boots from any definition with this guest's console, and waits until its system and its agent are up: an agent
// that comes during a job holds up libvirt's events (see TestAgentGoesDuringJob).
func (g *guest) start(definition string) {
	g.Helper()
	dom, err := connection(g).DomainCreateXML(definition, libvirt.DOMAIN_START_PAUSED)
	if err != nil {
		g.Fatalf("create: %v", err)
	}
	defer func() { _ = dom.Free() }()
	g.console = openConsole(g, g.socket())
	if err := dom.Resume(); err != nil {
		g.Fatalf("resume: %v", err)
	}
	if _, err := g.console.answer(bootLimit); err != nil {
		log, _ := os.ReadFile(g.bootLog())
		g.Fatalf("the guest doesn't boot: %v\n%s", err, log)
	}
	g.waitAgent()
}

func destroy(conn *libvirt.Connect, name string) {
	if dom, err := conn.LookupDomainByName(name); err == nil {
		_ = dom.Destroy()
		_ = dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.DOMAIN_UNDEFINE_NVRAM)
		_ = dom.Free()
	}
}

func (g *guest) socket() string  { return filepath.Join(g.dir, "console") }
func (g *guest) bootLog() string { return filepath.Join(g.dir, "boot.log") }

func (g *guest) xml() string {
	g.Helper()
	s := needSystem(g)
	var disks strings.Builder
	for _, d := range g.disks {
		policy, format := "", "qcow2"
		if d.stop {
			policy = " error_policy='stop'"
		}
		if d.format != "" {
			format = d.format
		}
		fmt.Fprintf(&disks, "<disk type='file' device='disk'><driver name='qemu' type='%s'%s/><source file='%s'/>"+
			"<target dev='%s' bus='virtio'/></disk>",
			format, policy, d.path, d.device)
	}
	return fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name>
  <uuid>%s</uuid>
  <memory unit='MiB'>160</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>%s</kernel><initrd>%s</initrd>
    <cmdline>console=ttyS0 quiet panic=1</cmdline></os>
  <features><acpi/><apic/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    %s
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <video><model type='none'/></video>
    <serial type='file'><source path='%s'/><target port='0'/></serial>
    <serial type='unix'><source mode='bind' path='%s'/><target port='1'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>`, g.name, g.uuid, s.kernel, s.initramfs, disks.String(), g.bootLog(), g.socket())
}

func (g *guest) ref() kvmbackup.DomainRef { return kvmbackup.DomainRef{Name: g.name, UUID: g.uuid} }

func (g *guest) domain() *libvirt.Domain {
	g.Helper()
	dom, err := connection(g).LookupDomainByName(g.name)
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { _ = dom.Free() })
	return dom
}

// state returns the domain's state and why it is in it.
func (g *guest) state() (libvirt.DomainState, int) {
	g.Helper()
	s, reason, err := g.domain().GetState()
	if err != nil {
		g.Fatal(err)
	}
	return s, reason
}

// run runs a shell command in the guest and returns what it prints.
func (g *guest) run(command string) string {
	g.Helper()
	out, err := g.console.run(command, time.Minute)
	if err != nil {
		g.Fatalf("%s: %v: %s", command, err, out)
	}
	return out
}

// waitAgent waits until libvirt sees the agent, which answers.
func (g *guest) waitAgent() *guest {
	g.Helper()
	lab.Eventually(g, "the guest agent answers", func() bool { _, err := g.agent("guest-ping"); return err == nil })
	return g
}

// agent asks the guest agent directly.
func (g *guest) agent(command string) (string, error) {
	return g.domain().QemuAgentCommand(`{"execute":"`+command+`"}`, 5, 0)
}

// frozen asks the agent for the state of the file systems.
func (g *guest) frozen() bool {
	g.Helper()
	out, err := g.agent("guest-fsfreeze-status")
	if err != nil {
		g.Fatalf("guest-fsfreeze-status: %v", err)
	}
	var reply struct {
		Return string `json:"return"`
	}
	if err := json.Unmarshal([]byte(out), &reply); err != nil || reply.Return == "" {
		g.Fatalf("guest-fsfreeze-status answers %s", out)
	}
	return reply.Return != "thawed"
}

// wantThawed checks that the guest's file systems can be written.
func (g *guest) wantThawed() {
	g.Helper()
	if g.frozen() {
		g.Error("the guest is left frozen")
		_, _ = g.agent("guest-fsfreeze-thaw") // for the tests that follow
	}
	g.run("echo alive >/vda/alive && sync")
}

// write makes a file of random data in the guest's file system and returns its checksum.
func (g *guest) write(path string, mebibytes int) string {
	g.Helper()
	g.run(fmt.Sprintf("dd if=/dev/urandom of=%s bs=64k count=%d", path, mebibytes*16))
	return g.sum(path)
}

// sum returns a file's checksum as the guest sees it.
func (g *guest) sum(path string) string {
	g.Helper()
	return firstField(g.run("sha256sum " + path))
}

func firstField(s string) string {
	f := strings.Fields(s)
	if len(f) == 0 {
		return ""
	}
	return f[0]
}

// console is the guest's second serial port.
type console struct {
	conn net.Conn
	r    *bufio.Reader
}

func openConsole(tb testing.TB, socket string) *console {
	tb.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	return &console{conn, bufio.NewReader(conn)}
}

var prompt = regexp.MustCompile(`<<(\d+)>>\r?\n`)

// answer reads up to the next prompt, which holds the command's exit code.
func (c *console) answer(limit time.Duration) (string, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	var text strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return text.String() + line, err
		}
		if m := prompt.FindStringSubmatch(line); m != nil {
			if m[1] != "0" {
				err = fmt.Errorf("exit code %s", m[1])
			}
			return text.String(), err
		}
		text.WriteString(line)
	}
}

func (c *console) run(command string, limit time.Duration) (string, error) {
	if _, err := fmt.Fprintln(c.conn, command); err != nil {
		return "", err
	}
	return c.answer(limit)
}

// newFS makes a qcow2 disk with an empty ext4 file system.
func newFS(tb testing.TB, path string, mebibytes int) string {
	tb.Helper()
	raw := path + ".raw"
	command(tb, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", raw,
		fmt.Sprintf("%dM", mebibytes))
	command(tb, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
	if err := os.Remove(raw); err != nil {
		tb.Fatal(err)
	}
	return path
}

// command runs a tool and returns what it prints.
func command(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// shared is the guest that most tests use, one after the other: they don't run in parallel.
var shared struct {
	booted bool
	g      guest
}

// needGuest returns the shared guest, booted, with a disk vda that is mounted and a working agent.
func needGuest(t *testing.T) *guest {
	t.Helper()
	if !shared.booted {
		g := newGuest(t)
		g.disks = []guestDisk{{device: "vda", path: newFS(t, filepath.Join(g.dir, "vda.qcow2"), 96)}}
		g.start(g.xml())
		shared.g, shared.booted = *g, true
	}
	g := shared.g
	g.TB = t
	return g.waitAgent()
}
