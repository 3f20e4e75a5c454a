package engine

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// compareDigest reads back what a restore has written and compares it with the digest on record, where there is one: whoever can write to
// the share can change what a chain holds and keep its structure sound. It comes before the new file gets its name.
func (e *Engine) compareDigest(ctx context.Context, req RestoreRequest, j copyJob, written string) error {
	v := j.layers[0].volume
	if v.Digest == "" || req.SkipDigests {
		return nil
	}
	digester, err := e.digester()
	if err != nil {
		return fmt.Errorf("compare the digest on record: %w; restore without (SkipDigests)", err)
	}
	var got string
	switch {
	case j.exists:
		got, err = digester.DeviceDigest(ctx, written, v.VirtualSize)
	case j.out.Format == qcow2.FormatRaw:
		got, err = digester.FileDigest(ctx, written)
	default:
		got, err = digester.Digest(ctx, written, []qcow2.Layer{})
	}
	if err != nil {
		return fmt.Errorf("compare the digest on record: %w", err)
	}
	if got != v.Digest {
		return fmt.Errorf("%w: volume %q of backup %s was restored with the digest %s, on record is %s: its chain is not what it was; "+
			"verify it with content, or restore all the same without the comparison (SkipDigests)",
			kvmbackup.ErrDamaged, v.VolumeID, j.layers[0].backup.ID, got, v.Digest)
	}
	return nil
}
