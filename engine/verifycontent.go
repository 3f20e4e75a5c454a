package engine

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

func hasDigests(b kvmbackup.Backup) bool {
	return slices.ContainsFunc(b.Volumes, func(v kvmbackup.VolumeBackup) bool {
		return v.Digest != "" || v.FileDigest != ""
	})
}

// sealed compares a sealed file's bytes with their digest, which takes no key, before anything opens it.
func (v *verifier) sealed(ctx context.Context, l layer) (damaged bool, err error) {
	if l.volume.FileEncryption == "" {
		return false, nil
	}
	before := len(v.report.Problems)
	digester, err := v.e.digester()
	if err == nil {
		err = v.fileDigest(ctx, digester, l)
	}
	return len(v.report.Problems) > before, err
}

// content compares the files' digests first, because they name the damaged file, and then the guest-visible content.
func (v *verifier) content(ctx context.Context, layers []layer) error {
	digester, err := v.e.digester()
	if err != nil {
		return err
	}
	for _, l := range layers {
		if err := v.fileDigest(ctx, digester, l); err != nil {
			return err
		}
	}
	top := layers[0]
	if top.volume.Digest == "" || v.named(layers) {
		return nil
	}
	has, err := digester.Digest(ctx, top.path(), backing(layers))
	counted(ctx, top.volume.VolumeID, top.volume.VirtualSize)
	problem, err := v.compare(ctx, fmt.Sprintf("volume %s as the guest sees it", top.volume.VolumeID), has,
		top.volume.Digest, err)
	if err == nil && problem != "" {
		err = v.add(ctx, ProblemContent, top.backup, top.volume.VolumeID, top.volume.File, problem)
	}
	return err
}

// fileDigest compares a file's bytes, once.
func (v *verifier) fileDigest(ctx context.Context, digester Digester, l layer) error {
	if l.volume.FileDigest == "" || v.compared["digest "+l.file] {
		return nil
	}
	v.compared["digest "+l.file] = true
	has, err := digester.FileDigest(ctx, l.path())
	counted(ctx, l.volume.VolumeID, l.volume.StoredSize)
	problem, err := v.compare(ctx, fmt.Sprintf("%s/%s: its bytes", l.backup.Path, l.volume.File), has,
		l.volume.FileDigest, err)
	if err == nil && problem != "" {
		err = v.add(ctx, ProblemContent, l.backup, l.volume.VolumeID, l.volume.File, problem)
	}
	return err
}

// compare says what is wrong with a digest. Content that can't be read is damage, too.
func (v *verifier) compare(ctx context.Context, what, has, want string, err error) (problem string, _ error) {
	if err != nil {
		if err = damage(ctx, err); errors.Is(err, kvmbackup.ErrDamaged) || errors.Is(err, kvmbackup.ErrMissingFile) {
			return fmt.Sprintf("%s can't be read: %s", what, kvmbackup.ErrorText(err)), nil
		}
		return "", err
	}
	v.report.Digests++
	if has != want {
		return fmt.Sprintf("%s: digest %s, recorded is %s", what, has, want), nil
	}
	return "", nil
}

// named says whether a file of the layers was found damaged already.
func (v *verifier) named(layers []layer) bool {
	return slices.ContainsFunc(layers, func(l layer) bool {
		return slices.ContainsFunc(v.report.Problems, func(p Problem) bool {
			return p.Code == ProblemContent && strings.HasSuffix(p.File, path.Join(l.backup.Path, l.volume.File))
		})
	})
}
