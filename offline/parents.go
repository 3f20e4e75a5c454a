package offline

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/copier"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// parents are the chains with which a job's volumes are compared, those that can be read.
type parents struct {
	*qcow2.SourceServer
	exports map[kvmbackup.VolumeID]string
}

// serveParents serves what the job's volumes are compared with; nil where nothing of that can be read.
func serveParents(ctx context.Context, tool *qcow2.Tool, spec kvmbackup.JobSpec, files beside) (*parents, error) {
	var chains [][]qcow2.Layer
	var ids []kvmbackup.VolumeID
	for _, v := range spec.Volumes {
		if v.Compare && len(v.Parent) > 0 {
			chains, ids = append(chains, parentLayers(v, files)), append(ids, v.VolumeID)
		}
	}
	if len(chains) == 0 {
		return nil, nil //nolint:nilnil // there is nothing to serve
	}
	server, err := tool.ServeChains(ctx, chains)
	if err != nil {
		return nil, fmt.Errorf("what is compared with: %w", parentError(err))
	}
	p := &parents{server, map[kvmbackup.VolumeID]string{}}
	for i, id := range ids {
		p.exports[id] = server.Export(i)
	}
	return p, nil
}

// parentLayers are the files of a volume's parent chain.
func parentLayers(v kvmbackup.JobVolume, files beside) []qcow2.Layer {
	var layers []qcow2.Layer
	for i, path := range v.Parent {
		layers = append(layers, qcow2.Layer{Path: files.path(path), Secret: qcow2.NewSecret(v.ParentSecret(i))})
	}
	return layers
}

// readIndexes reads those of the volumes' parents that can be used.
func readIndexes(
	ctx context.Context, tool *qcow2.Tool, spec kvmbackup.JobSpec, files beside,
) map[kvmbackup.VolumeID]*qcow2.Index {
	indexes := map[kvmbackup.VolumeID]*qcow2.Index{}
	for _, v := range spec.Volumes {
		if !v.Compare && !spec.Digests {
			continue
		}
		index, err := readIndex(ctx, tool, v, files.path(v.Index))
		if err != nil && v.Compare && len(v.Parent) == 0 { // else the parent is read
			index, err = qcow2.UnknownIndex(v.VirtualSize), nil
		}
		if err == nil {
			indexes[v.VolumeID] = index
		}
	}
	return indexes
}

var errNoIndex = errors.New("there is no index")

func readIndex(ctx context.Context, tool *qcow2.Tool, v kvmbackup.JobVolume, path string) (*qcow2.Index, error) {
	switch {
	case v.Index == "":
		return nil, errNoIndex
	case v.IndexKey != nil:
		key, err := v.IndexKey.MarshalBinary()
		if err != nil {
			return nil, err
		}
		return tool.ReadSealedIndex(ctx, path, key)
	case v.IndexDigest != "":
		return tool.ReadIndex(ctx, path, v.IndexDigest)
	}
	return nil, errNoIndex
}

// parentError says what the matter is with files of the repository.
func parentError(err error) error {
	switch {
	case errors.Is(err, qcow2.ErrNotFound):
		return fmt.Errorf("%w: %w", kvmbackup.ErrMissingFile, err)
	case errors.Is(err, qcow2.ErrLocked): // and no guest's image
		return fmt.Errorf("%w: %w", kvmbackup.ErrBusy, err)
	case errors.Is(err, qcow2.ErrFormat), errors.Is(err, qcow2.ErrHeader),
		errors.Is(err, qcow2.ErrLUKS), errors.Is(err, qcow2.ErrSecret),
		errors.Is(err, qcow2.ErrNotRegular), errors.Is(err, qcow2.ErrCorrupt):
		return fmt.Errorf("%w: %w", kvmbackup.ErrDamaged, err)
	}
	return Translate(err)
}

func (p *parents) close() error {
	if p == nil {
		return nil
	}
	return p.Close(endGrace)
}

// Hide removes the sockets' names.
func (t *Targets) Hide() error {
	if t.parents == nil {
		return t.TargetServer.Hide()
	}
	return errors.Join(t.TargetServer.Hide(), t.parents.Hide())
}

// Explain adds to the error of a connection that has ended how its daemon has.
func (t *Targets) Explain(err error) error {
	if t.parents == nil {
		return t.TargetServer.Explain(err)
	}
	return t.parents.Explain(t.TargetServer.Explain(err))
}

// Disk is how the i-th of the spec's volumes is copied from a source that has this bitmap of the base, if it is needed.
func (t *Targets) Disk(i int, v kvmbackup.JobVolume, source copier.End, base string) copier.Disk {
	d := copier.Disk{
		Name: v.Device, Source: source, Target: copier.End{Dial: t.Dial, Export: t.Export(i)},
		Index: t.indexes[v.VolumeID], Sums: t.digests,
	}
	if v.ByBitmap() {
		d.Bitmap = base
	}
	if v.Compare {
		if d.Alone = len(v.Parent) == 0; !d.Alone {
			d.Parent = copier.End{Dial: t.parents.Dial, Export: t.parents.exports[v.VolumeID]}
		}
	}
	return d
}

// CheckCompared is an ErrInvalid for a spec that compares what isn't an incremental on files.
func CheckCompared(spec kvmbackup.JobSpec) error {
	for _, v := range spec.Volumes {
		with := len(v.Parent) > 0 || v.IndexKey != nil
		switch {
		case !v.Compare && (v.CheckBitmap || with), v.Compare && (v.Kind != kvmbackup.KindIncremental || !with):
			return fmt.Errorf("%w: volume %q of %s is to be compared with %q",
				kvmbackup.ErrInvalid, v.VolumeID, v.Device, v.Parent)
		case v.Compare && spec.Transfer == kvmbackup.TransferPush, v.Compare && spec.Transfer == kvmbackup.TransferAuto:
			return fmt.Errorf("%w: %s can't be compared by push", kvmbackup.ErrInvalid, v.Device)
		}
	}
	return nil
}
