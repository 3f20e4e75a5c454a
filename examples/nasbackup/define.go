package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
)

// defineFlags are the options of restore that make a domain of the restored disks.
type defineFlags struct {
	name       string
	keepMACs   bool
	dropDisks  bool
	hostAccess bool
}

func (d *defineFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&d.name, "define", "", "define a new domain `NAME` on the restored disks; with --to, where its UEFI "+
		"variables go too")
	f.BoolVar(&d.keepMACs, "keep-mac", false, "with --define: keep the MAC addresses, where the original doesn't run "+
		"any more")
	f.BoolVar(&d.dropDisks, "drop-disks", false, "with --define: leave out the domain's disks that aren't restored")
	f.BoolVar(&d.hostAccess, "host-access", false,
		"with --define: keep what reaches into the host, such as shared folders, host devices and QEMU arguments")
}

func (d *defineFlags) check(to string) error {
	switch {
	case d.name == "" && (d.keepMACs || d.dropDisks || d.hostAccess):
		return usage("--keep-mac, --drop-disks and --host-access go with --define")
	case d.name != "" && to == "":
		return usage("--define needs --to: a folder for the new domain")
	}
	return nil
}

// restoredDomain is what a restore with --define has made.
type restoredDomain struct {
	Backup  kvmbackup.BackupID      `json:"backup"`
	Volumes []engine.RestoredVolume `json:"volumes"`
	Domain  libvirtjob.Defined      `json:"domain"`
}

// restoreDomain restores the volumes and defines a domain on them. What can be refused is, before the first byte.
func (a *app) restoreDomain(
	ctx context.Context, s *session, b kvmbackup.Backup, req engine.RestoreRequest, d defineFlags,
) error {
	saved, err := s.Definition(ctx, b.ID)
	if err != nil {
		return err
	}
	o, err := d.options(b, saved, req)
	if err != nil {
		return err
	}
	if err := s.executor.CheckDefine(ctx, saved, o); err != nil {
		if errors.As(err, new(*libvirtjob.HostAccessError)) {
			err = fmt.Errorf("%w, with --host-access", err)
		}
		return err
	}
	if err := os.MkdirAll(req.Dir, 0o755); err != nil {
		return err
	}
	restored, err := s.Restore(ctx, req)
	if err != nil {
		return err
	}
	if o.Disks, err = disksOn(restored.Volumes); err != nil {
		return err
	}
	done := restoredDomain{Backup: b.ID, Volumes: restored.Volumes}
	if done.Domain, err = s.executor.Define(ctx, saved, o); err != nil {
		return fmt.Errorf("the disks are restored in %s, but %w", req.Dir, err)
	}
	return a.print(done, func(w io.Writer) {
		printRestored(w, restored)
		printDefined(w, done.Domain)
	})
}

// options names the disks by where they will be: the engine chooses the names of files in the folder.
func (d *defineFlags) options(
	b kvmbackup.Backup, saved kvmbackup.Definition, req engine.RestoreRequest,
) (libvirtjob.RewriteOptions, error) {
	o := libvirtjob.RewriteOptions{
		Name: d.name, Disks: map[string]libvirtjob.DefinitionDisk{}, DropOthers: d.dropDisks, KeepMACs: d.keepMACs,
		HostAccess: d.hostAccess,
	}
	dir, err := filepath.Abs(req.Dir)
	if err != nil {
		return o, err
	}
	if saved.NVRAM != nil {
		o.NVRAM = filepath.Join(dir, d.name+"_VARS.fd")
	}
	o.NewNVRAM = saved.NVRAM == nil
	chosen := req.Volumes
	if len(chosen) == 0 {
		for _, v := range b.Volumes {
			chosen = append(chosen, engine.RestoreVolume{ID: v.VolumeID})
		}
	}
	for _, c := range chosen {
		v, ok := b.Volume(c.ID)
		if !ok {
			return o, fmt.Errorf("%w: backup %s has no volume %q", kvmbackup.ErrNoVolume, b.ID, c.ID)
		}
		o.Disks[v.Device] = libvirtjob.DefinitionDisk{Path: filepath.Join(dir, v.Device), Format: string(req.Format)}
	}
	return o, nil
}

// disksOn are the definition's disks, where they are now.
func disksOn(volumes []engine.RestoredVolume) (map[string]libvirtjob.DefinitionDisk, error) {
	disks := map[string]libvirtjob.DefinitionDisk{}
	for _, v := range volumes {
		path, err := filepath.Abs(v.Path)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		disks[v.Device] = libvirtjob.DefinitionDisk{Path: path, Format: string(v.Format),
			Block: info.Mode()&os.ModeDevice != 0}
	}
	return disks, nil
}

func printDefined(w io.Writer, d libvirtjob.Defined) {
	fmt.Fprintf(w, "defined %s (%s)\n", d.Name, d.UUID)
	for _, note := range []struct {
		is   bool
		text string
	}{
		{d.NVRAM != "", "its UEFI variables are in " + d.NVRAM},
		{d.NewNVRAM, "its UEFI variables are new: none were saved, and boot entries may be missing"},
		{d.TPM != "", "its TPM has the state that was saved"},
		{d.NewTPM, "its TPM is new: its state was not saved, and keys that the guest had sealed in it are gone"},
	} {
		if note.is {
			fmt.Fprintf(w, "  %s\n", note.text)
		}
	}
}
