//go:build cgo

package realguest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/uuid"
	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// drain is the guest whose jobs show that libvirt has seen to all events.
type drain struct {
	mu   sync.Mutex
	name string // of the domain; empty: not yet started
}

// Drain returns when libvirt has seen to all that happened to the host's guests before the call. It has to come before
// a persistent domain is started again. What QEMU reported of its last jobs, and its end, waits for libvirt 9.0's
// only thread for events; when that gets to it after the domain was started again, libvirt ends the new QEMU, or
// crashes in qemuBlockJobUpdate on the disks of the old one. The ends of jobs take the same way, so a little backup of
// a guest that has nothing else to do comes out behind all of them.
func (h *Host) Drain(tb testing.TB) {
	tb.Helper()
	h.drain.mu.Lock()
	defer h.drain.mu.Unlock()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatalf("drain events: %v", err)
		}
	}
	started := h.drain.name != ""
	if !started {
		h.drain.name = fmt.Sprintf("drain-%s", uuid.NewString()) // an earlier process on this root may have left its own
	}
	image := filepath.Join(h.Root, h.drain.name+".img")
	if !started {
		must(os.WriteFile(image, make([]byte, 1<<16), 0o644))
		dom, err := h.Conn.DomainCreateXML(fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='%s'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/>
<target dev='vda' bus='virtio'/></disk><controller type='usb' model='none'/><memballoon model='none'/>
<video><model type='none'/></video></devices></domain>`,
			h.drain.name, machine, image), libvirt.DOMAIN_START_PAUSED)
		must(err)
		must(dom.Free())
	}
	dom, err := h.Conn.LookupDomainByName(h.drain.name)
	must(err)
	defer func() { _ = dom.Free() }()
	copied := image + ".copy"
	must(dom.BackupBegin(fmt.Sprintf("<domainbackup><disks><disk name='vda' type='file'><driver type='raw'/><target "+
		"file='%s'/></disk></disks></domainbackup>", copied), "", 0))
	lab.Eventually(tb, "libvirt has seen to its events", func() bool {
		info, err := dom.GetJobStats(0)
		return errors.Is(err, libvirt.ERR_OPERATION_INVALID) || err == nil && info.Type == libvirt.DOMAIN_JOB_NONE
	})
	must(os.Remove(copied))
}
