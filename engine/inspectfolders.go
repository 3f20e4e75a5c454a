package engine

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

func (d *Diagnosis) addFolders(entries []repository.Entry, records []kvmbackup.Backup) {
	byID := map[kvmbackup.BackupID]kvmbackup.Backup{}
	for _, b := range records {
		byID[b.ID] = b
	}
	for _, e := range entries {
		b, known := byID[e.ID]
		f := Finding{Backup: e.ID, Path: e.Path, Effect: "none; it takes space"}
		switch {
		case e.Kind == repository.FolderPartial && known && b.Status != kvmbackup.StatusRunning:
			f.Code, f.Detail, f.Repair = FindingLeftPartial,
				fmt.Sprintf("%s/%s is left of backup %s, which is %v", e.VM, e.Name, b.ID, b.Status), "remove it"
		case e.Kind == repository.FolderPartial && !known:
			f.Code, f.Foreign, f.Detail = FindingForeignPartial, true,
				fmt.Sprintf("%s/%s belongs to a backup that this store doesn't know", e.VM, e.Name)
		case e.Kind == repository.FolderDeleting && known:
			f.Code, f.Detail, f.Repair = FindingLeftDeleting,
				fmt.Sprintf("the removal of %s/%s was begun", e.VM, e.Name), "finish it"
		case e.Kind == repository.FolderPublished && e.Err != nil && !hasFolder(records, e.Path):
			f.Code, f.Detail = FindingUnrecorded, fmt.Sprintf("%s has no record of a whole backup, and its manifest "+
				"can't be used: %v; mend it, then Import adds it", e.Path, e.Err)
		case e.Kind == repository.FolderPublished && known && b.Status == kvmbackup.StatusFailed:
			f.Code, f.Detail, f.Effect = FindingUnrecorded, fmt.Sprintf("%s is whole, and recorded as failed; Import "+
				"adds it", e.Path), "none"
		case e.Kind == repository.FolderPublished && !known && d.ofOther(e.DomainUUID):
			f.Code, f.Foreign, f.Detail = FindingOtherDomain, true,
				fmt.Sprintf("%s has no record, and is of the domain with UUID %s, which had this name", e.Path, e.DomainUUID)
		case e.Kind == repository.FolderPublished && !known:
			f.Code, f.Detail, f.Effect = FindingUnrecorded, fmt.Sprintf("%s has no record; Import adds it", e.Path), "none"
		case e.Kind == repository.FolderLeft:
			f.Code, f.Foreign, f.Detail = FindingForeignFolder, true,
				fmt.Sprintf("%s/%s has what others had put into the folder of a backup that is removed; remove it if "+
					"nobody needs that", e.VM, e.Name)
		case e.Kind == repository.FolderForeign, e.Kind == repository.FolderDeleting:
			f.Code, f.Foreign, f.Detail = FindingForeignFolder, true,
				fmt.Sprintf("%s/%s is no backup of this store", e.VM, e.Name)
		default:
			continue
		}
		d.add(f)
	}
}

// addScratches tells of scratches that can't be used, and of what jobs have left there that are over. A folder of a
// backup that has no record is another store's, and left alone.
func (o *op) addScratches(ctx context.Context, d *Diagnosis, records []kvmbackup.Backup) error {
	if len(o.e.cfg.Scratch) == 0 {
		return nil
	}
	space, err := o.e.cfg.Repository.Probe(ctx, o.vm)
	if err != nil {
		return err
	}
	for _, path := range o.e.cfg.Scratch {
		_, err := o.lookAt(ctx, path, space)
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			d.add(Finding{Code: FindingScratch, Path: path, Detail: err.Error(),
				Effect: "backups by pull fail, or take another scratch"})
		}
		names, err := scratchEntries(ctx, o.e, path)
		if err != nil {
			continue // told already
		}
		for _, name := range names {
			d.addScratch(filepath.Join(path, name), records)
		}
	}
	return nil
}

func (d *Diagnosis) addScratch(path string, records []kvmbackup.Backup) {
	id, ok := scratchOf(filepath.Base(path))
	at := slices.IndexFunc(records, func(b kvmbackup.Backup) bool { return b.ID == id })
	if !ok || at < 0 || records[at].Status == kvmbackup.StatusRunning {
		return
	}
	d.add(Finding{Code: FindingLeftScratch, Backup: id, Path: path, Repair: "remove it",
		Effect: "none; it takes room in the scratch",
		Detail: fmt.Sprintf("%s is left of backup %s, which is %v", path, id, records[at].Status)})
}

// hasFolder says whether a record needs the folder.
func hasFolder(records []kvmbackup.Backup, path string) bool {
	return slices.ContainsFunc(records, func(b kvmbackup.Backup) bool {
		return b.Path == path && b.Status != kvmbackup.StatusFailed
	})
}

// addFiles looks for the files of every backup that should have them.
func (o *op) addFiles(ctx context.Context, d *Diagnosis, records []kvmbackup.Backup) error {
	for _, b := range records {
		if b.Status != kvmbackup.StatusCompleted && b.Status != kvmbackup.StatusDeletePending ||
			b.Repository != o.e.cfg.Repository.ID() {
			continue
		}
		missing, err := o.missingFiles(ctx, []kvmbackup.Backup{b})
		if err != nil {
			return err
		}
		for _, file := range missing {
			d.add(Finding{Code: FindingMissingFile, Backup: b.ID, Path: file,
				Detail: fmt.Sprintf("%s of backup %s is not there", file, b.ID),
				Effect: "the backups that need it can't be restored; the next backup is full if it would have stood on it"})
		}
	}
	return nil
}
