package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
)

// maxTPMBytes is far above what an emulated TPM keeps.
const maxTPMBytes = 16 << 20

// SystemTPMDir is where libvirt's system daemon keeps the states of emulated TPMs.
const SystemTPMDir = "/var/lib/libvirt/swtpm"

// TPMStateFile returns where libvirt keeps the state of the emulated TPM of the domain with that definition. A saved
// state belongs there, with the owner that swtpm runs as, before the domain's first start: otherwise libvirt makes a
// new TPM. dir is SystemTPMDir, or what stands for it: lib/swtpm in the root of an embedded driver, libvirt/qemu/swtpm
// in the configuration folder of a user's own daemon. kvmbackup.ErrUnsupported, with the reason, for a domain without
// an emulated TPM, or with one whose state is elsewhere.
func TPMStateFile(xml []byte, dir string) (string, error) {
	var def libvirtxml.Domain
	if err := def.Unmarshal(string(xml)); err != nil {
		return "", fmt.Errorf("%w domain XML: %w", kvmbackup.ErrInvalid, err)
	}
	path, _, err := tpmStateFile(def, dir)
	return path, err
}

// tpmStateFile also says whether swtpm writes it in place, so that it can't be copied while the domain runs. Otherwise
// it renames a whole new one.
func tpmStateFile(def libvirtxml.Domain, dir string) (path string, inPlace bool, err error) {
	tpm := tpmOf(def)
	if tpm == nil || tpm.Backend == nil || tpm.Backend.Emulator == nil {
		return "", false, fmt.Errorf("%w: the domain has no TPM that is emulated for it alone", kvmbackup.ErrUnsupported)
	}
	folder, name := "tpm2", "tpm2-00.permall"
	if tpm.Backend.Emulator.Version == "1.2" {
		folder, name = "tpm1.2", "tpm-00.permall"
	}
	switch s := tpm.Backend.Emulator.Source; {
	case s != nil && s.File != nil:
		return s.File.Path, true, nil
	case s != nil && s.Dir != nil:
		return filepath.Join(s.Dir.Path, name), false, nil
	}
	return filepath.Join(dir, def.UUID, folder, name), false, nil
}

func tpmOf(def libvirtxml.Domain) *libvirtxml.DomainTPM {
	if def.Devices == nil || len(def.Devices.TPMs) == 0 {
		return nil
	}
	return &def.Devices.TPMs[0]
}

// saveTPM reads the state of the domain's TPM, or says why it can't be had. A domain without one has neither.
func saveTPM(ctx context.Context, d *domain, def libvirtxml.Domain) (state []byte, why string) {
	if tpmOf(def) == nil {
		return nil, ""
	}
	active, err := call(ctx, d, (*libvirt.Domain).IsActive)
	if err != nil {
		return nil, err.Error()
	}
	dir, err := tpmDir(ctx, d)
	if err != nil {
		return nil, err.Error()
	}
	path, inPlace, err := tpmStateFile(def, dir)
	switch {
	case err != nil:
		return nil, err.Error()
	case inPlace && active:
		return nil, "swtpm writes " + path + " in place; a backup of the stopped domain has it"
	}
	state, err = detached(ctx, path, func() ([]byte, error) { return readTPM(path) }, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Sprintf("there is no %s: the domain was never started, or its state is elsewhere", path)
	}
	if err != nil {
		return nil, err.Error()
	}
	return state, ""
}

func readTPM(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxTPMBytes+1))
	if err == nil && len(data) > maxTPMBytes {
		err = fmt.Errorf("%w: %s is larger than %d bytes", kvmbackup.ErrUnsupported, path, maxTPMBytes)
	}
	return data, err
}

// tpmDir is where the domain's libvirt keeps the states, which has to be on this machine.
func tpmDir(ctx context.Context, d *domain) (string, error) {
	uri, err := call(ctx, d, func(dom *libvirt.Domain) (string, error) {
		conn, err := dom.DomainGetConnect()
		if err != nil {
			return "", err
		}
		defer func() { _, _ = conn.Close() }()
		return conn.GetURI()
	})
	if err != nil {
		return "", err
	}
	return tpmDirOf(uri)
}

func tpmDirOf(uri string) (string, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", fmt.Errorf("libvirt's URI: %w", err)
	}
	if u.Host != "" {
		return "", fmt.Errorf("%w: the TPM's state is on %s", kvmbackup.ErrUnsupported, u.Host)
	}
	switch u.Path {
	case "/embed":
		return filepath.Join(u.Query().Get("root"), "lib", "swtpm"), nil
	case "/session":
		config, err := os.UserConfigDir()
		return filepath.Join(config, "libvirt", "qemu", "swtpm"), err
	}
	return SystemTPMDir, nil
}
