package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// folder compares one member's folder with its manifest and its record.
func (v *verifier) folder(ctx context.Context, b kvmbackup.Backup) error {
	v.step("verify folder " + b.Path)
	parent := v.parent
	v.parent = nil
	m, err := v.e.cfg.Repository.ReadManifest(ctx, b.Path)
	if err != nil {
		if err = repositoryError(err); errors.Is(err, kvmbackup.ErrMissingFile) || errors.Is(err, kvmbackup.ErrDamaged) {
			return v.add(ctx, ProblemManifest, b, "", repository.ManifestName, kvmbackup.ErrorText(err))
		}
		return err
	}
	if err := ofRecord(m.Backup, b); err != nil {
		return v.add(ctx, ProblemManifest, b, "", repository.ManifestName, kvmbackup.ErrorText(err))
	}
	if v.parent = &m; parent != nil {
		if err := m.StandsOn(*parent); err != nil {
			return v.add(ctx, ProblemManifest, b, "", repository.ManifestName, kvmbackup.ErrorText(err))
		}
	}
	if err := v.unlock(ctx, m); err != nil {
		return err
	}
	files, err := v.e.cfg.Repository.Files(ctx, b.Path)
	if err != nil {
		return err
	}
	named := map[string]bool{repository.ManifestName: true}
	for _, vol := range b.Volumes {
		named[vol.File] = true
	}
	for _, f := range m.Files {
		named[f.Name] = true
		if err := v.sideFile(ctx, b, f); err != nil {
			return err
		}
	}
	for _, f := range files {
		if !named[f.Name] {
			v.report.Notes = append(v.report.Notes, Problem{Code: ProblemExtra, Backup: b.ID, File: fileOf(b, f.Name),
				Detail: kvmbackup.Printable(fmt.Sprintf("%s/%s is not in the manifest; move it away: the folder "+
					"can't be removed with it", b.Path, f.Name))})
		}
	}
	return nil
}

// unlock opens a sealed backup, if the Keys do.
func (v *verifier) unlock(ctx context.Context, m repository.Manifest) error {
	if !m.Sealed() {
		return nil
	}
	key, known := v.ring[m.ID]
	var err error
	if known {
		err = repositoryError(m.Authenticate(key))
	} else {
		key, err = v.e.unlock(ctx, m)
	}
	switch {
	case err == nil:
		v.ring[m.ID] = key
	case errors.Is(err, kvmbackup.ErrDamaged):
		return v.add(ctx, ProblemManifest, m.Backup, "", repository.ManifestName, kvmbackup.ErrorText(err))
	case errors.Is(err, kvmbackup.ErrKey):
		for _, id := range m.KeyIDs {
			if !slices.Contains(v.report.MissingKeys, id) {
				v.report.MissingKeys = append(v.report.MissingKeys, id)
			}
		}
	default:
		return err
	}
	return nil
}

// sideFile is needed by no descendant.
func (v *verifier) sideFile(ctx context.Context, b kvmbackup.Backup, f kvmbackup.SideFile) error {
	_, err := v.e.readSideFile(ctx, b.Path, f)
	switch {
	case errors.Is(err, kvmbackup.ErrMissingFile):
		v.addLocal(ProblemMissing, b, f.Name, kvmbackup.ErrorText(err))
	case errors.Is(err, kvmbackup.ErrDamaged):
		v.addLocal(ProblemSideFile, b, f.Name, kvmbackup.ErrorText(err))
	default:
		return err
	}
	return nil
}

// readSideFile reads a small file and compares it with its checksum in the manifest, which is that on record.
func (e *Engine) readSideFile(ctx context.Context, dir string, f kvmbackup.SideFile) ([]byte, error) {
	data, err := e.cfg.Repository.ReadSideFile(ctx, dir, f.Name, max(f.Size, 0))
	if errors.Is(err, repository.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %s/%s is larger than the %d bytes of the manifest", kvmbackup.ErrDamaged, dir,
			f.Name, f.Size)
	}
	if err != nil {
		return nil, repositoryError(err)
	}
	if has := sha256Hex(data); has != f.SHA256 || int64(len(data)) != f.Size {
		return nil, fmt.Errorf("%w: %s/%s has sha256 %s, the manifest says %s", kvmbackup.ErrDamaged, dir, f.Name, has,
			f.SHA256)
	}
	return data, nil
}
