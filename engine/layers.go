package engine

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/mark"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// layer is one file of a volume's chain, the newest first.
type layer struct {
	backup kvmbackup.Backup
	volume kvmbackup.VolumeBackup
	file   string        // absolute
	header *qcow2.Header // as it was last looked at
	held   *int64        // bytes of the disk in its own clusters, as the last check counted them
}

// layersOf follows one volume by its identity from the last backup of a chain down to its full. The links of the records must
// agree with each other; nothing is read.
func layersOf(chain []kvmbackup.Backup, id kvmbackup.VolumeID, repo *repository.Repository) ([]layer, error) {
	var layers []layer
	for i := len(chain) - 1; i >= 0; i-- {
		b := chain[i]
		v, ok := b.Volume(id)
		if !ok {
			return nil, fmt.Errorf("%w: backup %s has no volume %q", kvmbackup.ErrNoVolume, b.ID, id)
		}
		file := repo.FilePath(b.Path, v.File)
		if file == "" {
			return nil, fmt.Errorf("%w: backup %s has an unusable path %q or file %q", kvmbackup.ErrDamaged, b.ID, b.Path, v.File)
		}
		layers = append(layers, layer{b, v, file, new(qcow2.Header), new(int64)})
		if v.Kind == kvmbackup.KindFull {
			return layers, nil
		}
		if i == 0 {
			break
		}
		parent, ok := chain[i-1].Volume(id)
		if !ok || v.ParentFile != kvmbackup.BackingLink(chain[i-1], parent.File) {
			return nil, fmt.Errorf("%w: volume %q of backup %s stands on %q, which is not its parent's file", kvmbackup.ErrDamaged, id, b.ID, v.ParentFile)
		}
	}
	return nil, fmt.Errorf("%w: volume %q of backup %s has no full below it", kvmbackup.ErrDamaged, id, chain[len(chain)-1].ID)
}

// storedIn is what the files take in the repository, as far as it is on record.
func storedIn(layers []layer) (bytes int64) {
	for _, l := range layers {
		bytes += l.volume.StoredSize
	}
	return bytes
}

// backing is the list of files below the first, for tools that are told exactly what to open.
func backing(layers []layer) []qcow2.Layer {
	below := []qcow2.Layer{}
	for _, l := range layers[1:] {
		below = append(below, qcow2.Layer{Path: l.file, Format: qcow2.FormatQcow2})
	}
	return below
}

// verifyMembers compares every chain member's manifest with its record.
func (e *Engine) verifyMembers(ctx context.Context, chain []kvmbackup.Backup) error {
	for _, b := range chain {
		if b.Repository != e.cfg.Repository.ID() {
			return fmt.Errorf("%w: backup %s is in %q, not in %q", kvmbackup.ErrOtherRepository, b.ID, b.Repository, e.cfg.Repository.ID())
		}
		m, err := e.cfg.Repository.ReadManifest(ctx, b.Path)
		if err != nil {
			return repositoryError(err)
		}
		if err := sameAsRecord(m.Backup, b); err != nil {
			return err
		}
	}
	return nil
}

// contradiction says where a manifest and a record differ.
func contradiction(b kvmbackup.Backup, what string, has, want any) error {
	return fmt.Errorf("%w: manifest of %s: %s is %v, the record of backup %s says %v", kvmbackup.ErrDamaged, b.Path, what, has, b.ID, want)
}

// sameAsRecord checks that a folder is the backup that the record speaks of, as far as a restore depends on it.
func sameAsRecord(m, b kvmbackup.Backup) error {
	switch {
	case m.ID != b.ID:
		return contradiction(b, "id", m.ID, b.ID)
	case m.ParentID != b.ParentID:
		return contradiction(b, "parent_id", m.ParentID, b.ParentID)
	case len(m.Volumes) != len(b.Volumes):
		return contradiction(b, "number of volumes", len(m.Volumes), len(b.Volumes))
	}
	for _, mv := range m.Volumes {
		v, ok := b.Volume(mv.VolumeID)
		if !ok || v.File != mv.File || v.ParentFile != mv.ParentFile || v.VirtualSize != mv.VirtualSize {
			return contradiction(b, "volume "+string(mv.VolumeID), mv.File+" on "+mv.ParentFile, v.File+" on "+v.ParentFile)
		}
	}
	return nil
}

// sameDetails checks the rest of what both say and nothing changes later. A digest that only one of them has is no contradiction: an
// interrupted AddDigests leaves one.
func sameDetails(m, b kvmbackup.Backup) error {
	type field struct {
		name      string
		has, want string
	}
	fields := []field{
		{"vm", m.VM.String(), b.VM.String()}, {"kind", m.Kind.String(), b.Kind.String()},
		{"chain_id", m.ChainID.String(), b.ChainID.String()},
		{"position", strconv.Itoa(m.Position), strconv.Itoa(b.Position)},
		{"checkpoint", m.Checkpoint.String(), b.Checkpoint.String()},
	}
	for _, mv := range m.Volumes {
		v, _ := b.Volume(mv.VolumeID)
		fields = append(fields, field{"device", mv.Device, v.Device}, field{"kind of volume " + mv.VolumeID.String(), mv.Kind.String(), v.Kind.String()})
		for _, d := range []field{{"digest", mv.Digest, v.Digest}, {"file_digest", mv.FileDigest, v.FileDigest}} {
			if d.has != "" && d.want != "" {
				fields = append(fields, field{d.name + " of volume " + mv.VolumeID.String(), d.has, d.want})
			}
		}
	}
	for _, f := range fields {
		if f.has != f.want {
			return contradiction(b, f.name, f.has, f.want)
		}
	}
	return nil
}

// damage makes an ErrDamaged of what a tool says about a file. That it could not look (it was cancelled, is not installed, found the
// file locked, may not read it, ran out of time) says nothing about the file.
func damage(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil, isAny(err, qcow2.ErrToolMissing, qcow2.ErrLocked, qcow2.ErrHung, qcow2.ErrPermission, qcow2.ErrTimeout):
		return err
	case errors.Is(err, qcow2.ErrNotFound):
		return mark.As(kvmbackup.ErrMissingFile, err)
	case toolEnded(err), isAny(err, qcow2.ErrHeader, qcow2.ErrFormat, qcow2.ErrTooNew, qcow2.ErrCorrupt, qcow2.ErrNotRegular, qcow2.ErrIO,
		qcow2.ErrOutputTooLarge, qcow2.ErrUnsupported):
		return mark.As(kvmbackup.ErrDamaged, err)
	}
	return err
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
}

// toolEnded says whether a tool ran and gave up, or died, e.g. of the memory that a header made it ask for.
func toolEnded(err error) bool {
	var tool *qcow2.ToolError
	var died *exec.ExitError
	return errors.As(err, &tool) && (tool.ExitCode >= 0 || errors.As(err, &died))
}

// checkLimit is for a repository that is dead. A check reads all tables of an image, 160 MiB for each TiB.
const checkLimit = 30 * time.Minute

// checksAtOnce bounds how many files are checked at a time: a chain's checks are mostly starts of processes and waits for storage.
const checksAtOnce = 4

// verifyLayers checks all headers first, then structure: no tool reads a file when the links of any were not as they should be. It
// returns the first error in the layers' order.
func (e *Engine) verifyLayers(ctx context.Context, layers []layer) error {
	for _, look := range []func(context.Context, []layer) []error{e.headerErrors, e.checkErrors} {
		if err := firstError(look(ctx, layers)); err != nil {
			return err
		}
	}
	return nil
}

func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// headerErrors says of each layer what is wrong with its file and its header.
func (e *Engine) headerErrors(ctx context.Context, layers []layer) []error {
	return each(ctx, layers, func(l layer) (err error) {
		if _, err := e.cfg.Repository.Stat(ctx, l.backup.Path, l.volume.File); err != nil {
			return repositoryError(err)
		}
		*l.header, err = verifyLayer(ctx, e.cfg.Images, l.file, l.volume)
		return err
	})
}

// stillTheSame looks at the headers again after the copy: a file that was exchanged meanwhile, or led elsewhere, is not what was verified.
func (e *Engine) stillTheSame(ctx context.Context, jobs []copyJob) error {
	var layers []layer
	var before []qcow2.Header
	for _, j := range jobs {
		for _, l := range j.layers {
			layers, before = append(layers, l), append(before, *l.header)
		}
	}
	if err := firstError(e.headerErrors(ctx, layers)); err != nil {
		return fmt.Errorf("look again after the copy: %w", err)
	}
	for i, l := range layers {
		if *l.header != before[i] {
			return fmt.Errorf("%w: %s was exchanged or changed while it was copied; find out who writes there, verify backup %s and restore again",
				kvmbackup.ErrDamaged, l.file, l.backup.ID)
		}
	}
	return nil
}

// checkErrors says of each layer what is wrong with its structure. Headers must have been looked at before.
func (e *Engine) checkErrors(ctx context.Context, layers []layer) []error {
	return each(ctx, layers, func(l layer) error {
		res, err := e.cfg.Images.Check(ctx, l.file, qcow2.CheckOptions{Timeout: checkLimit})
		if err != nil {
			return damage(ctx, err)
		}
		if !res.Clean() {
			return fmt.Errorf("%w: %s: qemu-img check found %d corruptions", kvmbackup.ErrDamaged, l.file, res.Corruptions+res.CheckErrors)
		}
		*l.held = res.AllocatedClusters * l.header.ClusterSizeBytes()
		counted(ctx, l.volume.VolumeID, l.volume.StoredSize)
		return nil
	})
}

// each looks at several layers or files at once; when ctx ends no more are begun.
func each[T any](ctx context.Context, layers []T, look func(T) error) []error {
	errs := make([]error, len(layers))
	limit := NewLimiter(checksAtOnce)
	var wg sync.WaitGroup
	for i, l := range layers {
		release, err := limit.take(ctx)
		if err == nil && ctx.Err() != nil {
			release()
			err = context.Cause(ctx)
		}
		if err != nil {
			errs[i] = err
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer release()
			errs[i] = look(l)
		}()
	}
	wg.Wait()
	return errs
}
