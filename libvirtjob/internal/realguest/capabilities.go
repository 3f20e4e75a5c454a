//go:build cgo

package realguest

import (
	"os"
	"path/filepath"
)

// Probing QEMU's capabilities takes libvirt seconds for a fresh root, so they are carried over between runs. libvirt
// itself checks that they still fit the QEMU and the kernel.

func capabilitiesCache() (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "kvmbackup-test", "qemu", "capabilities"), err
}

func (h *Host) seedCapabilities() {
	if from, err := capabilitiesCache(); err == nil {
		copyTree(from, h.capabilities)
	}
}

func (h *Host) saveCapabilities() {
	if to, err := capabilitiesCache(); err == nil {
		copyTree(h.capabilities, to)
	}
}

// copyTree copies plain files one level deep; what can't be copied is only slower next time. Files appear by
// rename, because several test processes may do this at once.
func copyTree(from, to string) {
	entries, err := os.ReadDir(from)
	if err != nil || os.MkdirAll(to, 0o755) != nil {
		return
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			continue
		}
		tmp, err := os.CreateTemp(to, ".new-")
		if err != nil {
			return
		}
		_, err = tmp.Write(data)
		if tmp.Close() != nil || err != nil || os.Rename(tmp.Name(), filepath.Join(to, e.Name())) != nil {
			_ = os.Remove(tmp.Name())
		}
	}
}
