package engine

import (
	"context"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// stale returns what is on the domain, is this consumer's and is not to be kept. was is the checkpoint that was the
// active one: nothing has to be read to know that it is this consumer's. For any other name of the library's form,
// which a crash or another consumer has left, the records are asked and, where they don't know it, the VM's folders.
// After an error it returns what is certain.
func (e *Engine) stale(
	ctx context.Context, o *op, st kvmbackup.DomainStatus, was kvmbackup.CheckpointName, keep []kvmbackup.CheckpointName,
) ([]kvmbackup.CheckpointName, error) {
	sure := kvmbackup.Ownership{Prefix: "", VM: o.vm, Known: []kvmbackup.CheckpointName{was}}
	if !sure.InDoubt(st, keep...) {
		return kvmbackup.StaleCheckpoints(sure, st, keep...), nil
	}
	records, err := e.cfg.Store.List(ctx, kvmbackup.Query{VM: o.vm})
	if err != nil {
		return kvmbackup.StaleCheckpoints(sure, st, keep...), err
	}
	sure.Known = append(sure.Known, checkpointsOf(records)...)
	owned := sure
	owned.Prefix = e.prefix()
	if len(kvmbackup.StaleCheckpoints(owned, st, keep...)) == len(kvmbackup.StaleCheckpoints(sure, st, keep...)) {
		return kvmbackup.StaleCheckpoints(sure, st, keep...), nil // the records know them all
	}
	entries, err := e.cfg.Repository.List(ctx, o.vm)
	if err != nil {
		return kvmbackup.StaleCheckpoints(sure, st, keep...), repositoryError(err)
	}
	owned.Others = othersOf(entries, records)
	for _, f := range kvmbackup.ForeignCheckpoints(owned, st, keep...) {
		if f.OtherStore {
			o.warn("left a checkpoint alone whose backup is in this repository and not in this store; "+
				"give each store a prefix of its own, or import the backup",
				"checkpoint", string(f.Name))
		}
	}
	return kvmbackup.StaleCheckpoints(owned, st, keep...), nil
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
	for _, e := range entries {
		ok := slices.ContainsFunc(records, func(b kvmbackup.Backup) bool { return b.ID == e.ID })
		if !ok && (e.Kind == repository.FolderPublished || e.Kind == repository.FolderPartial) {
			paths = append(paths, e.Path)
		}
	}
	return paths
}
