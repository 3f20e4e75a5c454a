package repository

import (
	"context"
	"os"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/writeback"
)

// targets are the open files of one partial folder.
type targets struct {
	files []*os.File
	stop  func() (over <-chan struct{}) // of the writing out; nil: the kernel writes nothing out
}

// close returns when none of the files is open any more, which on a dead mount is never.
func (t *targets) close() {
	if t.stop != nil {
		<-t.stop()
	}
	for _, f := range t.files {
		_ = f.Close() // only read from: there is nothing to lose
	}
}

// OpenTargets opens files of a partial folder before somebody else writes them, and keeps them open until Publish or
// RemovePartial has done with the folder, or release is called, which may be called at any time and more than once. Two
// things come of it.
//
// Publish learns of every write that the storage has lost. Linux tells each open file of it once, but a file that is
// opened after somebody has been told is told nothing; and QEMU, which flushes when it closes an image, drops what it
// is told.
//
// And the kernel begins to write the files out while they are still being written, so that Publish need not wait for
// all of it, and a share isn't flooded at the end.
//
// Errors: ErrNotFound without one of the files; ErrUnsafe; ErrHung.
func (r *Repository) OpenTargets(
	ctx context.Context, path string, id kvmbackup.BackupID, files []string,
) (release func(), err error) {
	f, err := parseTarget(path, id)
	for _, name := range files {
		if err == nil {
			err = kvmbackup.ValidFileName(name)
		}
	}
	if err != nil {
		return nil, r.failed("open targets", path, err)
	}
	dir := f.partial(id).rel()
	t, err := do(ctx, r, "open targets", path, func(s *session) (*targets, error) { return s.openTargets(dir, files) })
	if err != nil {
		if t != nil {
			t.close()
		}
		return nil, err
	}
	r.swapTargets(dir, t)
	return func() {
		if r.takeTargets(dir, t) {
			go t.close() // a mount that is dead may keep it waiting
		}
	}, nil
}

func (s *session) openTargets(dir string, names []string) (*targets, error) {
	t := &targets{}
	for _, name := range names {
		err := s.read("open", join(dir, name), func() error {
			f, err := s.openFile(join(dir, name))
			if err == nil {
				t.files = append(t.files, f)
			}
			return err
		})
		if err != nil {
			t.close()
			return nil, err
		}
	}
	if !s.repo.opts.NoSync {
		t.stop = writeback.Start(t.files...)
	}
	return t, nil
}

// swapTargets makes t the folder's, instead of those of an earlier attempt.
func (r *Repository) swapTargets(dir string, t *targets) {
	r.mu.Lock()
	before := r.targets[dir]
	r.targets[dir] = t
	r.mu.Unlock()
	if before != nil {
		go before.close()
	}
}

// takeTargets says whether t was still the folder's, which has none then.
func (r *Repository) takeTargets(dir string, t *targets) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.targets[dir] != t {
		return false
	}
	delete(r.targets, dir)
	return true
}

func (r *Repository) openedTargets(dir string) *targets {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.targets[dir]
}

// closeTargets comes before files are removed, as NFS keeps those that are open, under other names; and before their
// folder is renamed, which SMB refuses while one of them is open.
func (s *session) closeTargets(dir string) error {
	t := s.repo.openedTargets(dir)
	if t == nil || !s.repo.takeTargets(dir, t) {
		return nil
	}
	return s.read("close", dir, func() error { t.close(); return nil })
}
