package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// ScratchHost is what an Executor on another host may be, too: the one that looks after the folders there that are for
// the scratches of pull jobs. Where the Executor isn't, the engine looks at the folders itself.
type ScratchHost interface {
	// ScratchSpace returns the room of a folder for jobs, and its file system: folders with the same one share their
	// room, and no other host has it. It is a kvmbackup.ErrScratch when no job can have a folder of its own there: it
	// isn't there, can't be written to, or is on the repository's own file system.
	ScratchSpace(ctx context.Context, folder string) (fileSystem string, freeBytes int64, err error)
	// ScratchEntries returns the names of what is in the folder.
	ScratchEntries(ctx context.Context, folder string) ([]string, error)
	// RemoveScratch removes one of them, and what is in it. One that isn't there is no error.
	RemoveScratch(ctx context.Context, folder, name string) error
}

// LocalScratch is the ScratchHost of this host. An engine uses it by itself, unless its Executor is one; it is for
// hosts that serve an Executor to engines on other hosts.
type LocalScratch struct {
	// RepositoryDevice is the repository.Space.Device of the repository: no scratch may be on its file system. 0: none.
	RepositoryDevice uint64
}

var _ ScratchHost = LocalScratch{}

// ScratchSpace implements ScratchHost. It makes a folder and removes it, so as to know that it can.
func (l LocalScratch) ScratchSpace(_ context.Context, folder string) (fileSystem string, freeBytes int64, err error) {
	bad := func(what string, err error) (string, int64, error) {
		return "", 0, fmt.Errorf("%w: %s %s: %w", kvmbackup.ErrScratch, folder, what, err)
	}
	space, err := repository.SpaceAt(folder)
	if errors.Is(err, os.ErrNotExist) {
		return bad("is not there; make it, on local storage", err)
	}
	if err != nil {
		return bad("can't be looked at; it has to be a folder on local storage", err)
	}
	if l.RepositoryDevice != 0 && space.Device == l.RepositoryDevice {
		return "", 0, fmt.Errorf("%w: %s is on the repository's own file system: "+
			"a slow or full repository would reach the guest through it; choose a folder on local storage",
			kvmbackup.ErrScratch, folder)
	}
	probe, err := os.MkdirTemp(folder, scratchPrefix+"probe-")
	if err == nil {
		err = os.Remove(probe)
	}
	if err != nil {
		return bad("can't be written to; give it to this program's user", err)
	}
	return strconv.FormatUint(space.Device, 10), space.FreeBytes, nil
}

// ScratchEntries implements ScratchHost.
func (LocalScratch) ScratchEntries(_ context.Context, folder string) (names []string, err error) {
	entries, err := os.ReadDir(folder)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// RemoveScratch implements ScratchHost.
func (LocalScratch) RemoveScratch(_ context.Context, folder, name string) error {
	return os.RemoveAll(filepath.Join(folder, name))
}
