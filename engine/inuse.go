package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/swap"
)

// A restore replaces no image that anything has open: a guest that shares the disk, or whose own image lies over it,
// would go on with a file that has no name any more, and lose what it writes. Each witness is blind somewhere, so
// several are asked:
//
//	the hypervisor   images of its running domains and what is below them, also on storage without locks; of this host
//	file locks       those of QEMU and its tools, on other hosts where the storage passes them on; not with locking off
//	/proc            what has the file open, as far as this process may look: root sees all of this host
//	loop devices     they hold their file without a process
//	a write lease    the kernel grants it for a file that nobody has open, itself included; to root and the owner, where
//	                 the storage is local

// lookLimit is for those who open an image for no more than a moment, to look at it.
const lookLimit = 2 * time.Second

// notInUse returns an ErrImageLocked if something has one of the files or devices open, or a running domain of the
// hypervisor other than dom has one that is known by those names. A file that isn't there is free.
func (e *Engine) notInUse(ctx context.Context, dom kvmbackup.DomainRef, names, files []string) error {
	if len(files) == 0 {
		return nil
	}
	if err := e.usedByNoDomain(ctx, dom, names); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var err error
	retry(limit, func() bool {
		err = looking(ctx, func() error { return closed(files) })
		return err == nil || ctx.Err() != nil
	})
	if ended := context.Cause(ctx); ended != nil {
		return ended
	}
	return err
}

// looking runs f, which only looks, where ctx can leave it.
func looking(ctx context.Context, f func() error) error {
	_, err := swap.Look(ctx, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// closed is an ErrImageLocked if something has one of the files open.
func closed(files []string) error {
	for _, file := range files {
		by, err := openBy(file)
		if err != nil {
			return fmt.Errorf("look whether %s is in use: %w", file, err)
		}
		if by != "" {
			return fmt.Errorf("%w: %s is open in %s; shut down or end what uses it, then restore again, or restore "+
				"to new files", kvmbackup.ErrImageLocked, file, by)
		}
	}
	return nil
}

// usedByNoDomain asks the hypervisor, if that can tell.
func (e *Engine) usedByNoDomain(ctx context.Context, dom kvmbackup.DomainRef, names []string) error {
	knows, ok := e.cfg.Executor.(kvmbackup.ImageUsers)
	if !ok {
		return nil
	}
	users, err := ask(ctx, e, func(ctx context.Context) (map[string]string, error) { return knows.ImageUsers(ctx, dom) })
	if err != nil {
		return fmt.Errorf("look which domains use the images: %w", err)
	}
	return looking(ctx, func() error {
		for image, domain := range users {
			if at := slices.IndexFunc(names, func(name string) bool { return samePlace(image, name) }); at >= 0 {
				return fmt.Errorf("%w: %s is a disk of the running domain %q, or below one; shut that down, then "+
					"restore again, or restore to new files",
					kvmbackup.ErrImageLocked, names[at], domain)
			}
		}
		return nil
	})
}

// samePlace compares files only whose names are alike: other domains' storage may be dead.
func samePlace(image, name string) bool {
	if filepath.Clean(image) == filepath.Clean(name) {
		return true
	}
	if filepath.Base(image) != filepath.Base(name) {
		return false
	}
	a, err := os.Stat(image)
	if err != nil {
		return false
	}
	b, err := os.Stat(name)
	return err == nil && os.SameFile(a, b)
}
