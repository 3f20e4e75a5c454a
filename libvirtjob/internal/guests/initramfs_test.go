//go:build cgo

package guests_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// workDir holds what all tests of the process share: the guest's system, empty file systems, the shared guest's disk.
var workDir string

// newWorkDir is below /tmp, not below a test's folder, because sockets are in it, whose paths are limited to 107 bytes.
// A helper process leaves it to the process that started it.
var newWorkDir = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(helperEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "kvmbg-")
	workDir = dir
	return dir, errors.Join(err, os.Chmod(dir, 0o755))
})

// system is what a guest boots.
type system struct{ kernel, initramfs string }

var theSystem = sync.OnceValues(buildSystem)

// needSystem returns the guest's system, built on first use.
func needSystem(tb testing.TB) system {
	tb.Helper()
	lab.Need(tb, "qemu-system-x86_64", "qemu-img", "busybox", "qemu-ga", "ldd", "mkfs.ext4", "e2fsck", "debugfs")
	s, err := theSystem()
	if err != nil {
		lab.Missing(tb, fmt.Errorf("the guest's system: %w", err))
	}
	return s
}

// modules in the order in which they are loaded; one that is built into the kernel is not there.
var modules = []string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
	"virtio_console",
}

// initScript mounts every disk with an ext4 file system under its own name, starts the guest agent where there is a
// port for it, and then runs the lines that come over the second serial port.
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /tmp
for m in $(cat /modules); do insmod /lib/$m.ko; done
for d in /sys/class/block/vd?; do
	d=${d##*/}; mkdir -p /$d; mount -t ext4 /dev/$d /$d
done
agent() {
	for p in /sys/class/virtio-ports/*; do
		[ "$(cat $p/name)" = org.qemu.guest_agent.0 ] &&
			qemu-ga -m virtio-serial -p /dev/${p##*/} -t /tmp -F/hook >/tmp/agent 2>&1 &
	done
}
agent
exec 0<>/dev/ttyS1 1>&0
stty raw -echo
echo '<<0>>'
# Not in this shell: it is told of the end of every process without a parent, and that ends a read in mid-line.
( while read -r line; do
	eval "( $line ) 2>&1"
	echo "<<$?>>"
done )
poweroff -f
`

// hookScript is run by the agent before it freezes and after it has thawed. It lets tests delay or fail the freeze.
const hookScript = `#!/bin/sh
[ "$1" = freeze ] || exit 0
while [ -e /tmp/slow ]; do usleep 50000; done
[ ! -e /tmp/fail ]
`

func buildSystem() (system, error) {
	dir, err := newWorkDir()
	if err != nil {
		return system{}, err
	}
	kernelDir := os.Getenv("KVMBACKUP_GUEST_KERNEL")
	if kernelDir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return system{}, err
		}
		kernelDir = filepath.Join(cache, "kvmbackup", "guest", "kernel") // where scripts/guest-kernel puts it
	}
	kernels, _ := filepath.Glob(filepath.Join(kernelDir, "boot", "vmlinuz-*"))
	if len(kernels) == 0 {
		return system{}, fmt.Errorf("no kernel in %s; scripts/guest-kernel gets one", kernelDir)
	}
	s := system{kernel: kernels[0], initramfs: filepath.Join(dir, "initramfs")}
	var archive cpio
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "lib", "etc"} {
		archive.add(d, 0o40755, nil)
	}
	archive.add("init", 0o100755, []byte(initScript))
	archive.add("hook", 0o100755, []byte(hookScript))
	if err := errors.Join(archive.addModules(filepath.Join(kernelDir, "lib", "modules")),
		archive.addPrograms()); err != nil {
		return system{}, err
	}
	return s, os.WriteFile(s.initramfs, archive.close(), 0o644)
}

// cpio is an archive in the kernel's format, "newc".
type cpio struct {
	bytes.Buffer
	entries int
}

func (c *cpio) add(name string, mode int, data []byte) {
	c.entries++
	fmt.Fprintf(c, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", c.entries, mode, 0, 0, 1, 0, len(data), 0,
		0, 0, 0, len(name)+1, 0)
	c.WriteString(name + "\x00")
	c.pad()
	c.Write(data)
	c.pad()
}

func (c *cpio) pad() { c.Write(make([]byte, (4-c.Len()%4)%4)) }

func (c *cpio) close() []byte {
	c.add("TRAILER!!!", 0, nil)
	return c.Bytes()
}

// addModules adds the modules and the list of those that are there.
func (c *cpio) addModules(dir string) error {
	var there []string
	for _, name := range modules {
		data, err := readModule(dir, name)
		if err != nil {
			return err
		}
		if data != nil {
			c.add("lib/"+name+".ko", 0o100644, data)
			there = append(there, name)
		}
	}
	c.add("modules", 0o100644, []byte(strings.Join(there, "\n")+"\n"))
	return nil
}

func readModule(dir, name string) ([]byte, error) {
	var found string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		base := strings.TrimSuffix(filepath.Base(path), ".xz")
		if err == nil && !d.IsDir() && strings.ReplaceAll(base, "-", "_") == name+".ko" {
			found = path
		}
		return err
	})
	if err != nil || found == "" {
		return nil, err
	}
	if strings.HasSuffix(found, ".xz") {
		return exec.Command("xz", "-dc", found).Output()
	}
	return os.ReadFile(found)
}

// addPrograms adds busybox, the guest agent and the libraries it needs.
func (c *cpio) addPrograms() error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	agent, err := exec.LookPath("qemu-ga")
	if err != nil {
		return err
	}
	files := map[string]string{"bin/busybox": busybox, "bin/qemu-ga": agent}
	out, err := exec.Command("ldd", agent).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", agent, err)
	}
	folders := map[string]bool{"bin": true, "lib": true}
	for _, field := range strings.Fields(string(out)) {
		if filepath.IsAbs(field) {
			files[strings.TrimPrefix(field, "/")] = field
		}
	}
	for name, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		c.addFolders(filepath.Dir(name), folders)
		c.add(name, 0o100755, data)
	}
	return nil
}

func (c *cpio) addFolders(dir string, there map[string]bool) {
	if dir == "." || there[dir] {
		return
	}
	c.addFolders(filepath.Dir(dir), there)
	there[dir] = true
	c.add(dir, 0o40755, nil)
}
