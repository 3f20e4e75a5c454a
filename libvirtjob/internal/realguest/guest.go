//go:build cgo

package realguest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// Config describes a guest. The zero value of a field means its default.
type Config struct {
	Name  string // default: made from the test's name
	UUID  string // default: random, and kept over Create
	Disks []Disk
	// Persistent defines the domain; otherwise it is transient and unknown to libvirt while it is stopped.
	Persistent bool
	// Host is what Daemon returned; default: the embedded driver.
	Host *Host
	// Stopped leaves a persistent guest stopped, and of a transient one makes the images only.
	Stopped bool
	// DevicesXML is put into the devices element, e.g. a channel for the guest agent.
	DevicesXML string
	// OSXML is put into the os element, e.g. a loader and NVRAM, or a kernel.
	OSXML string
	// FeaturesXML is put into the features element; ACPI and APIC are always there.
	FeaturesXML string
	// OnCrash is what libvirt does when the guest's system crashes, e.g. preserve; see Panic.
	OnCrash string
	// Running lets the guest's processor run from the start.
	Running bool
	// MemoryMiB defaults to 32.
	MemoryMiB int

	emulated bool // no KVM
}

// Guest is one virtual machine of a test. It is destroyed at the test's end. Its methods fail the test on errors;
// they are to be called from one goroutine at a time.
type Guest struct {
	Host *Host
	Name string
	UUID string
	Dir  string // where its images are

	tb     testing.TB
	cfg    Config
	disks  []*disk
	models map[string]*Model
	ran    bool // a persistent domain was started
}

// machine has PCI slots to spare, unlike a bare q35.
const machine = "pc"

var guests atomic.Int64

// Start makes the images and starts the guest.
func Start(tb testing.TB, cfg Config) *Guest {
	tb.Helper()
	h := Need(tb)
	if cfg.Host != nil {
		h = cfg.Host
	}
	g := &Guest{Host: h, Name: cfg.Name, UUID: cfg.UUID, Dir: tb.TempDir(), tb: tb, cfg: cfg, models: map[string]*Model{}}
	if g.Name == "" {
		g.Name = fmt.Sprintf("%.24s-%d-%d", notName.ReplaceAllString(tb.Name(), "-"), os.Getpid(), guests.Add(1))
	}
	if g.UUID == "" {
		g.UUID = uuid.NewString()
	}
	if err := os.Chmod(g.Dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	for _, d := range cfg.Disks {
		g.addDisk(d)
	}
	tb.Cleanup(g.cleanUp)
	if cfg.Persistent {
		g.define()
	}
	if !cfg.Stopped {
		g.Create()
	}
	return g
}

var notName = regexp.MustCompile(`[^A-Za-z0-9]+`)

func (g *Guest) cleanUp() {
	dom, err := g.Host.Conn.LookupDomainByName(g.Name)
	if err != nil {
		return
	}
	defer func() { _ = dom.Free() }()
	_ = dom.Destroy()
	_ = dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.DOMAIN_UNDEFINE_SNAPSHOTS_METADATA |
		libvirt.DOMAIN_UNDEFINE_NVRAM)
}

// must fails the test with the step's name.
func (g *Guest) must(step string, err error) {
	g.tb.Helper()
	if err != nil {
		g.tb.Fatalf("guest %s: %s: %v", g.Name, step, err)
	}
}

// Domain looks the domain up. It is freed at the test's end.
func (g *Guest) Domain() *libvirt.Domain {
	g.tb.Helper()
	dom, err := g.Host.Conn.LookupDomainByName(g.Name)
	g.must("look up", err)
	g.tb.Cleanup(func() { _ = dom.Free() })
	return dom
}

func (g *Guest) define() {
	g.tb.Helper()
	dom, err := g.Host.Conn.DomainDefineXML(g.xml())
	g.must("define", err)
	_ = dom.Free()
}

// Create starts the stopped guest again, with the disks it has now: it creates a transient one under the same
// name and UUID.
func (g *Guest) Create() {
	g.tb.Helper()
	var flags libvirt.DomainCreateFlags
	if !g.cfg.Running {
		flags = libvirt.DOMAIN_START_PAUSED
	}
	if g.cfg.Persistent {
		g.must("start", g.start(flags))
		return
	}
	dom, err := g.Host.Conn.DomainCreateXML(g.xml(), flags)
	g.must("create", err)
	_ = dom.Free()
}

func (g *Guest) start(flags libvirt.DomainCreateFlags) error {
	g.tb.Helper()
	if g.ran {
		g.Host.Drain(g.tb)
	}
	g.ran = true
	return g.Domain().CreateWithFlags(flags)
}

// TryCreate is Create for a test that expects it to fail.
func (g *Guest) TryCreate() error {
	if g.cfg.Persistent {
		return g.start(libvirt.DOMAIN_START_PAUSED)
	}
	dom, err := g.Host.Conn.DomainCreateXML(g.xml(), libvirt.DOMAIN_START_PAUSED)
	if err == nil {
		_ = dom.Free()
	}
	return err
}

// Destroy pulls the plug in a way that lets QEMU close its images.
func (g *Guest) Destroy() {
	g.tb.Helper()
	err := g.Domain().Destroy()
	// A process that took the domain over says "not running" although it did stop it.
	if err != nil && !errors.Is(err, libvirt.ERR_OPERATION_INVALID) {
		g.must("destroy", err)
	}
	g.waitStopped()
}

// Kill9 kills QEMU, as a crash or an out-of-memory kill would.
func (g *Guest) Kill9() {
	g.tb.Helper()
	g.must("kill", syscall.Kill(g.PID(), syscall.SIGKILL))
	g.waitStopped()
}

// Hang stops QEMU's process, as a dead file server may, until the returned function is called or the test ends.
func (g *Guest) Hang() (goOn func()) {
	g.tb.Helper()
	pid := g.PID()
	g.must("stop", syscall.Kill(pid, syscall.SIGSTOP))
	goOn = func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	g.tb.Cleanup(goOn)
	return goOn
}

// PID returns QEMU's process ID.
func (g *Guest) PID() int {
	g.tb.Helper()
	text, err := os.ReadFile(filepath.Join(g.Host.pidFiles, g.Name+".pid"))
	g.must("read pid file", err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	g.must("read pid file", err)
	return pid
}

// Running says whether libvirt has the guest as active, paused or not.
func (g *Guest) Running() bool {
	dom, err := g.Host.Conn.LookupDomainByName(g.Name)
	if err != nil {
		return false
	}
	defer func() { _ = dom.Free() }()
	active, err := dom.IsActive()
	return err == nil && active
}

func (g *Guest) waitStopped() {
	g.tb.Helper()
	lab.Eventually(g.tb, "the guest is stopped", func() bool { return !g.Running() })
}

// Panic has the guest's panic device say that its system has crashed. The guest needs OnCrash.
func (g *Guest) Panic() { g.tb.Helper(); g.hmp("o /b 0x505 1") }

// Resume lets the guest's processor run.
func (g *Guest) Resume() { g.tb.Helper(); g.must("resume", g.Domain().Resume()) }

// Suspend pauses the guest's processor.
func (g *Guest) Suspend() { g.tb.Helper(); g.must("suspend", g.Domain().Suspend()) }
