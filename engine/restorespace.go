package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/swap"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// A restore looks for room before its first byte. What it needs at most costs nothing more to know: no volume takes
// more than the clusters that the check of its chain has counted, compressed ones by what is in them, nor more than its
// own size. Only where that is too much are the chains mapped, which reads all their tables again, for what their
// newest layers leave of each other.

// targetSpace is the file system on which some volumes' files are written. What a restore in place replaces goes only
// after the swap, so it frees nothing.
type targetSpace struct {
	dir  string
	stat *syscall.Stat_t
	free int64
	jobs []copyJob
}

// makeRoom removes what killed restores have left aside of the targets, and returns a *SpaceError when there is too
// little room for what is to be written.
func (e *Engine) makeRoom(ctx context.Context, req RestoreRequest, jobs []copyJob, at []string) error {
	if err := e.discard(ctx, at, jobs); err != nil {
		return targetError(err)
	}
	if req.IgnoreSpace {
		return nil
	}
	spaces, err := swap.Look(ctx, func() ([]*targetSpace, error) { return spacesOf(jobs) })
	for _, s := range spaces {
		if err == nil {
			err = e.fits(ctx, s)
		}
	}
	return err
}

// spacesOf gathers the new files by their file systems. Block devices have the room they have. Where the system can't
// be asked there is nothing to compare with.
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
	for _, look := range []func(context.Context, copyJob) (int64, error){countedBytes, e.mappedBytes} {
		need = 0
		for _, j := range s.jobs {
			n, err := look(ctx, j)
			if err != nil {
				return err
			}
			need += j.out.fileSize(n)
		}
		if need <= s.free {
			return nil
		}
	}
	return &kvmbackup.SpaceError{NeedBytes: need, FreeBytes: s.free, Where: "the file system of " + s.dir, Restore: true}
}

// countedBytes is the most that a volume can hold.
func countedBytes(_ context.Context, j copyJob) (int64, error) {
	var sum int64
	for _, l := range j.layers {
		sum += *l.held
	}
	return min(sum, j.out.VirtualSize), nil
}

// mappedBytes is what a volume holds. Of one that can't be mapped, e.g. because it is too fragmented, it is the most it
// can hold.
func (e *Engine) mappedBytes(ctx context.Context, j copyJob) (int64, error) {
	extents, err := e.cfg.Images.Map(ctx, j.layers[0].path(),
		qcow2.MapOptions{Secret: j.layers[0].secret, Backing: backing(j.layers), Timeout: checkLimit})
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil {
		return countedBytes(ctx, j)
	}
	var sum int64
	for _, x := range extents {
		if x.Data && !x.Zero {
			sum += x.LengthBytes
		}
	}
	return sum, nil
}

// fileSize is that of a new target with that many bytes of the volume in it. A raw file is sparse.
func (v RestoredVolume) fileSize(data int64) int64 {
	if v.Format != qcow2.FormatQcow2 {
		return data
	}
	return imageSize(v.VirtualSize, data)
}
