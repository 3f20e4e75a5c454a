package libvirtjob

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// HeldBytes implements kvmbackup.Executor. QEMU has no question for it, so the image's tables are read from the files,
// below a running guest too. They may be behind by what its QEMU keeps in memory, but not by more than what the top
// layer has grown by.
func (e *Executor) HeldBytes(ctx context.Context, ref kvmbackup.DomainRef, devices []string) (map[string]int64, error) {
	m, err := e.open(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if !m.active {
		return e.offline.HeldBytes(ctx, m.images, devices)
	}
	g, err := queryGraph(ctx, m.domain)
	if err != nil {
		return nil, fmt.Errorf("measure disks of %q: %w", ref.Name, err)
	}
	sizes := map[string]int64{}
	for _, d := range m.disks {
		if d.skip != "" || !slices.Contains(devices, d.device) {
			continue
		}
		held, err := e.held(ctx, g.chain(d))
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			logctx.Logger(ctx, e.log).Debug("can't measure what a disk holds",
				"domain", ref.Name, "device", d.device, "error", err)
			continue
		}
		sizes[d.device] = held
	}
	return sizes, nil
}

// held measures exactly the layers that QEMU has open: no link of a header is followed. An encrypted image can't be
// opened without its secret, and can't be compressed, so that what it takes on the host tells what it holds.
func (e *Executor) held(ctx context.Context, chain []node) (int64, error) {
	if len(chain) == 0 {
		return 0, fmt.Errorf("%w: QEMU has no block node of the name that libvirt gives it", kvmbackup.ErrUnsupported)
	}
	size := chain[0].Image.VirtualSize
	if slices.ContainsFunc(chain, func(n node) bool { return n.Image.Encrypted }) {
		var sum int64
		for _, n := range chain {
			sum += n.allocated()
		}
		return min(sum, size), nil
	}
	var layers []qcow2.Layer
	for _, n := range chain {
		l, err := n.layer()
		if err != nil {
			return 0, err
		}
		layers = append(layers, l)
	}
	measured, err := e.cfg.Images.Measure(ctx, layers[0].Path, qcow2.MeasureOptions{
		Format: layers[0].Format, Backing: layers[1:], ForceShare: true, Timeout: qcow2.NoLimit,
	})
	held := measured.DataBytes(size)
	if layers[0].Format == qcow2.FormatQcow2 {
		held = max(held, min(chain[0].allocated(), size))
	}
	return held, err
}

// layer is the node as qemu-img can open it.
func (n node) layer() (qcow2.Layer, error) {
	format := qcow2.FormatRaw
	if n.Drv == string(qcow2.FormatQcow2) {
		format = qcow2.FormatQcow2
	}
	if !filepath.IsAbs(n.File) || !slices.Contains([]string{"qcow2", "raw", "file", "host_device"}, n.Drv) ||
		!slices.Contains([]string{"file", "host_device"}, n.storage) {
		return qcow2.Layer{}, fmt.Errorf("%w: node %s (%s on %s, %q) is no local image",
			kvmbackup.ErrUnsupported, n.Name, n.Drv, n.storage, n.File)
	}
	return qcow2.Layer{Path: n.File, Format: format}, nil
}
