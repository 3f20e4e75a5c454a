package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

type restoreFlags struct {
	to        string
	format    string
	volumes   []string
	inPlace   bool
	otherVM   bool
	bandwidth int64
	noRoom    bool
	noDigests bool
	dropSnaps bool
	define    defineFlags
	identity  identityFlags
}

func (a *app) restoreCommand() *cobra.Command {
	var flags restoreFlags
	cmd := &cobra.Command{
		Use:   "restore BACKUP (--to DIR | --in-place)",
		Short: "Restore volumes to new files, to block devices or over the VM's own",
		Long: `Restore volumes to new files in a folder, to paths of their own, or over the VM's own disks. The whole chain
is verified before the first byte. Nothing that exists is overwritten, unless it is a block device, or
--in-place says so. In place the domain must be off, nothing may have its disks open, and its next backup is
a full. A domain of the same name with another UUID is another one, which --other-domain allows to
overwrite.

With --define the restored disks become a new domain, which can run beside the one that was backed up: it
has a UUID, MAC addresses and UEFI variables of its own, and the TPM's state where that was saved. The
definition in the repository isn't trusted: what of it reaches into this host is named and refused.`,
		Example: `  nasbackup restore vm1/latest --to /srv/restored
  nasbackup restore 3ad34f2e --to /srv/restored --format raw --volume vda
  nasbackup restore 3ad34f2e --volume vda=/dev/vg0/vm1-root
  nasbackup restore vm1/latest --to /srv/vm1-copy --define vm1-copy
  nasbackup restore vm1/latest --in-place`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeBackups,
		RunE: a.command(func(ctx context.Context, args []string) error {
			if err := flags.check(); err != nil {
				return err
			}
			keys, err := flags.identity.keys()
			if err != nil {
				return err
			}
			a.keys = keys
			return a.restore(ctx, args[0], flags)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&flags.to, "to", "", "`DIR` for new files DEVICE.VOLUME.FORMAT; made if it isn't there")
	f.StringVar(&flags.format, "format", "qcow2", "`FORMAT` of new files: qcow2 or raw")
	f.StringArrayVar(&flags.volumes, "volume", nil,
		"`ID[=PATH]` or DEVICE[=PATH]: only this volume, to that new file or block device; may be repeated")
	f.BoolVar(&flags.inPlace, "in-place", false, "overwrite the VM's own disks; PATH is then the device to overwrite")
	f.BoolVar(&flags.otherVM, "other-domain", false,
		"overwrite also a domain that only has the name of the one that was backed up, and another UUID")
	f.Int64Var(&flags.bandwidth, "bandwidth", 0, "limit each volume's copy to `MIB_PER_S` (default no limit)")
	f.BoolVar(&flags.noRoom, "ignore-space", false,
		"begin although the target's file system seems to have too little room")
	f.BoolVar(&flags.noDigests, "skip-digests", false, "don't compare what was restored with the digests on record")
	f.BoolVar(&flags.dropSnaps, "drop-snapshots", false,
		"in place: replace also images with internal snapshots, which are lost then")
	flags.define.add(cmd)
	flags.identity.add(cmd)
	cmd.MarkFlagsMutuallyExclusive("in-place", "format")
	cmd.MarkFlagsMutuallyExclusive("in-place", "define")
	return cmd
}

func (f restoreFlags) check() error {
	everyHasPath := len(f.volumes) > 0
	for _, v := range f.volumes {
		name, path, has := strings.Cut(v, "=")
		if name == "" || has && path == "" {
			return usage("--volume %q is neither ID nor ID=PATH", v)
		}
		everyHasPath = everyHasPath && has
	}
	switch {
	case f.inPlace && f.to != "":
		return usage("restore either --to a folder or --in-place")
	case f.dropSnaps && !f.inPlace:
		return usage("--drop-snapshots goes with --in-place: nothing else replaces an image")
	case !f.inPlace && f.to == "" && !everyHasPath:
		return usage("say where to restore: --to DIR, --volume ID=PATH for each volume, or --in-place")
	case f.otherVM && !f.inPlace:
		return usage("--other-domain is for --in-place")
	case f.format != "qcow2" && f.format != "raw":
		return usage("--format is qcow2 or raw, not %q", f.format)
	case f.bandwidth < 0, f.bandwidth > maxMiB:
		return usage("--bandwidth is a number from 0 to %d", maxMiB)
	}
	return f.define.check(f.to)
}

func (a *app) restore(ctx context.Context, backup string, flags restoreFlags) error {
	n := needImages
	if flags.inPlace || flags.define.name != "" {
		n = needHypervisor
	}
	return a.with(ctx, n, func(s *session) error {
		b, err := s.find(ctx, backup)
		if err != nil {
			return err
		}
		req, err := flags.request(b)
		if err != nil {
			return err
		}
		if flags.define.name != "" {
			return a.restoreDomain(ctx, s, b, req, flags.define)
		}
		if flags.to != "" {
			if err := os.MkdirAll(flags.to, 0o755); err != nil {
				return err
			}
		}
		done, err := s.Restore(ctx, req)
		if err != nil {
			return err
		}
		return a.print(done, func(w io.Writer) { printRestored(w, done) })
	})
}

func (f restoreFlags) request(b kvmbackup.Backup) (engine.RestoreRequest, error) {
	req := engine.RestoreRequest{
		Backup: b.ID, Dir: f.to, Format: qcow2.Format(f.format), BandwidthBytes: f.bandwidth << 20,
		IgnoreSpace: f.noRoom, SkipDigests: f.noDigests,
	}
	if f.inPlace {
		req.InPlace = &engine.InPlace{DropSnapshots: f.dropSnaps, OtherDomain: f.otherVM}
	}
	for _, v := range f.volumes {
		name, path, _ := strings.Cut(v, "=")
		id := volumeID(b, name)
		if slices.ContainsFunc(req.Volumes, func(other engine.RestoreVolume) bool { return other.ID == id }) {
			return req, usage("--volume names %s twice", id)
		}
		req.Volumes = append(req.Volumes, engine.RestoreVolume{ID: id, Path: path})
	}
	return req, nil
}

// volumeID accepts a device in place of an ID. What is neither is left to the engine to refuse.
func volumeID(b kvmbackup.Backup, name string) kvmbackup.VolumeID {
	if _, ok := b.Volume(kvmbackup.VolumeID(name)); !ok {
		for _, v := range b.Volumes {
			if v.Device == name {
				return v.VolumeID
			}
		}
	}
	return kvmbackup.VolumeID(name)
}

func printRestored(w io.Writer, r engine.Restored) {
	fmt.Fprintf(w, "restored %s of %s\n", r.Backup.Path, r.Backup.VM)
	t := table{}
	for _, v := range r.Volumes {
		t.row(" ", v.Device, size(v.VirtualSize), v.Path)
	}
	t.print(w)
	for _, v := range r.Volumes {
		if v.Encryption != "" {
			fmt.Fprintf(w, "  %s was encrypted on its host (%s); %s is not\n", v.Device, v.Encryption, v.Path)
		}
	}
}
