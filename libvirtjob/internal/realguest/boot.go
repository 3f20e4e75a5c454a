//go:build cgo

package realguest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// Boot starts a guest with a Linux in memory that formats and mounts its first disk, runs QEMU's guest agent, and does
// nothing else; it returns when the agent answers. The models of its disks are not kept. It runs without KVM, whose
// nested form is too slow for a kernel. The test is skipped where kernel, busybox or agent are missing.
func Boot(tb testing.TB, cfg Config) *Guest {
	tb.Helper()
	Need(tb)
	kernel, initrd, err := bootFiles(tb)
	if err != nil {
		lab.Missing(tb, err)
	}
	cfg.OSXML += fmt.Sprintf("<kernel>%s</kernel><initrd>%s</initrd><cmdline>quiet panic=1</cmdline>", kernel, initrd)
	cfg.DevicesXML += "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
	cfg.MemoryMiB, cfg.Running, cfg.emulated = max(cfg.MemoryMiB, 192), true, true
	g := Start(tb, cfg)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(90 * time.Second); ; <-tick.C {
		_, err := g.Domain().QemuAgentCommand(`{"execute":"guest-ping"}`, 5, 0)
		if err == nil {
			return g
		}
		if time.Now().After(deadline) || !errors.Is(err, libvirt.ERR_AGENT_UNRESPONSIVE) {
			tb.Fatalf("guest %s: wait for the agent: %v", g.Name, err)
		}
	}
}

// bootModules in the order in which they are loaded.
var bootModules = []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"virtio_blk", "virtio_console"}

const bootScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs dev /dev
for m in %s; do insmod /modules/$m.ko; done
mke2fs /dev/vda && mount -t ext4 /dev/vda /mnt
for p in /sys/class/virtio-ports/*; do
	if [ "$(cat $p/name)" = org.qemu.guest_agent.0 ]; then exec qemu-ga -m virtio-serial -p /dev/${p##*/}; fi
done
`

func bootFiles(tb testing.TB) (kernel, initrd string, err error) {
	tb.Helper()
	dir, err := kernelDir(tb.Context())
	if err != nil {
		return "", "", err
	}
	kernels, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if len(kernels) == 0 {
		return "", "", fmt.Errorf("no kernel in %s", dir)
	}
	root := filepath.Join(tb.TempDir(), "initramfs")
	if err := fillInitramfs(tb.Context(), root, dir); err != nil {
		return "", "", err
	}
	initrd = root + ".cpio"
	if out, err := exec.CommandContext(tb.Context(), "sh", "-c", `cd "$1" && find . | cpio -o -H newc --quiet > "$2"`,
		"sh", root, initrd).CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("pack initramfs: %w: %s", err, out)
	}
	return kernels[0], initrd, nil
}

// kernelDir is where scripts/guest-kernel has put the kernel; the script is run when it hasn't.
func kernelDir(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "kvmbackup", "guest", "kernel")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(filepath.Dir(string(bytes.TrimSpace(module))), "scripts",
		"guest-kernel")).Output()
	if err != nil {
		return "", fmt.Errorf("scripts/guest-kernel: %w", err)
	}
	return string(bytes.TrimSpace(out)), nil
}

func fillInitramfs(ctx context.Context, root, kernel string) error {
	for _, dir := range []string{"bin", "proc", "sys", "dev", "mnt", "run", "var/run", "modules", "lib64", "sbin"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{}
	for _, name := range []string{"busybox", "qemu-ga"} {
		path, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		files["bin/"+name] = path
	}
	libraries, err := exec.CommandContext(ctx, "ldd", files["bin/qemu-ga"]).Output()
	if err != nil {
		return err
	}
	for _, path := range regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1) {
		files[path] = path
	}
	for _, module := range bootModules {
		found, _ := filepath.Glob(filepath.Join(kernel, "lib", "modules", "*", "kernel", "drivers", "*", module+".ko"))
		if len(found) == 0 {
			return fmt.Errorf("no module %s in %s", module, kernel)
		}
		files["modules/"+module+".ko"] = found[0]
	}
	for to, from := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		to = filepath.Join(root, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o755); err != nil {
			return err
		}
	}
	shutdown := []byte("#!/bin/busybox sh\nexec poweroff -f\n") // what the agent runs
	if err := os.WriteFile(filepath.Join(root, "sbin", "shutdown"), shutdown, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "init"), fmt.Appendf(nil, bootScript, strings.Join(bootModules, " ")), 0o755)
}
