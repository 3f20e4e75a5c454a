package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// upperMarker is the marker's name in capitals, under which it is found where the storage doesn't tell upper from
// lower case.
var upperMarker = strings.ToUpper(MarkerName)

// CheckVM says, before anything is written, whether the VM can have a folder of its own. On storage that doesn't tell
// upper from lower case, as most SMB shares are, the VMs Web and web would share one: the one that came later gets an
// kvmbackup.ErrInvalid, as a *NameError. Two that come first at the same time are told apart by CreatePartial.
func (r *Repository) CheckVM(ctx context.Context, vm kvmbackup.VMID) error {
	name := string(vm)
	if err := validVM(name); err != nil {
		return r.failed("check VM", name, err)
	}
	_, err := do(ctx, r, "check VM", name, func(s *session) (struct{}, error) { return struct{}{}, s.ownsFolder(name) })
	return err
}

// ownsFolder lists the root only where upper and lower case are the same, and there only when the VM's folder is there
// and isn't one that was found, or made, under exactly this name before.
func (s *session) ownsFolder(vm string) error {
	if same, err := s.ignoresCase(); !same || err != nil {
		return err
	}
	var there fs.FileInfo
	err := s.read("stat", vm, func() (err error) { there, err = s.root.Lstat(vm); return err })
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case s.repo.isExact(vm, there):
		return nil
	}
	names, err := s.names(".")
	if err != nil {
		return err
	}
	if err := clash(vm, names); err != nil {
		return err
	}
	s.repo.setExact(vm, there)
	return nil
}

// ignoresCase says whether upper and lower case are the same on this storage.
func (s *session) ignoresCase() (bool, error) {
	err := s.read("stat", upperMarker, func() error { _, err := s.root.Lstat(upperMarker); return err })
	return err == nil, allow(err, fs.ErrNotExist)
}

// isExact says whether that folder was found under exactly this name.
func (r *Repository) isExact(vm string, folder fs.FileInfo) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.exact[vm]
	return known != nil && os.SameFile(known, folder)
}

func (r *Repository) setExact(vm string, folder fs.FileInfo) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exact[vm] = folder
}

// clash finds the folder of another VM, of those that have exactly these names, whose name is the VM's in other
// letters.
func clash(vm string, names []string) error {
	if slices.Contains(names, vm) || slices.Contains(names, upperMarker) { // the latter is a file of its own
		return nil
	}
	for _, name := range names {
		if strings.EqualFold(name, vm) {
			return &kvmbackup.NameError{What: "VM name", Name: vm,
				Reason: fmt.Sprintf("is that of the folder %q on this storage, which doesn't tell upper from lower case", name)}
		}
	}
	return nil
}
