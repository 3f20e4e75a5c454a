package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
)

// maxNVRAMBytes is far above any UEFI variable store's size.
const maxNVRAMBytes = 64 << 20

// Definition implements kvmbackup.Executor. The UEFI variable store is read from this machine's file system; one that
// is not there yet, because the domain was never started, is nil.
func (e *Executor) Definition(
	ctx context.Context, ref kvmbackup.DomainRef, opts kvmbackup.DefinitionOptions,
) (kvmbackup.Definition, error) {
	d, err := e.lookUp(ctx, ref)
	if err != nil || d == nil {
		return kvmbackup.Definition{}, err
	}
	defer d.close()
	def, err := definition(ctx, d, opts)
	if err != nil {
		return kvmbackup.Definition{}, fmt.Errorf("read definition of %q: %w", ref.Name, err)
	}
	return def, nil
}

func definition(ctx context.Context, d *domain, opts kvmbackup.DefinitionOptions) (kvmbackup.Definition, error) {
	flags := libvirt.DOMAIN_XML_INACTIVE
	if opts.Secrets {
		flags |= libvirt.DOMAIN_XML_SECURE
	}
	text, err := call(ctx, d, func(dom *libvirt.Domain) (string, error) { return dom.GetXMLDesc(flags) })
	if err != nil {
		return kvmbackup.Definition{}, err
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(text); err != nil {
		return kvmbackup.Definition{}, err
	}
	out := kvmbackup.Definition{XML: []byte(text)}
	path, template, _ := variableStore(def)
	out.NVRAMTemplate = template
	if path != "" {
		out.NVRAM, err = detached(ctx, path, func() ([]byte, error) { return readNVRAM(path) }, nil)
	}
	out.TPM, out.TPMNotSaved = saveTPM(ctx, d, def)
	return out, err
}

// variableStore returns the paths of the UEFI variable store and its template. One that is not a local file has no
// path.
func variableStore(def libvirtxml.Domain) (path, template string, has bool) {
	if def.OS == nil {
		return "", "", false
	}
	if v := def.OS.VarStore; v != nil {
		return v.Path, v.Template, true
	}
	n := def.OS.NVRam
	switch {
	case n == nil:
		return "", "", false
	case n.Source == nil:
		return n.NVRam, n.Template, true
	case n.Source.File != nil:
		return n.Source.File.File, n.Template, true
	case n.Source.Block != nil:
		return n.Source.Block.Dev, n.Template, true
	}
	return "", n.Template, true
}

func readNVRAM(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read UEFI variables: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxNVRAMBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read UEFI variables: %w", err)
	}
	if len(data) > maxNVRAMBytes {
		return nil, fmt.Errorf("%w: UEFI variable store %s is larger than %d bytes", kvmbackup.ErrUnsupported, path,
			maxNVRAMBytes)
	}
	return data, nil
}
