package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// mayCompare says whether the policy may have contents compared.
func mayCompare(in kvmbackup.DecideInput) bool {
	p := in.Policy
	return in.CantCompare == "" && (p.Compare || p.CompareEvery > 0 || p.ForceCompare)
}

// cantCompare says why the domain's contents can't be compared now, and the way out; empty: they can. By an inventory
// they can unless it says that they can't: what the host's own engine has nobody here knows.
func (o *op) cantCompare() string {
	switch {
	case o.inventory && (o.seen.State == kvmbackup.DomainStopped || o.seen.NoPull == ""):
		return ""
	case o.inventory:
		return "a running VM is compared by pull: " + o.seen.NoPull
	case !o.seen.CanCompare:
		return "the hypervisor's executor can't compare contents"
	case o.seen.State == kvmbackup.DomainStopped, o.seen.CanPull && len(o.e.cfg.Scratch) > 0:
		return ""
	case len(o.e.cfg.Scratch) == 0:
		return "a running VM is compared by pull, which needs a scratch on local storage: configure one"
	case o.seen.NoPull != "":
		return "a running VM is compared by pull: " + o.seen.NoPull
	}
	return "a running VM is compared by pull, which the hypervisor's executor can't"
}

// compares says whether a volume's contents are compared.
func compares(d kvmbackup.Decision) bool {
	return slices.ContainsFunc(d.Volumes, func(v kvmbackup.VolumeDecision) bool { return v.Compare })
}

// notCompared says that a comparison would have made another decision, where one can't be made. ErrUnsupported where
// the request asks for it and the decision goes by bitmaps.
func (e *Engine) notCompared(in kvmbackup.DecideInput, d kvmbackup.Decision) ([]kvmbackup.Reason, error) {
	why := in.CantCompare
	if in.CantCompare = ""; why == "" || !mayCompare(in) {
		return nil, nil
	}
	could, err := e.cfg.Decider.Decide(in)
	if err != nil || !compares(could) {
		return nil, err
	}
	if in.Policy.ForceCompare && d.Kind == kvmbackup.KindIncremental {
		return nil, fmt.Errorf("%w: %q can't be compared with its last backup: %s", kvmbackup.ErrUnsupported, in.VM, why)
	}
	return []kvmbackup.Reason{{Code: ReasonCannotCompare, Detail: why}}, nil
}

// comparison is what a volume is compared with.
type comparison struct {
	parent   []string             // the files of its parent's chain, nearest first; empty: they can't be read here
	keys     []*kvmbackup.DataKey // of those that are sealed
	index    string
	digest   string             // that proves the index, or
	indexKey *kvmbackup.DataKey // its key
}

// compareWith tells the job what its volumes are compared with.
func compareWith(spec *kvmbackup.JobSpec, with []comparison) {
	for i, c := range with {
		v := &spec.Volumes[i]
		v.Parent, v.ParentKeys = c.parent, c.keys
		v.Index, v.IndexDigest, v.IndexKey = c.index, c.digest, c.indexKey
	}
}

// notComparableError says why what would be compared with is of no use for it, though it may be whole.
type notComparableError string

func (e notComparableError) Error() string { return string(e) }

// comparisons looks at what the decision's volumes are compared with: files whose headers are what the records say, or
// an index that can be used. One for each volume, of which those that aren't compared are empty; the reasons say how
// those are compared whose parents can't be read. A notComparableError, ErrDamaged, ErrMissingFile.
func (o *op) comparisons(ctx context.Context, d kvmbackup.Decision) ([]comparison, []kvmbackup.Reason, error) {
	if !compares(d) {
		return nil, nil, nil
	}
	chain, err := kvmbackup.ChainOf(ctx, o.e.cfg.Store, d.ParentID)
	if err != nil {
		return nil, nil, err
	}
	ring, err := o.openable(ctx, chain)
	if err != nil {
		return nil, nil, err
	}
	with, reasons := make([]comparison, len(d.Volumes)), []kvmbackup.Reason{}
	for i, v := range d.Volumes {
		if !v.Compare {
			continue
		}
		layers, err := layersOf(chain, v.VolumeID, o.e.cfg.Repository, ring)
		if err != nil {
			return nil, nil, err
		}
		c, why, err := o.comparison(ctx, layers, ring)
		closeLayers(layers)
		if err != nil {
			return nil, nil, err
		}
		if with[i] = c; why != "" {
			reasons = append(reasons, kvmbackup.Reason{Code: ReasonComparedByIndex, VolumeID: v.VolumeID, Detail: why})
		}
	}
	return with, reasons, nil
}

// comparison is that of one volume; why says what is known of a parent that can't be read.
func (o *op) comparison(ctx context.Context, layers []layer, ring keyring) (c comparison, why string, err error) {
	err = firstError(o.e.openErrors(ctx, layers)...)
	if err == nil {
		err = firstError(o.e.headerErrors(ctx, layers)...)
	}
	if err != nil {
		return c, "", err
	}
	parent := layers[0]
	if i := indexOf(parent); i >= 0 {
		c.index, c.digest = parent.file+indexSuffix, parent.volume.Digest
	}
	if anySealed(layers) {
		if c.digest, c.indexKey = "", o.e.indexKey(parent); c.indexKey == nil {
			c.index = ""
		}
	}
	if slices.ContainsFunc(layers, layer.locked) {
		why, err = o.byIndexAlone(ctx, layers)
		return c, why, err
	}
	for _, l := range layers {
		c.parent = append(c.parent, l.file)
		if key, ok := ring[l.backup.ID]; ok && l.volume.FileEncryption != "" {
			c.keys = append(c.keys, &key)
		} else {
			c.keys = append(c.keys, nil)
		}
	}
	if !anySealed(layers) {
		c.keys = nil
	}
	return c, "", nil
}

// byIndexAlone says what the index of a chain that can't be read here is good for.
func (o *op) byIndexAlone(ctx context.Context, layers []layer) (string, error) {
	if o.e.cfg.IndexKey == (kvmbackup.DataKey{}) {
		return "", notComparableError("the last backups are sealed, and nobody reads them here: configure an index key, " +
			"which backups from the next full on are compared by, or an identity")
	}
	index, err := o.openIndex(ctx, layers)
	if err != nil {
		return "", notComparableError(fmt.Sprintf("the last backups are sealed, and the index of %s by which %s would "+
			"be compared can't be used: %v", layers[0].backup.ID, layers[0].volume.Device, err))
	}
	return fmt.Sprintf("its parent is sealed, and nobody reads it here: pieces of 4 MiB that aren't known to be the same "+
		"are stored whole; of %d of its %d bytes nothing is known", index.UnknownBytes(), index.SizeBytes()), nil
}

// openable has the keys of a chain's sealed backups, if the Keys open them all. What they don't, or not now, is locked.
// ErrDamaged for a manifest that isn't what its MAC or its record says.
func (o *op) openable(ctx context.Context, chain []kvmbackup.Backup) (keyring, error) {
	if o.e.cfg.Keys == nil || !slices.ContainsFunc(chain, kvmbackup.Backup.Sealed) {
		return nil, nil //nolint:nilnil // nothing can be opened
	}
	ring, err := o.e.verifyMembers(ctx, chain)
	switch {
	case errors.Is(err, kvmbackup.ErrKey):
		return nil, nil //nolint:nilnil // the same
	case errors.Is(err, kvmbackup.ErrUnavailable) && ctx.Err() == nil:
		o.warn("the keys of sealed backups can't be asked for", "error", err)
		return nil, nil //nolint:nilnil // the same
	}
	return ring, err
}

// decideOnParents decides again, without a comparison or on no parent, where what would be compared with is of no use
// for it, or what would be compared with or built on is damaged.
func (o *op) decideOnParents(
	ctx context.Context, v *view, d kvmbackup.Decision,
) (kvmbackup.Decision, []comparison, error) {
	with, reasons, err := o.comparisons(ctx, d)
	if not := notComparableError(""); errors.As(err, &not) && o.inventory {
		err = nil // its host may have the keys: see comparisonAssumed
	} else if errors.As(err, &not) {
		o.warn("the parent can't be compared with", "parent", string(d.ParentID), "error", err)
		v.input.CantCompare = string(not)
		d, err = o.decide(*v)
	}
	if err == nil {
		v.parentMAC, err = o.parentMAC(ctx, *v, d)
	}
	if isAny(err, kvmbackup.ErrDamaged, kvmbackup.ErrMissingFile) {
		o.warn("the parent can't be built on", "parent", string(d.ParentID), "error", err)
		v.input.Damaged = append(v.input.Damaged, kvmbackup.ErrorText(err))
		d, err = o.decide(*v)
		return d, nil, err
	}
	d.Reasons = append(d.Reasons, reasons...)
	return d, with, err
}

// bitmapMissed tells loudly of what only the comparison has found.
func (r *running) bitmapMissed(v kvmbackup.VolumeBackup, bytes int64) {
	detail := fmt.Sprintf("%d bytes of %s had changed outside its bitmap, by something behind QEMU's back or by a bug, "+
		"or its parent's files are no longer what they were: verify that with content; "+
		"they are in this backup, and may be missing in those since the last comparison or full", bytes, v.Device)
	r.warn("a bitmap has missed changes", "device", v.Device, "volume", string(v.VolumeID), "bytes", bytes)
	r.record.Reasons = append(r.record.Reasons, kvmbackup.Reason{Code: ReasonBitmapMissed, Detail: detail,
		VolumeID: v.VolumeID})
	r.emit(Event{Type: EventMissed, Bytes: bytes, Detail: fmt.Sprintf("%s: %s", v.VolumeID, detail)})
}

// parentUnreadable tells loudly of what a comparison could not read of the parent, and records it as a verification
// with content would, with every backup that stands on it. A store that doesn't take it is no reason to fail: the
// backup has what is missing there.
func (r *running) parentUnreadable(ctx context.Context, v kvmbackup.VolumeBackup, bytes int64) {
	detail := fmt.Sprintf("%d bytes of %s could not be read of backup %s or what that stands on, when a comparison "+
		"wanted them; they are in the backup after it: verify that with content, which says in which file",
		bytes, v.Device, r.record.ParentID)
	r.warn("a parent can't be read", "device", v.Device, "volume", string(v.VolumeID), "bytes", bytes,
		"parent", string(r.record.ParentID))
	r.record.Reasons = append(r.record.Reasons, kvmbackup.Reason{Code: ReasonParentUnreadable, Detail: detail,
		VolumeID: v.VolumeID})
	r.emit(Event{Type: EventParentUnreadable, Bytes: bytes, Detail: fmt.Sprintf("%s: %s", v.VolumeID, detail)})
	found := kvmbackup.Verification{At: r.e.now().Truncate(time.Microsecond), Content: true, Problem: detail}
	ids, err := r.e.affected(ctx, r.record.ParentID, v.VolumeID)
	for _, id := range ids {
		if id != r.record.ID && err == nil {
			err = r.affectedBy(ctx, id, found)
		}
	}
	if err != nil {
		r.warn("the damage could not be recorded", "parent", string(r.record.ParentID), "error", err)
	}
}

// wasCompared says whether the record says that the volume was, or is being.
func wasCompared(b kvmbackup.Backup, volume kvmbackup.VolumeID) bool {
	return slices.ContainsFunc(b.Reasons, func(r kvmbackup.Reason) bool {
		return r.Code == kvmbackup.ReasonVolumeCompared && r.VolumeID == volume
	})
}
