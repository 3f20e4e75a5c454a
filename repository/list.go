package repository

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/leave"
)

// Entry is one folder, or something else, found below ROOT/VM.
type Entry struct {
	VM   kvmbackup.VMID
	Path string // VM/STAMP: what it is, or would be, published as; of a foreign one VM/NAME
	Name string // the folder's own name, with its mark
	Kind FolderKind
	ID   kvmbackup.BackupID // the backup's, from the manifest or the folder's mark; empty if it can't be told

	// DomainUUID is the manifest's. It is empty if the folder has no manifest, which is usual for partial and deleting
	// folders, or if Err says why it couldn't be read. ReadManifest has the rest of it: a list keeps no manifests, which
	// can have 4 MiB each, and of a file with several names it reads one.
	DomainUUID string
	Err        error
}

// List returns all that is below the folder of one VM, or of all (vm is empty), sorted by VM and name: backups, what
// crashes have left, and what is foreign, which includes folders named like a backup that have no manifest, and VM
// folders that can't be read. A bad folder has an Err and doesn't keep the others from being listed; an error of List
// itself means that the repository did not answer or ctx ended. A VM without a folder has no entries.
func (r *Repository) List(ctx context.Context, vm kvmbackup.VMID) ([]Entry, error) {
	name := string(vm)
	if name != "" {
		if err := validVM(name); err != nil {
			return nil, r.failed("list", name, err)
		}
	}
	return do(ctx, r, "list", name, func(s *session) ([]Entry, error) {
		vms, err := s.vms(name)
		var all []Entry
		for _, vm := range vms {
			entries, err := s.listVM(vm)
			if err != nil {
				return nil, err
			}
			all = append(all, entries...)
		}
		return all, err
	})
}

// vms returns the folders of VMs. Files in the root and folders with impossible names (".snapshot") are none.
func (s *session) vms(vm string) ([]string, error) {
	if vm != "" {
		return []string{vm}, nil
	}
	list, err := s.list(".")
	var vms []string
	for _, e := range list {
		if !e.Type().IsRegular() && validVM(e.Name()) == nil {
			vms = append(vms, e.Name())
		}
	}
	return vms, err
}

func (s *session) listVM(vm string) ([]Entry, error) {
	err := s.folder(vm)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []fs.DirEntry
	if err == nil {
		list, err = s.list(vm)
	}
	if err != nil {
		return []Entry{{VM: kvmbackup.VMID(vm), Path: vm, Name: vm, Kind: FolderForeign, Err: classify(err)}}, s.fatal(err)
	}
	var entries []Entry
	for _, e := range list {
		entry, err := s.entry(vm, e)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

// entry judges one name below a VM's folder.
func (s *session) entry(vm string, e fs.DirEntry) (Entry, error) {
	f, err := parseBase(e.Name())
	if err != nil || !e.IsDir() {
		return Entry{VM: kvmbackup.VMID(vm), Path: join(vm, e.Name()), Name: e.Name(), Kind: FolderForeign}, nil
	}
	f.vm = vm
	out := Entry{VM: kvmbackup.VMID(vm), Path: f.path(), Name: e.Name(), Kind: f.kind, ID: f.id}
	if f.kind == FolderLeft {
		return out, nil
	}
	m, err := s.summary(f)
	if errors.Is(err, fs.ErrNotExist) {
		if f.kind == FolderPublished {
			out.Kind = FolderForeign
		}
		return out, nil
	}
	if err := s.fatal(err); err != nil {
		return out, err
	}
	out.DomainUUID, out.Err = m.domainUUID, classify(err)
	if out.ID == "" {
		out.ID = m.id
	}
	return out, nil
}

// fatal returns err if it is not about one folder: the caller has left, or the storage has gone.
func (s *session) fatal(err error) error {
	if errors.Is(err, leave.ErrLeft) || errors.Is(classify(err), ErrUnavailable) {
		return err
	}
	return nil
}

// Stamps returns the stamps in use below the folder of one VM, whatever state their folders are in, in order: what
// Stamp.Next asks for. It reads no manifests.
func (r *Repository) Stamps(ctx context.Context, vm kvmbackup.VMID) ([]kvmbackup.Stamp, error) {
	name := string(vm)
	if err := validVM(name); err != nil {
		return nil, r.failed("list stamps", name, err)
	}
	return do(ctx, r, "list stamps", name, func(s *session) ([]kvmbackup.Stamp, error) {
		there, err := s.exists(name)
		if !there || err != nil {
			return nil, err
		}
		list, err := s.list(name)
		var stamps []kvmbackup.Stamp
		for _, e := range list {
			if f, err := parseBase(e.Name()); err == nil && f.kind != FolderLeft {
				stamps = append(stamps, f.stamp)
			}
		}
		slices.SortFunc(stamps, kvmbackup.Stamp.Compare)
		return slices.Compact(stamps), err
	})
}
