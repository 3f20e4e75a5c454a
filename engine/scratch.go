package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/repository"
)

// A pull job may begin when a scratch has room for one byte in so many that are to be copied: the guest may overwrite
// a twentieth as fast as is copied. While it runs the executor watches what is really taken.
const (
	scratchShare   = 20
	scratchMinimum = 512 << 20 // bytes, however little is to be copied: an executor aborts while some of it is still free
)

// scratchPrefix begins the names of the jobs' folders in a scratch; the backup's ID follows.
const scratchPrefix = "kvmbackup-"

// scratchFolder is one of Config.Scratch as it was found.
type scratchFolder struct {
	path     string
	system   string // the file system
	free     int64  // bytes
	promised int64  // of these, to other jobs of this process
}

func (f scratchFolder) room() int64 { return max(f.free-f.promised, 0) }

// scratchNeed is how much room a scratch must have for a job that copies so many bytes. Who ignores the estimate does
// so here, too; the minimum stays.
func scratchNeed(req BackupRequest, copied int64) int64 {
	if req.IgnoreSpace {
		return scratchMinimum
	}
	return max(copied/scratchShare, scratchMinimum)
}

// scratches looks at the configured folders and returns those that can be used, the one with the most room first. It is
// an ErrScratch that names each when none can.
func (o *op) scratches(ctx context.Context, repo repository.Space) ([]scratchFolder, error) {
	var usable []scratchFolder
	var errs []error
	for _, path := range o.e.cfg.Scratch {
		f, err := o.lookAt(ctx, path, repo)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		usable = append(usable, f)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if len(usable) == 0 {
		return nil, errors.Join(errs...)
	}
	for _, err := range errs {
		o.warn("a scratch is passed over", "error", err)
	}
	promises.tell(usable)
	slices.SortStableFunc(usable, func(a, b scratchFolder) int { return cmp.Compare(b.room(), a.room()) })
	return usable, nil
}

// lookAt is an ErrScratch for a folder that can't be used, whatever its room.
func (o *op) lookAt(ctx context.Context, path string, repo repository.Space) (scratchFolder, error) {
	return onScratch(ctx, o.e, path, func(ctx context.Context, host ScratchHost) (f scratchFolder, err error) {
		if local, is := host.(LocalScratch); is {
			local.RepositoryDevice = repo.Device
			host = local
		}
		f.path = path
		f.system, f.free, err = host.ScratchSpace(ctx, path)
		return f, err
	})
}

// planScratch is for plans: which folder a pull would take, and the ErrScratch that stands in its way.
func (o *op) planScratch(
	ctx context.Context, way kvmbackup.Transfer, repo repository.Space, need int64,
) (f scratchFolder, unusable, err error) {
	if way != kvmbackup.TransferPull {
		return f, nil, nil
	}
	folders, err := o.scratches(ctx, repo)
	switch {
	case errors.Is(err, kvmbackup.ErrScratch):
		return f, err, nil
	case err != nil:
		return f, nil, err
	}
	return folders[0], roomFor(folders[0], need), nil
}

// deadScratches knows what hangs on a scratch, over all engines of the process.
var deadScratches leave.Register

// onScratch gives the host of a folder as long to answer as a clean-up may take, and leaves what hangs there behind.
func onScratch[T any](
	ctx context.Context, e *Engine, path string, f func(context.Context, ScratchHost) (T, error),
) (T, error) {
	host, remote := e.cfg.Executor.(ScratchHost)
	if !remote {
		host = LocalScratch{}
	}
	v, err := leave.Do(ctx, &deadScratches, leave.Options{What: "look at the scratch " + path, Places: []string{path},
		Limit: e.cfg.CleanupLimit},
		func(*leave.Work) (T, error) { return f(ctx, host) }, nil)
	var left *leave.Error
	if errors.As(err, &left) || errors.Is(err, leave.ErrPiled) {
		err = fmt.Errorf("%w: %s doesn't answer; choose a folder on local storage: %w", kvmbackup.ErrScratch, path, err)
	}
	return v, err
}

func scratchEntries(ctx context.Context, e *Engine, path string) ([]string, error) {
	return onScratch(ctx, e, path, func(ctx context.Context, host ScratchHost) ([]string, error) {
		return host.ScratchEntries(ctx, path)
	})
}

// roomFor is an ErrScratch when a folder has too little room.
func roomFor(f scratchFolder, need int64) error {
	if f.room() >= need {
		return nil
	}
	promised := ""
	if f.promised > 0 {
		promised = fmt.Sprintf(", of which %d are promised to other backups,", f.promised)
	}
	return fmt.Errorf("%w: %s has %d bytes free%s and the backup needs %d to begin, a %dth of what it copies and %d "+
		"at least: give it more room, wait for the others, or back up by push",
		kvmbackup.ErrScratch, f.path, f.free, promised, need, scratchShare, scratchMinimum)
}

// promises are what the jobs of this process were told that they may take, by file system.
var promises = scratchPromises{by: map[string]int64{}}

type scratchPromises struct {
	mu sync.Mutex
	by map[string]int64
}

func (p *scratchPromises) tell(folders []scratchFolder) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tellLocked(folders)
}

func (p *scratchPromises) tellLocked(folders []scratchFolder) {
	for i := range folders {
		folders[i].promised = p.by[folders[i].system]
	}
}

func (p *scratchPromises) add(system string, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by[system] += bytes; p.by[system] == 0 {
		delete(p.by, system)
	}
}

// scratchClaim is the room that one job was promised. The zero value is that of a job which needs none.
type scratchClaim struct {
	path   string // of the configured folder
	system string // the file system
	bytes  int64
}

// claimScratch promises the room in the folder with the most of it.
func claimScratch(folders []scratchFolder, need int64) (scratchClaim, error) {
	promises.mu.Lock()
	defer promises.mu.Unlock()
	promises.tellLocked(folders) // another job may have begun since
	best := slices.MaxFunc(folders, func(a, b scratchFolder) int { return cmp.Compare(a.room(), b.room()) })
	if err := roomFor(best, need); err != nil {
		return scratchClaim{}, err
	}
	promises.by[best.system] += need
	return scratchClaim{path: best.path, system: best.system, bytes: need}, nil
}

// release gives the room back; the zero value has none.
func (c scratchClaim) release() {
	if c.path != "" {
		promises.add(c.system, -c.bytes)
	}
}

// folderFor is the job's own folder; empty for a job without a scratch.
func (c scratchClaim) folderFor(b kvmbackup.Backup) string {
	if c.path == "" {
		return ""
	}
	return filepath.Join(c.path, scratchName(b.ID))
}

func scratchName(id kvmbackup.BackupID) string { return scratchPrefix + string(id) }

// leftScratch is the folder of a job that another process has begun: where it is still there, or else where it would be
// by the configuration, which may have changed since. The job is known by the folder's name.
func (e *Engine) leftScratch(ctx context.Context, b kvmbackup.Backup) string {
	if b.Transfer != kvmbackup.TransferPull {
		return ""
	}
	for _, path := range e.cfg.Scratch {
		if names, err := scratchEntries(ctx, e, path); err == nil && slices.Contains(names, scratchName(b.ID)) {
			return filepath.Join(path, scratchName(b.ID))
		}
	}
	path := "/"
	if len(e.cfg.Scratch) > 0 {
		path = e.cfg.Scratch[0]
	}
	return filepath.Join(path, scratchName(b.ID))
}

// removeScratch removes what a job that is over has left in a scratch; most often that is nothing. What can't be
// removed is for Inspect to find.
func (o *op) removeScratch(ctx context.Context, b kvmbackup.Backup) {
	if b.Transfer != kvmbackup.TransferPull {
		return
	}
	c, cancel := o.e.cleanup(ctx)
	defer cancel()
	for _, path := range o.e.cfg.Scratch {
		if err := o.e.removeScratchFolder(c, path, b.ID); err != nil {
			o.warn("remove what is left in a scratch", "error", err)
		}
	}
}

func (e *Engine) removeScratchFolder(ctx context.Context, path string, id kvmbackup.BackupID) error {
	if _, err := kvmbackup.ParseBackupID(string(id)); err != nil {
		return err
	}
	_, err := onScratch(ctx, e, path, func(ctx context.Context, host ScratchHost) (any, error) {
		return nil, host.RemoveScratch(ctx, path, scratchName(id))
	})
	return err
}

// scratchOf says whose a folder in a scratch is.
func scratchOf(name string) (kvmbackup.BackupID, bool) {
	rest, ok := strings.CutPrefix(name, scratchPrefix)
	if !ok {
		return "", false
	}
	id, err := kvmbackup.ParseBackupID(rest)
	return id, err == nil
}
