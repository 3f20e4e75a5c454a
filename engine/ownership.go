package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// stale returns what was seen on the domain, is this consumer's and is not to be kept. was is the checkpoint that was
// the active one: nothing has to be read to know that it is this consumer's. For any other name of the library's form,
// which a crash or another consumer has left, the records are asked and, where they don't know it, the VM's folders.
// After an error it returns what is certain.
func (o *op) stale(
	ctx context.Context, was kvmbackup.CheckpointName, keep []kvmbackup.CheckpointName,
) ([]kvmbackup.CheckpointName, error) {
	st := o.seen
	sure := Ownership{Prefix: "", VM: o.vm, Known: []kvmbackup.CheckpointName{was}}
	if !sure.InDoubt(st, keep...) {
		return sure.Stale(st, keep...), nil
	}
	records, err := o.e.cfg.Store.List(ctx, kvmbackup.Query{VM: o.vm})
	if err != nil {
		return sure.Stale(st, keep...), err
	}
	sure.Known = append(sure.Known, checkpointsOf(records)...)
	owned := sure
	owned.Prefix = o.e.prefix()
	if len(owned.Stale(st, keep...)) == len(sure.Stale(st, keep...)) {
		return sure.Stale(st, keep...), nil // the records know them all
	}
	entries, err := o.e.cfg.Repository.List(ctx, o.vm)
	if err != nil {
		return sure.Stale(st, keep...), repositoryError(err)
	}
	owned.Others = othersOf(entries, records)
	for _, f := range owned.Foreign(st, keep...) {
		if f.OtherStore {
			o.warn("left a checkpoint alone whose backup is in this repository and not in this store; "+
				"give each store a prefix of its own, or import the backup",
				"checkpoint", string(f.Name))
		}
	}
	return owned.Stale(st, keep...), nil
}

func checkpointsOf(records []kvmbackup.Backup) []kvmbackup.CheckpointName {
	var names []kvmbackup.CheckpointName
	for _, b := range records {
		if b.Checkpoint != "" {
			names = append(names, b.Checkpoint)
		}
	}
	return names
}

// othersOf returns the paths of backups, whole or being written, of which there is no record.
func othersOf(entries []repository.Entry, records []kvmbackup.Backup) []string {
	var paths []string
	recorded := map[kvmbackup.BackupID]bool{}
	for _, b := range records {
		recorded[b.ID] = true
	}
	for _, e := range entries {
		if !recorded[e.ID] && (e.Kind == repository.FolderPublished || e.Kind == repository.FolderPartial) {
			paths = append(paths, e.Path)
		}
	}
	return paths
}

// ofDomain adds the domain's UUID to a record from before records had it, where the manifest can be read.
func (e *Engine) ofDomain(ctx context.Context, b kvmbackup.Backup) kvmbackup.Backup {
	if b.DomainUUID != "" || b.Status != kvmbackup.StatusCompleted || b.Repository != e.cfg.Repository.ID() {
		return b
	}
	if m, err := e.cfg.Repository.ReadManifest(ctx, b.Path); err == nil && m.ID == b.ID {
		b.DomainUUID = m.DomainUUID
	}
	return b
}

// Ownership says which checkpoints and bitmaps on a VM's domain are one consumer's.
type Ownership struct {
	Prefix string
	VM     kvmbackup.VMID
	// Known are those of the consumer's records. They are its own whatever they begin with: the prefix may have been
	// another one once.
	Known []kvmbackup.CheckpointName
	// Others are the paths, VM/STAMP, of backups that are in the consumer's repository and not in its store. Another
	// store uses that repository, or this one was lost, and their checkpoints are left to the store that has their
	// records.
	Others []string
}

// Stale returns what may be dropped from a VM's domain: the consumer's checkpoints and bitmaps without those to
// keep. They came from failed jobs, from backups whose successor is complete, or from crashes. Other VMs' bitmaps on
// layers below the domain's images are not among them: such a layer may be a template.
func (w Ownership) Stale(st kvmbackup.DomainStatus, keep ...kvmbackup.CheckpointName) []kvmbackup.CheckpointName {
	var stale []kvmbackup.CheckpointName
	for _, n := range st.CheckpointNames() {
		name := kvmbackup.CheckpointName(n)
		if !slices.Contains(keep, name) && !inherited(w.VM, st, n) && w.owns(name) {
			stale = append(stale, name)
		}
	}
	return stale
}

// owns says whether a checkpoint or bitmap is the consumer's.
func (w Ownership) owns(name kvmbackup.CheckpointName) bool {
	return slices.Contains(w.Known, name) || name.HasPrefix(w.Prefix) && !w.others(name)
}

// others says whether a checkpoint of the prefix is that of a backup of another store.
func (w Ownership) others(name kvmbackup.CheckpointName) bool {
	_, stamp, _ := name.Parts()
	return slices.Contains(w.Others, string(w.VM)+"/"+stamp.String())
}

// InDoubt says whether the domain has names of the library's form, not among those known or to keep, of which only
// records and folders can say whose they are.
func (w Ownership) InDoubt(st kvmbackup.DomainStatus, keep ...kvmbackup.CheckpointName) bool {
	return slices.ContainsFunc(st.CheckpointNames(), func(n string) bool {
		name := kvmbackup.CheckpointName(n)
		_, _, ours := name.Parts()
		return ours && !slices.Contains(w.Known, name) && !slices.Contains(keep, name) && !inherited(w.VM, st, n)
	})
}

// ForeignCheckpoint is a checkpoint or bitmap that is not the consumer's own, and which nothing of ours touches.
type ForeignCheckpoint struct {
	Name kvmbackup.CheckpointName
	// OtherStore says that it belongs to a backup in the consumer's repository that its store doesn't know. Otherwise
	// it is another consumer's, or another VM's on layers below the domain's images.
	OtherStore bool
}

// Foreign returns the domain's checkpoints and bitmaps that are not the consumer's, without those to keep.
func (w Ownership) Foreign(st kvmbackup.DomainStatus, keep ...kvmbackup.CheckpointName) []ForeignCheckpoint {
	var foreign []ForeignCheckpoint
	for _, n := range st.CheckpointNames() {
		name := kvmbackup.CheckpointName(n)
		if w.owns(name) && (slices.Contains(keep, name) || !inherited(w.VM, st, n)) {
			continue
		}
		foreign = append(foreign, ForeignCheckpoint{name, name.HasPrefix(w.Prefix) && w.others(name)})
	}
	return foreign
}

// inherited says whether nothing ties a name to the VM: it doesn't have its tag, libvirt doesn't list it, and only
// layers below the VM's images have it.
func inherited(vm kvmbackup.VMID, st kvmbackup.DomainStatus, name string) bool {
	if strings.HasSuffix(name, "-"+vm.Tag()) {
		return false
	}
	for _, d := range st.Disks {
		for _, b := range d.Bitmaps {
			if b.Name == name && (len(b.Layers) == 0 || len(d.Layers) == 0 || b.Layers[0] == d.Layers[0]) {
				return false
			}
		}
	}
	return !slices.ContainsFunc(st.Checkpoints, func(c kvmbackup.CheckpointStatus) bool { return c.Name == name })
}
