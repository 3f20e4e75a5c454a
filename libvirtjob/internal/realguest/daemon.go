//go:build cgo

package realguest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// daemonScript gives a libvirtd its own folders in place of the system's and a host name, in namespaces of its own.
const daemonScript = `set -e
mount --make-rprivate /
hostname "${1##*/}"
mkdir -p /run/libvirt /etc/libvirt
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/run" /run/libvirt
mount --bind "$1/var" /var
if [ -d "$1/locale" ]; then mount --bind "$1/locale" /usr/share/locale; fi
exec libvirtd --pid-file "$1/run/libvirtd.pid" --config "$1/etc/libvirtd.conf"
`

// Daemon starts a libvirtd that nobody else uses, for what the embedded driver can't show: lost connections, restarts,
// and migration, as each is a host of its own to libvirt. Guests start on it with Config.Host. It needs root, and ends
// with the test.
func Daemon(tb testing.TB) *Host {
	tb.Helper()
	return daemon(tb, func(*Host) error { return nil })
}

// daemon makes the folders, lets prepare add to them, and starts the libvirtd.
func daemon(tb testing.TB, prepare func(*Host) error) *Host {
	tb.Helper()
	lab.NeedRoot(tb)
	Need(tb) // the tools, and the event loop
	for _, tool := range []string{"libvirtd", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			lab.Missing(tb, err)
		}
	}
	root, err := NewRoot()
	if err != nil {
		tb.Fatal(err)
	}
	h := &Host{
		Root: root, URI: "qemu+unix:///system?socket=" + filepath.Join(root, "run", "libvirt-sock"),
		Accelerated: opened.Accelerated, pidFiles: filepath.Join(root, "run", "qemu"),
	}
	tb.Cleanup(func() { RemoveRoot(root) })
	for _, dir := range []string{"run", "var/lib/libvirt", "var/cache/libvirt", "var/log/libvirt", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(root, "var", "run")); err != nil {
		tb.Fatal(err)
	}
	if err := h.configure(); err != nil {
		tb.Fatal(err)
	}
	conf := fmt.Sprintf("auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nunix_sock_group = \"root\"\nhost_uuid = "+
		"%q\n", uuid.NewString())
	if err := os.WriteFile(filepath.Join(root, "etc", "libvirtd.conf"), []byte(conf), 0o644); err != nil {
		tb.Fatal(err)
	}
	h.capabilities = filepath.Join(root, "var", "cache", "libvirt", "qemu", "capabilities")
	h.seedCapabilities()
	if err := prepare(h); err != nil {
		tb.Fatal(err)
	}
	h.StartDaemon(tb)
	return h
}

// StartDaemon starts the libvirtd again after KillDaemon, and connects to it.
func (h *Host) StartDaemon(tb testing.TB) {
	tb.Helper()
	// It outlives the test's context: guests are cleaned up through it.
	cmd := exec.Command("unshare", "--mount", "--uts", "sh", "-c", daemonScript, "sh", h.Root) //nolint:noctx // see above
	log, err := os.OpenFile(filepath.Join(h.Root, "libvirt.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "LIBVIRT_LOG_OUTPUTS=3:stderr", "LC_ALL="+locale,
		"LOCPATH="+filepath.Join(h.Root, "locale"), "LANGUAGE="+language)
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	h.daemon = cmd
	tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; <-tick.C {
		if h.Conn, err = libvirt.NewConnect(h.URI); err == nil {
			break
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			tb.Fatalf("libvirtd doesn't answer: %v\n%s", err, text)
		}
	}
	conn := h.Conn
	tb.Cleanup(func() { _, _ = conn.Close() })
}

// HangDaemon has the libvirtd answer nothing until it is killed, or goOn is called.
func (h *Host) HangDaemon(tb testing.TB) (goOn func()) {
	tb.Helper()
	signal := func(s syscall.Signal) {
		if err := h.daemon.Process.Signal(s); err != nil {
			tb.Error(err)
		}
	}
	signal(syscall.SIGSTOP)
	return func() { signal(syscall.SIGCONT) }
}

// KillDaemon kills the libvirtd. Its guests live on.
func (h *Host) KillDaemon(tb testing.TB) {
	tb.Helper()
	if err := h.daemon.Process.Signal(syscall.SIGKILL); err != nil {
		tb.Fatal(err)
	}
	_ = h.daemon.Wait()
	lab.Eventually(tb, "the connection is lost", func() bool {
		alive, err := h.Conn.IsAlive()
		return err != nil || !alive
	})
}

// Own gives the daemon's host a folder of its own where others have the one of that path.
func (h *Host) Own(tb testing.TB, path, own string) {
	tb.Helper()
	out, err := exec.CommandContext(tb.Context(), "nsenter", "--mount", "--target", fmt.Sprint(h.daemon.Process.Pid),
		"mount", "--bind", own, path).CombinedOutput()
	if err != nil {
		tb.Fatalf("mount: %v: %s", err, out)
	}
}
