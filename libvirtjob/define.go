package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// Defined is a domain that Define has defined.
type Defined struct {
	Name  string `json:"name"`
	UUID  string `json:"uuid"`
	NVRAM string `json:"nvram,omitempty"` // path of the saved UEFI variables; empty: there were none
	TPM   string `json:"tpm,omitempty"`   // path of the saved TPM's state; empty: there was none
	// NewNVRAM and NewTPM say that the original had one of which nothing was saved, so that libvirt makes a new one:
	// without the guest's boot entries, or its keys.
	NewNVRAM bool `json:"new_nvram,omitempty"`
	NewTPM   bool `json:"new_tpm,omitempty"`
}

// CheckDefine says whether Define would succeed, before the disks are restored: the name is free, nothing is where the
// UEFI variables go, and libvirt takes the definition. It defines the domain and undefines it again. The disks needn't
// be there yet. Errors are those of Define.
func (e *Executor) CheckDefine(ctx context.Context, saved kvmbackup.Definition, o RewriteOptions) error {
	n, err := e.newDomain(ctx, saved, o)
	if err == nil {
		err = n.define(ctx)
	}
	if err == nil {
		err = n.undefine(ctx)
	}
	if err != nil {
		return fmt.Errorf("check definition of %q: %w", o.Name, err)
	}
	return nil
}

// Define defines a domain on restored disks from what was saved with a backup. RewriteDefinition makes its XML; its
// UEFI variables, where they were saved, are written to RewriteOptions.NVRAM, and its TPM's state to where libvirt
// looks for it. The files are made on this machine. The domain isn't started. After an error neither the domain nor a
// file of it is left; the disks are the caller's.
//
// Returns kvmbackup.ErrTargetExists if there is a domain of that name or a file where the variables go, what
// RewriteDefinition returns, and libvirt's error if it refuses the definition.
func (e *Executor) Define(ctx context.Context, saved kvmbackup.Definition, o RewriteOptions) (Defined, error) {
	n, err := e.newDomain(ctx, saved, o)
	if err != nil {
		return Defined{}, fmt.Errorf("define %q: %w", o.Name, err)
	}
	for _, step := range []func(context.Context) error{n.writeNVRAM, n.writeTPM, n.define} {
		if err := step(ctx); err != nil {
			return Defined{}, fmt.Errorf("define %q: %w", o.Name, errors.Join(err, n.undo(ctx)))
		}
	}
	return n.Defined, nil
}

// newDomain is one domain that is about to be defined.
type newDomain struct {
	Defined
	exec   *Executor
	saved  kvmbackup.Definition
	xml    string
	tpmDir string // of this domain alone

	wroteNVRAM, wroteTPM bool
}

func (e *Executor) newDomain(ctx context.Context, saved kvmbackup.Definition, o RewriteOptions) (*newDomain, error) {
	if (saved.NVRAM == nil) != (o.NVRAM == "") {
		return nil, fmt.Errorf("%w: UEFI variables need a path, and a path needs variables that were saved",
			kvmbackup.ErrInvalid)
	}
	text, err := RewriteDefinition(saved.XML, o)
	if err != nil {
		return nil, err
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(string(text)); err != nil {
		return nil, err
	}
	_, _, hasVariables := variableStore(def)
	n := &newDomain{exec: e, saved: saved, xml: string(text), Defined: Defined{
		Name: def.Name, UUID: def.UUID, NVRAM: o.NVRAM,
		NewNVRAM: hasVariables && saved.NVRAM == nil, NewTPM: tpmOf(def) != nil && saved.TPM == nil,
	}}
	if err := n.placeTPM(ctx, def); err != nil {
		return nil, err
	}
	if taken, err := n.taken(ctx); err != nil || taken {
		return nil, errors.Join(err, n.nameTaken(taken))
	}
	if n.NVRAM == "" {
		return n, nil
	}
	_, err = detached(ctx, n.NVRAM, func() (fs.FileInfo, error) { return os.Lstat(n.NVRAM) }, nil)
	switch {
	case err == nil:
		return nil, fmt.Errorf("%w: %s, where the UEFI variables go", kvmbackup.ErrTargetExists, n.NVRAM)
	case errors.Is(err, fs.ErrNotExist):
		return n, nil
	}
	return nil, err
}

// placeTPM finds the place of the saved TPM's state.
func (n *newDomain) placeTPM(ctx context.Context, def libvirtxml.Domain) error {
	if n.saved.TPM == nil {
		return nil
	}
	uri, err := onConnection(ctx, n.exec, n.Name, (*libvirt.Connect).GetURI, nil)
	if err != nil {
		return translate(err)
	}
	dir, err := tpmDirOf(uri)
	if err != nil {
		return err
	}
	n.tpmDir = filepath.Join(dir, n.UUID)
	n.TPM, _, err = tpmStateFile(def, dir)
	return err
}

// taken says whether there is a domain of the name.
func (n *newDomain) taken(ctx context.Context) (bool, error) {
	d, err := n.exec.lookUp(ctx, kvmbackup.DomainRef{Name: n.Name})
	if err == nil {
		d.close()
	}
	if errors.Is(err, kvmbackup.ErrNoDomain) {
		return false, nil
	}
	return err == nil, err
}

func (n *newDomain) nameTaken(taken bool) error {
	if !taken {
		return nil
	}
	return fmt.Errorf("%w: there is a domain %q already; choose another name", kvmbackup.ErrTargetExists, n.Name)
}

func (n *newDomain) writeNVRAM(ctx context.Context) error {
	if n.NVRAM == "" {
		return nil
	}
	_, err := detached(ctx, n.NVRAM, func() (struct{}, error) {
		return struct{}{}, writeNew(n.NVRAM, n.saved.NVRAM)
	}, func(struct{}) { _ = os.Remove(n.NVRAM) })
	n.wroteNVRAM = err == nil
	if err != nil {
		return fmt.Errorf("write UEFI variables: %w", err)
	}
	return nil
}

// writeTPM puts the state where libvirt's swtpm finds it. libvirt gives it to swtpm's user when the domain starts.
func (n *newDomain) writeTPM(context.Context) error {
	if n.TPM == "" {
		return nil
	}
	n.wroteTPM = true
	err := os.MkdirAll(filepath.Dir(n.TPM), 0o711)
	if err == nil {
		err = writeNew(n.TPM, n.saved.TPM)
	}
	if err != nil {
		return fmt.Errorf("write the TPM's state: %w", err)
	}
	return nil
}

// writeNew writes a file that isn't there yet, and leaves none after an error.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %w", kvmbackup.ErrTargetExists, err)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// define has libvirt define the domain. One that it defines when nobody waits any more is undefined again.
func (n *newDomain) define(ctx context.Context) error {
	_, err := onConnection(ctx, n.exec, n.Name, func(conn *libvirt.Connect) (struct{}, error) {
		dom, err := conn.DomainDefineXML(n.xml)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, dom.Free()
	}, func(struct{}) {
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		if err := n.undefine(c); err != nil {
			logctx.Logger(ctx, n.exec.log).Warn("a domain that was given up stays defined", "domain", n.Name, "uuid",
				n.UUID, "error", err)
		}
	})
	if err == nil {
		return nil
	}
	if taken, lookErr := n.taken(ctx); lookErr == nil && taken { // since it was looked up
		return n.nameTaken(taken)
	}
	return translate(err)
}

// undefine removes the definition that libvirt has by the new UUID, and leaves the files.
func (n *newDomain) undefine(ctx context.Context) error {
	_, err := onConnection(ctx, n.exec, n.Name, func(conn *libvirt.Connect) (struct{}, error) {
		dom, err := conn.LookupDomainByUUIDString(n.UUID)
		if isCode(err, libvirt.ERR_NO_DOMAIN) {
			return struct{}{}, nil
		}
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, errors.Join(dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_KEEP_NVRAM), dom.Free())
	}, nil)
	return translate(err)
}

// undoLimit bounds what is done after a context's end.
const undoLimit = 30 * time.Second

// undo removes what a Define has made.
func (n *newDomain) undo(ctx context.Context) error {
	c, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	err := n.undefine(c)
	if n.wroteNVRAM {
		err = errors.Join(err, os.Remove(n.NVRAM))
	}
	if n.wroteTPM {
		err = errors.Join(err, os.RemoveAll(n.tpmDir))
	}
	return err
}
