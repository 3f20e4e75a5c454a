package libvirtjob_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

const emulatedTPM = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"

// The state of an emulated TPM is saved of the running and of the stopped guest. Put back under its definition it is
// the guest's again.
func TestTPM(t *testing.T) {
	t.Parallel()
	lab.Need(t, "swtpm_setup")
	b := newBench(t, realguest.Config{Disks: disks("vda"), Persistent: true, DevicesXML: emulatedTPM})
	uri, err := b.guest.Host.Conn.GetURI()
	b.must(err)
	root := strings.TrimPrefix(uri, "qemu:///embed?root=")
	var def kvmbackup.Definition
	for _, state := range []string{"running", "stopped"} {
		if state == "stopped" {
			b.guest.Destroy()
		}
		def, err = b.exec.Definition(b.ctx, b.ref, kvmbackup.DefinitionOptions{Secrets: true})
		b.must(err)
		path, err := libvirtjob.TPMStateFile(def.XML, root+"/lib/swtpm")
		b.must(err)
		want, err := os.ReadFile(path)
		if b.must(err); len(want) == 0 || !bytes.Equal(def.TPM, want) || def.TPMNotSaved != "" {
			t.Errorf("%s: %d bytes saved of %d, %q", state, len(def.TPM), len(want), def.TPMNotSaved)
		}
	}

	b.must(b.guest.Domain().Undefine())
	path, err := libvirtjob.TPMStateFile(def.XML, root+"/lib/swtpm")
	b.must(err)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the undefined guest has a TPM still: %v", err)
	}
	dom, err := b.guest.Host.Conn.DomainDefineXML(string(def.XML))
	b.must(err)
	defer func() { _ = dom.Free() }()
	def2, err := b.exec.Definition(b.ctx, b.ref, kvmbackup.DefinitionOptions{Secrets: true})
	if b.must(err); def2.TPM != nil || !strings.Contains(def2.TPMNotSaved, path) {
		t.Errorf("without a state: %d bytes, %q", len(def2.TPM), def2.TPMNotSaved)
	}
	folder := filepath.Dir(path)
	b.must(os.MkdirAll(folder, 0o711))
	b.must(os.WriteFile(path, def.TPM, 0o600))
	b.must(dom.CreateWithFlags(libvirt.DOMAIN_START_PAUSED))
	log, err := os.ReadFile(filepath.Join(root, "log", "swtpm", b.guest.Name+"-swtpm.log"))
	b.must(err)
	if made := strings.Count(string(log), "Starting vTPM manufacturing"); made != 1 {
		t.Errorf("TPMs were made %d times, want once, for the original:\n%s", made, log)
	}
}

// Where no state can be had, there is a reason.
func TestTPMStateFile(t *testing.T) {
	t.Parallel()
	for want, backend := range map[string]string{
		"/d/ID/tpm2/tpm2-00.permall":  "<backend type='emulator' version='2.0'/>",
		"/d/ID/tpm1.2/tpm-00.permall": "<backend type='emulator' version='1.2'/>",
		"/else/where/tpm2-00.permall": "<backend type='emulator' version='2.0'>" +
			"<source type='dir' path='/else/where'/></backend>",
		"/else/f": "<backend type='emulator' version='2.0'><source type='file' path='/else/f'/></backend>",
		"":        "<backend type='passthrough'><device path='/dev/tpm0'/></backend>",
	} {
		got, err := libvirtjob.TPMStateFile([]byte("<domain><uuid>ID</uuid><devices><tpm model='tpm-crb'>"+backend+
			"</tpm></devices></domain>"), "/d")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", backend, got, err, want)
		}
	}
	if got, err := libvirtjob.TPMStateFile([]byte("<domain/>"), "/d"); err == nil {
		t.Errorf("without a TPM: %q", got)
	}
}
