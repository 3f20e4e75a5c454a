//go:build cgo

package realguest

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
)

// Host is this process's libvirt: the embedded driver on a root of its own. A process has only one.
type Host struct {
	Root string           // libvirt's state, caches and sockets
	URI  string           // qemu:///embed?root=Root
	Conn *libvirt.Connect // for what the harness doesn't offer
	// Accelerated says that guests use KVM and not TCG.
	Accelerated bool

	keep     bool   // Root was given, and other processes use it after this one
	pidFiles string // folder
	// capabilities is the folder of libvirt's cache
	capabilities string
	daemon       *exec.Cmd
	drain        drain
}

// rootEnv names the root that a helper process takes over from the process that started it.
const rootEnv = "KVMBACKUP_REALGUEST_ROOT"

var theHost = sync.OnceValues(open)

var opened *Host

// Main runs the tests, and again after each call that says so; then it destroys what they left and removes the root. It
// returns the exit code.
func Main(m *testing.M, again ...func() bool) int {
	libvirtjob.Guard()
	// Tests mostly wait for QEMU to start and stop. The command line still has the last word.
	_ = flag.Set("test.parallel", "8")
	code := m.Run()
	for _, f := range again {
		if f() {
			code = max(code, m.Run())
		}
	}
	if opened != nil {
		opened.close()
	}
	return code
}

// Need returns the process's host, opened on first use. The test is skipped where libvirt or QEMU is missing.
func Need(tb testing.TB) *Host {
	tb.Helper()
	h, err := theHost()
	if err != nil {
		lab.Missing(tb, err)
	}
	return h
}

// UseRoot makes this process work on an existing root, which it leaves behind at its end. It is called in a
// helper process before the first guest, with the Root of a process that doesn't run any more.
func UseRoot(root string) error { return os.Setenv(rootEnv, root) }

func open() (_ *Host, err error) {
	for _, tool := range []string{"qemu-system-x86_64", "qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, err
		}
	}
	h := &Host{Root: os.Getenv(rootEnv)}
	h.keep = h.Root != ""
	if !h.keep {
		if h.Root, err = NewRoot(); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				_ = os.RemoveAll(h.Root)
			}
		}()
	}
	if err := h.configure(); err != nil {
		return nil, err
	}
	h.capabilities = filepath.Join(h.Root, "cache", "qemu", "capabilities")
	h.seedCapabilities()
	h.pidFiles = filepath.Join(h.Root, "run", "qemu")
	h.URI = "qemu:///embed?root=" + h.Root
	if os.Getenv("LIBVIRT_LOG_OUTPUTS") == "" {
		_ = os.Setenv("LIBVIRT_LOG_OUTPUTS", "4:file:"+filepath.Join(h.Root, "libvirt.log"))
	}
	if err := libvirtjob.RunEventLoop(); err != nil {
		return nil, fmt.Errorf("event loop: %w", err)
	}
	conn, err := libvirt.NewConnect(h.URI)
	if err != nil {
		return nil, err
	}
	h.Conn = conn
	_, err = conn.GetDomainCapabilities("", "x86_64", machine, "kvm", 0)
	h.Accelerated = err == nil && writable("/dev/kvm")
	if !h.keep {
		h.saveCapabilities()
	}
	opened = h
	return h, nil
}

// configure has QEMU run as the test's own user, without the security drivers and namespaces that only a system's
// libvirt is set up for.
func (h *Host) configure() error {
	if err := os.MkdirAll(filepath.Join(h.Root, "etc"), 0o755); err != nil {
		return err
	}
	conf := "security_driver = \"none\"\nremember_owner = 0\nnamespaces = []\ncgroup_controllers = []\nstdio_handler " +
		"= \"file\"\n"
	if os.Geteuid() == 0 {
		conf += "user = \"+0\"\ngroup = \"+0\"\n"
	}
	return os.WriteFile(filepath.Join(h.Root, "etc", "qemu.conf"), []byte(conf), 0o644)
}

func writable(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

func (h *Host) close() {
	if h.keep {
		return
	}
	doms, _ := h.Conn.ListAllDomains(0)
	for i := range doms {
		_ = doms[i].Destroy()
		_ = doms[i].Free()
	}
	_, _ = h.Conn.Close()
	if os.Getenv("KVMBACKUP_KEEP_ROOT") == "" {
		_ = os.RemoveAll(h.Root)
	}
}

// NewRoot makes a folder for another process's libvirt. Sockets live below it and their paths are limited to 107 bytes,
// so it is not below a test's own folder. RemoveRoot removes it.
func NewRoot() (string, error) {
	root, err := os.MkdirTemp("", "kvmb-")
	if err != nil {
		return "", err
	}
	return root, os.Chmod(root, 0o755)
}

// RemoveRoot kills the guests that other processes have left on a root, and removes it.
func RemoveRoot(root string) {
	files, _ := filepath.Glob(filepath.Join(root, "run", "qemu", "*.pid"))
	for _, file := range files {
		if filepath.Base(file) == "driver.pid" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || pid <= 1 {
			continue
		}
		if isOf(root, pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	_ = os.RemoveAll(root)
}

// isOf says whether a process belongs to a root: a guest that died by itself has left its number, which may be another
// process's by now. The embedded driver's guests have the root on their command lines, a daemon's among their mounts,
// by its path in its file system: its own name, which no other root has, is what both have in common.
func isOf(root string, pid int) bool {
	for _, file := range []string{"cmdline", "mountinfo"} {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file)); err == nil &&
			strings.Contains(string(text), "/"+filepath.Base(root)+"/") {
			return true
		}
	}
	return false
}
