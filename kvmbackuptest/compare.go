package kvmbackuptest

import (
	"bytes"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// readParent reads what a volume's parent chain holds.
func (j *job) readParent(v *jobVolume) (err error) {
	if !v.spec.Compare {
		return nil
	}
	if len(v.spec.Parent) == 0 {
		if v.index, err = openIndex(v.spec); err != nil { // one that can't be used knows nothing
			v.index = qcow2.UnknownIndex(v.spec.VirtualSize)
		}
		return nil
	}
	var layers []qcow2.Layer
	for i, path := range v.spec.Parent {
		layers = append(layers, qcow2.Layer{Path: path, Secret: qcow2.NewSecret(v.spec.ParentSecret(i))})
	}
	if v.parent, err = readLayers(layers); err != nil {
		return fmt.Errorf("%w: %w", kvmbackup.ErrJobFailed, err)
	}
	return nil
}

// differing lists the clusters that are not what the parent has, and counts what the base's bitmap doesn't mark of
// them.
func (v *jobVolume) differing(base string) (clusters []int64) {
	marked := map[int64]bool{}
	if v.spec.CheckBitmap {
		for _, i := range v.image.dirty(base) {
			marked[i] = true
		}
	}
	v.bytes = 0
	if v.index != nil {
		return v.differingPieces(marked)
	}
	v.parent.resize(v.source.size)
	for _, i := range v.source.indexes(v.parent) {
		if bytes.Equal(v.source.cluster(i), v.parent.cluster(i)) {
			continue
		}
		clusters = append(clusters, i)
		n := min(ClusterBytes, v.source.size-i*ClusterBytes)
		if v.bytes += n; v.spec.CheckBitmap && !marked[i] {
			v.missed += n
		}
	}
	return clusters
}
