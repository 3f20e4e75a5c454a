package engine

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// toRead is about how much is read of a volume.
func (v *verifier) toRead(chain []kvmbackup.Backup, vol kvmbackup.VolumeBackup) int64 {
	layers, err := layersOf(chain, vol.VolumeID, v.e.cfg.Repository, v.ring)
	if err != nil {
		return 0 // it is a problem, which is reported
	}
	bytes := storedIn(layers)
	for _, l := range layers {
		if l.volume.FileDigest != "" && (v.report.Content || l.volume.FileEncryption != "") {
			bytes += l.volume.StoredSize
		}
	}
	if vol.Digest != "" && v.report.Content {
		bytes += vol.VirtualSize
	}
	return bytes
}

// volume checks one volume's files from the newest down, and then its content.
func (v *verifier) volume(ctx context.Context, chain []kvmbackup.Backup, vol kvmbackup.VolumeBackup) error {
	b := chain[len(chain)-1]
	layers, err := layersOf(chain, vol.VolumeID, v.e.cfg.Repository, v.ring)
	if err != nil {
		return v.add(ctx, ProblemChain, b, vol.VolumeID, "", kvmbackup.ErrorText(err))
	}
	defer closeLayers(layers)
	errs := v.e.openErrors(ctx, layers)
	var opened, sound []layer
	for i, l := range layers {
		if errs[i] != nil {
			continue
		}
		damaged, err := v.sealed(ctx, l)
		if err != nil {
			return err
		}
		if damaged {
			errs[i] = errReported
			continue
		}
		opened = append(opened, l)
	}
	headers := v.e.headerErrors(ctx, opened)
	for i, l := range layers {
		if errs[i] != nil {
			continue
		}
		if errs[i], headers = headers[0], headers[1:]; errs[i] == nil {
			sound = append(sound, l)
		}
	}
	checked := v.e.checkErrors(ctx, sound)
	whole := true
	for i, l := range layers {
		err := errs[i]
		if err == nil {
			err, checked = checked[0], checked[1:]
		}
		if err == nil {
			continue
		}
		if whole = false; errors.Is(err, errReported) {
			continue
		}
		if err := v.layer(ctx, l, err); err != nil {
			return err
		}
	}
	v.report.Files += len(layers)
	if !whole || !v.report.Content {
		return nil
	}
	return v.content(ctx, layers)
}

// errReported is for a file whose damage is in the report.
var errReported = errors.New("reported")

// layer reports what is wrong with one file, unless nothing is known of it.
func (v *verifier) layer(ctx context.Context, l layer, err error) error {
	code := ProblemCheck
	switch {
	case errors.Is(err, kvmbackup.ErrMissingFile):
		code = ProblemMissing
	case isAny(err, qcow2.ErrBackingMismatch, qcow2.ErrDataFile, qcow2.ErrSizeMismatch):
		code = ProblemLink
	case !errors.Is(err, kvmbackup.ErrDamaged):
		return err
	}
	return v.add(ctx, code, l.backup, l.volume.VolumeID, l.volume.File, kvmbackup.ErrorText(err))
}
