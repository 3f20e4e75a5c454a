package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"

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
	open   *openFile     // the file itself, from when its header is first looked at
	header *qcow2.Header // as it was last looked at
	held   *int64        // bytes of the disk in its own clusters, as the last check counted them
	secret *qcow2.Secret // of a sealed file; nil: it is plain, or locked
}

// locked says whether the file is sealed and its key isn't there.
func (l layer) locked() bool { return l.volume.FileEncryption != "" && l.secret == nil }

// openFile is a file that is open, if it is.
type openFile struct{ *os.File }

// path is where the tools find the layer's file: the very file whose header was looked at, whatever has its name by
// now.
func (l layer) path() string {
	if l.open.File == nil {
		return l.file
	}
	return qcow2.Descriptor(l.open.File)
}

// closeLayers comes when no tool needs the files any more.
func closeLayers(layers []layer) {
	for _, l := range layers {
		if l.open.File != nil {
			_ = l.open.Close() // it was only read
			l.open.File = nil
		}
	}
}

// layersOf follows one volume by its identity from the last backup of a chain down to its full. The links of the
// records must agree with each other; nothing is read. Sealed files whose key isn't in the ring are locked.
func layersOf(
	chain []kvmbackup.Backup, id kvmbackup.VolumeID, repo *repository.Repository, ring keyring,
) ([]layer, error) {
	var layers []layer
	for i := len(chain) - 1; i >= 0; i-- {
		b := chain[i]
		v, ok := b.Volume(id)
		if !ok {
			return nil, fmt.Errorf("%w: backup %s has no volume %q", kvmbackup.ErrNoVolume, b.ID, id)
		}
		file := repo.FilePath(b.Path, v.File)
		if file == "" {
			return nil, fmt.Errorf("%w: backup %s has an unusable path %q or file %q", kvmbackup.ErrDamaged, b.ID,
				b.Path, v.File)
		}
		layers = append(layers, layer{b, v, file, &openFile{}, new(qcow2.Header), new(int64), ring.secret(b, v)})
		if v.Kind == kvmbackup.KindFull {
			return layers, nil
		}
		if i == 0 {
			break
		}
		parent, ok := chain[i-1].Volume(id)
		if !ok || v.ParentFile != chain[i-1].BackingLink(parent.File) {
			return nil, fmt.Errorf("%w: volume %q of backup %s stands on %q, which is not its parent's file",
				kvmbackup.ErrDamaged, id, b.ID, v.ParentFile)
		}
	}
	return nil, fmt.Errorf("%w: volume %q of backup %s has no full below it", kvmbackup.ErrDamaged, id,
		chain[len(chain)-1].ID)
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
		below = append(below, qcow2.Layer{Path: l.path(), Format: qcow2.FormatQcow2, Secret: l.secret})
	}
	return below
}

// verifyMembers compares every chain member's manifest with its record, and returns the keys of those that are sealed.
func (e *Engine) verifyMembers(ctx context.Context, chain []kvmbackup.Backup) (keyring, error) {
	var sealed []repository.Manifest
	var parent repository.Manifest
	for _, b := range chain {
		if b.Repository != e.cfg.Repository.ID() {
			return nil, fmt.Errorf("%w: backup %s is in %q, not in %q", kvmbackup.ErrOtherRepository, b.ID,
				b.Repository, e.cfg.Repository.ID())
		}
		m, err := e.cfg.Repository.ReadManifest(ctx, b.Path)
		if err != nil {
			return nil, repositoryError(err)
		}
		if err := sameAsRecord(m.Backup, b); err != nil {
			return nil, err
		}
		if m.Sealed() {
			// What the MAC is over is the manifest. The record may be one that was imported without a key.
			if err := sameDetails(m.Backup, b); err != nil {
				return nil, err
			}
			if err := repositoryError(m.StandsOn(parent)); err != nil {
				return nil, fmt.Errorf("manifest of %s: %w", b.Path, err)
			}
			sealed = append(sealed, m)
		}
		parent = m
	}
	return e.unlockAll(ctx, sealed)
}

// contradiction says where a manifest and a record differ.
func contradiction(b kvmbackup.Backup, what string, has, want any) error {
	return fmt.Errorf("%w: manifest of %s: %s is %v, the record of backup %s says %v", kvmbackup.ErrDamaged, b.Path,
		what, has, b.ID, want)
}

// ofRecord checks all that a manifest and a record both say and nothing changes later.
func ofRecord(m, b kvmbackup.Backup) error { return errors.Join(sameAsRecord(m, b), sameDetails(m, b)) }

// sameAsRecord checks that a folder is the backup that the record speaks of, as far as a restore depends on it.
func sameAsRecord(m, b kvmbackup.Backup) error {
	switch {
	case m.ID != b.ID:
		return contradiction(b, "id", m.ID, b.ID)
	case m.ParentID != b.ParentID:
		return contradiction(b, "parent_id", m.ParentID, b.ParentID)
	case len(m.Volumes) != len(b.Volumes):
		return contradiction(b, "number of volumes", len(m.Volumes), len(b.Volumes))
	case len(b.Files) > 0 && !slices.Equal(m.Files, b.Files): // earlier versions' records have none
		return contradiction(b, "files", m.Files, b.Files)
	}
	for _, mv := range m.Volumes {
		v, ok := b.Volume(mv.VolumeID)
		if ok && v.FileEncryption != mv.FileEncryption { // else what is sealed would be taken for plain
			return contradiction(b, "file_encryption of volume "+string(mv.VolumeID), mv.FileEncryption, v.FileEncryption)
		}
		if !ok || v.File != mv.File || v.ParentFile != mv.ParentFile || v.VirtualSize != mv.VirtualSize {
			return contradiction(b, "volume "+string(mv.VolumeID), mv.File+" on "+mv.ParentFile, v.File+" on "+v.ParentFile)
		}
	}
	return nil
}

// sameDetails checks the rest. A digest that only one of them has is no contradiction: an
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
		fields = append(fields, field{"device", mv.Device, v.Device},
			field{"kind of volume " + mv.VolumeID.String(), mv.Kind.String(), v.Kind.String()},
			field{"file_encryption of volume " + mv.VolumeID.String(), string(mv.FileEncryption), string(v.FileEncryption)})
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

// damage makes an ErrDamaged of what a tool says about a file. That it could not look (it was cancelled, is not
// installed, found the file locked, may not read it, ran out of time) says nothing about the file.
func damage(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil, isAny(err, qcow2.ErrToolMissing, qcow2.ErrLocked, qcow2.ErrHung, qcow2.ErrPermission,
		qcow2.ErrTimeout):
		return err
	case errors.Is(err, qcow2.ErrNotFound):
		return mark.As(kvmbackup.ErrMissingFile, err)
	case toolEnded(err), isAny(err, qcow2.ErrHeader, qcow2.ErrFormat, qcow2.ErrTooNew, qcow2.ErrCorrupt,
		qcow2.ErrNotRegular, qcow2.ErrIO,
		qcow2.ErrOutputTooLarge, qcow2.ErrMemory, qcow2.ErrUnsupported, qcow2.ErrLUKS, qcow2.ErrSecret):
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

// checkLimit: a check reads all tables of an image, 160 MiB for each TiB, and takes as long as that takes. On a
// repository that is dead it ends by qcow2's StallTimeout.
const checkLimit = qcow2.NoLimit

// checksAtOnce bounds how many files are checked at a time: a chain's checks are mostly starts of processes and waits
// for storage.
const checksAtOnce = 4

// verifyLayers opens all files and compares the sealed ones with their digests, unless that comes later or not at all,
// then checks all headers, then structure: no tool reads a file when the links of any were not as they should be. It
// returns the first error in the layers' order.
func (e *Engine) verifyLayers(ctx context.Context, layers []layer, skipDigests bool) error {
	looks := []func(context.Context, []layer) []error{e.openErrors, e.sealErrors, e.headerErrors, e.checkErrors}
	if skipDigests {
		looks = slices.Delete(looks, 1, 2)
	}
	for _, look := range looks {
		if err := firstError(look(ctx, layers)...); err != nil {
			return err
		}
	}
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// openErrors opens each layer's file, unless it is open.
func (e *Engine) openErrors(ctx context.Context, layers []layer) []error {
	return each(ctx, checksAtOnce, layers, func(_ int, l layer) (err error) {
		if l.open.File == nil {
			l.open.File, err = e.cfg.Repository.OpenFile(ctx, l.backup.Path, l.volume.File)
		}
		if err == nil {
			err = l.checkLength()
		}
		return repositoryError(err)
	})
}

// checkLength refuses a file that is longer than its disk can make it. Holes cost nothing to make, and hours to read.
func (l layer) checkLength() error {
	const tables = 1 << 30 // and headers, of small disks
	info, err := l.open.Stat()
	if err != nil {
		return err
	}
	if size := info.Size(); size > tables && (size-tables)/2 > l.volume.VirtualSize {
		return fmt.Errorf("%w: %s has %d bytes, for a disk of %d", kvmbackup.ErrDamaged, l.file, size, l.volume.VirtualSize)
	}
	return nil
}

// sealErrors compares sealed files with the digests that their manifests' MACs vouch for. Ciphertext that was changed
// opens as other data, without an error.
func (e *Engine) sealErrors(ctx context.Context, layers []layer) []error {
	return each(ctx, checksAtOnce, layers, func(_ int, l layer) error { return e.sealError(ctx, l) })
}

func (e *Engine) sealError(ctx context.Context, l layer) error {
	if l.volume.FileEncryption == "" {
		return nil
	}
	digester, err := e.digester()
	if err != nil {
		return fmt.Errorf("compare the digest of a sealed file: %w; restore without (SkipDigests)", err)
	}
	has, err := digester.FileDigest(ctx, l.path())
	switch {
	case err != nil:
		return damage(ctx, err)
	case has != l.volume.FileDigest:
		return fmt.Errorf("%w: %s: its bytes have the digest %s, recorded is %s", kvmbackup.ErrDamaged, l.file, has,
			l.volume.FileDigest)
	}
	return nil
}

// headerErrors says what is wrong with each open file's header, as far as it can be opened.
func (e *Engine) headerErrors(ctx context.Context, layers []layer) []error {
	return each(ctx, checksAtOnce, layers, func(_ int, l layer) (err error) {
		if !l.locked() {
			*l.header, err = verifyLayer(ctx, e.cfg.Images, l.path(), l.file, l.volume, l.secret)
		}
		return err
	})
}

// stillTheSame looks at the headers again after the copy: a file that was written to meanwhile is not what was
// verified.
func (e *Engine) stillTheSame(ctx context.Context, jobs []copyJob) error {
	var layers []layer
	var before []qcow2.Header
	for _, j := range jobs {
		for _, l := range j.layers {
			layers, before = append(layers, l), append(before, *l.header)
		}
	}
	if err := firstError(e.headerErrors(ctx, layers)...); err != nil {
		return fmt.Errorf("look again after the copy: %w", err)
	}
	for i, l := range layers {
		if *l.header != before[i] {
			return fmt.Errorf("%w: %s was changed while it was copied; find out who writes there, verify backup %s "+
				"and restore again",
				kvmbackup.ErrDamaged, l.file, l.backup.ID)
		}
	}
	return nil
}

// checkErrors says of each layer what is wrong with its structure, as far as it can be opened. Headers must have been
// looked at before.
func (e *Engine) checkErrors(ctx context.Context, layers []layer) []error {
	return each(ctx, checksAtOnce, layers, func(_ int, l layer) error {
		if l.locked() {
			return nil
		}
		res, err := e.cfg.Images.Check(ctx, l.path(), qcow2.CheckOptions{Timeout: checkLimit, Secret: l.secret})
		if err != nil {
			return damage(ctx, err)
		}
		if !res.Clean() {
			return fmt.Errorf("%w: %s: qemu-img check found %d corruptions", kvmbackup.ErrDamaged, l.file,
				res.Corruptions+res.CheckErrors)
		}
		*l.held = res.AllocatedClusters * l.header.ClusterSizeBytes()
		counted(ctx, l.volume.VolumeID, l.volume.StoredSize)
		return nil
	})
}
