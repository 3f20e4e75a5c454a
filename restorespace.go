package kvmbackup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// A restore looks for room before its first byte. What it needs at most costs nothing to know: no volume takes more than its files in the
// repository have, nor more than its own size. Only where that is too much are the chains mapped, which reads all their tables, for what
// their newest layers leave of each other.

// targetSpace is the file system on which some volumes' files are written. What a restore in place replaces goes only after the swap, so
// it frees nothing.
type targetSpace struct {
	dir  string
	stat *syscall.Stat_t
	free int64
	jobs []copyJob
}

// makeRoom removes what killed restores have left aside of the targets, and returns a *SpaceError when there is too little room for what
// is to be written.
func (e *Engine) makeRoom(ctx context.Context, req RestoreRequest, jobs []copyJob, at []string) error {
	if err := e.removeAsides(ctx, at, jobs); err != nil {
		return targetError(err)
	}
	if req.IgnoreSpace {
		return nil
	}
	spaces, err := leaveBehind(ctx, func() ([]*targetSpace, error) { return spacesOf(jobs) })
	for _, s := range spaces {
		if err == nil {
			err = e.fits(ctx, s)
		}
	}
	return err
}

// spacesOf gathers the new files by their file systems. Block devices have the room they have. Where the system can't be asked there is
// nothing to compare with.
func spacesOf(jobs []copyJob) ([]*targetSpace, error) {
	var all []*targetSpace
	for _, j := range jobs {
		if j.exists {
			continue
		}
		dir := filepath.Dir(j.out.Path)
		info, err := os.Stat(dir)
		if err != nil {
			return nil, err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil, nil
		}
		at := slices.IndexFunc(all, func(s *targetSpace) bool { return s.stat.Dev == stat.Dev })
		if at < 0 {
			room, err := repository.SpaceAt(dir)
			if errors.Is(err, errors.ErrUnsupported) {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			at, all = len(all), append(all, &targetSpace{dir: dir, stat: stat, free: room.FreeBytes})
		}
		all[at].jobs = append(all[at].jobs, j)
	}
	return all, nil
}

func (e *Engine) fits(ctx context.Context, s *targetSpace) error {
	var need int64
	for _, look := range []func(context.Context, copyJob) (int64, error){e.storedBytes, e.mappedBytes} {
		need = 0
		for _, j := range s.jobs {
			n, err := look(ctx, j)
			if err != nil {
				return err
			}
			need += imageBytes(n, j.out)
		}
		if need <= s.free {
			return nil
		}
	}
	return &SpaceError{NeedBytes: need, FreeBytes: s.free, Where: "the file system of " + s.dir, Restore: true}
}

// storedBytes is the most that a volume can hold. A file's size tells it even where the storage compresses.
func (e *Engine) storedBytes(ctx context.Context, j copyJob) (int64, error) {
	var sum int64
	for _, l := range j.layers {
		info, err := e.cfg.Repository.Stat(ctx, l.backup.Path, l.volume.File)
		if err != nil {
			return 0, repositoryError(err)
		}
		sum += min(info.SizeBytes, j.out.VirtualSize)
	}
	return min(sum, j.out.VirtualSize), nil
}

// mappedBytes is what a volume holds. Of one that can't be mapped, e.g. because it is too fragmented, it is the most it can hold.
func (e *Engine) mappedBytes(ctx context.Context, j copyJob) (int64, error) {
	extents, err := e.cfg.Images.Map(ctx, j.layers[0].file, qcow2.MapOptions{Backing: backing(j.layers), Timeout: checkLimit})
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil {
		return e.storedBytes(ctx, j)
	}
	var sum int64
	for _, x := range extents {
		if x.Data && !x.Zero {
			sum += x.LengthBytes
		}
	}
	return sum, nil
}

// imageBytes adds a new qcow2 image's own tables to its data: one for each 512 MiB of the disk that has any, one for each 2 GiB of the
// file, and those that are always there. A raw file is sparse.
func imageBytes(data int64, v RestoredVolume) int64 {
	if v.Format != qcow2.FormatQcow2 {
		return data
	}
	const cluster, tableCovers, countsCover = 64 << 10, 512 << 20, 2 << 30
	tables := min(v.VirtualSize/tableCovers+1, data/cluster+1)
	first := v.VirtualSize/tableCovers*8/cluster + 1
	return data + (tables+first+data/countsCover+3)*cluster
}
