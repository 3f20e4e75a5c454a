package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/swap"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// InPlace says over which VM's volumes to restore.
type InPlace struct {
	// VM whose volumes are overwritten. Defaults to the VM of the backup.
	VM kvmbackup.VMID
	// Domain is libvirt's name of that VM. Defaults to VM.
	Domain string
	// Disks describes a domain that is not defined while it is off.
	Disks []kvmbackup.DiskRef
	// Volumes gives that VM's disks their identities, as in a BackupRequest.
	Volumes []Volume
	// DropSnapshots replaces also an image that has internal snapshots, which are lost with it, and a disk of which
	// libvirt has snapshots, which it goes on listing. Otherwise such a disk is an ErrUnsupported that names them.
	DropSnapshots bool
	// OtherDomain allows that the VM has the backup's name and another UUID: another VM then, whose disks are
	// overwritten. A VM of another name is allowed by naming it in VM.
	OtherDomain bool
}

// allows refuses to restore over a VM that isn't the backup's, unless the request says so.
func (p InPlace) allows(b kvmbackup.Backup, st kvmbackup.DomainStatus) error {
	if p.OtherDomain || p.VM != "" && p.VM != b.VM || !b.OtherDomain(st.UUID) {
		return nil
	}
	return fmt.Errorf("%w: backup %s was taken of the domain with UUID %s, and %q is another one of that name, with "+
		"UUID %s; restore to new files, or allow to overwrite it (InPlace.OtherDomain)",
		kvmbackup.ErrOtherDomain, b.ID, b.DomainUUID, st.Name, st.UUID)
}

func (p InPlace) request(b kvmbackup.Backup) BackupRequest {
	r := BackupRequest{VM: p.VM, Domain: p.Domain, Disks: p.Disks, Volumes: p.Volumes}
	if r.VM == "" {
		r.VM = b.VM
		if r.Domain == "" {
			r.Domain = b.Domain
		}
	}
	return r
}

// restoreInPlace writes every volume aside, then swaps them all; block devices are written at once, so that one may be
// half written after a failure. The VM must be off. Its active checkpoint is cleared before the first byte, so that
// whatever happens its next backup is full. t is the operation on the VM over whose volumes it restores, o that on the
// backup's VM.
func (o *op) restoreInPlace(ctx context.Context, t *op, over BackupRequest, req RestoreRequest, done *Restored) error {
	if err := o.e.needExecutor(); err != nil {
		return err
	}
	b, jobs, err := o.prepareRestore(ctx, req, !req.SkipDigests)
	defer closeJobs(jobs)
	if err != nil {
		return err
	}
	tctx := t.context(ctx)
	if err := t.settleRecords(tctx); err != nil {
		return err
	}
	o.step("check targets")
	if err := t.seenOff(ctx); err != nil {
		return err
	}
	if err := req.InPlace.allows(o.e.ofDomain(ctx, b), t.seen); err != nil {
		return err
	}
	if changed, err := t.settleFiles(ctx); err != nil {
		return err
	} else if changed {
		if err := t.seenOff(ctx); err != nil {
			return err
		}
	}
	at, err := t.aimInPlace(ctx, over, req, jobs)
	if err != nil {
		return err
	}
	if err := o.e.makeRoom(ctx, req, jobs, at); err != nil {
		return err
	}
	if err := o.e.notInUse(ctx, t.dom, targetsOf(jobs), targetsOf(jobs)); err != nil {
		return err
	}
	err = t.clearForRestore(tctx)
	if o.at = t.at; err != nil {
		return err
	}
	if err := o.e.notInUse(ctx, t.dom, blockDevicesOf(jobs), blockDevicesOf(jobs)); err != nil {
		return err
	}
	o.step("copy")
	if err := o.copyAside(ctx, req, jobs, at); err != nil {
		return err
	}
	o.step("swap")
	if err := t.swap(ctx, jobs, at); err != nil {
		return err
	}
	*done = restored(b, jobs)
	return nil
}

// clearForRestore empties the VM's active checkpoint and drops what was seen of it.
func (o *op) clearForRestore(ctx context.Context) error {
	vm, err := o.e.cfg.Store.VM(ctx, o.vm)
	if err != nil {
		return err
	}
	if err := o.clearActive(ctx); err != nil {
		return err
	}
	o.dropSeen(ctx, vm.ActiveCheckpoint)
	return nil
}

// swap replaces the VM's images by what was written aside.
func (o *op) swap(ctx context.Context, jobs []copyJob, at []string) error {
	free := func(files []string) error {
		looking := *o // the caller may have left
		if err := looking.seenOff(ctx); err != nil {
			return err
		}
		return o.e.notInUse(ctx, o.dom, filesOf(jobs), files)
	}
	err := o.e.changing(ctx, at, func(w *swap.Work) error {
		err := setOf(w, jobs).Swap(free)
		if err != nil {
			err = errors.Join(err, setOf(w, jobs).Discard())
		}
		return err
	})
	if err != nil {
		return err
	}
	err = o.e.changing(ctx, at, func(w *swap.Work) error {
		_, err := setOf(w, jobs).Settle()
		return err
	})
	if err != nil {
		o.warn("remove the replaced images", "error", err) // the next operation tries again
	}
	return nil
}

// seenOff inspects the VM, which must be off.
func (o *op) seenOff(ctx context.Context) error {
	err := o.inspect(ctx)
	switch st := o.seen; {
	case err != nil:
	case st.State != kvmbackup.DomainStopped:
		err = fmt.Errorf("%w: %q is %v; shut it down before a restore over its volumes", kvmbackup.ErrDomainRunning,
			o.vm, st.State)
	case st.ManagedSave:
		err = fmt.Errorf("%w: the memory of %q is saved, and would go on over other disks; start it and shut it "+
			"down, or drop its memory with virsh managedsave-remove",
			kvmbackup.ErrDomainRunning, o.vm)
	}
	return err
}

// aimInPlace finds each volume's file on the VM, by identity or by the device that the request names, and returns where
// all its images are.
func (o *op) aimInPlace(
	ctx context.Context, over BackupRequest, req RestoreRequest, jobs []copyJob,
) (images []string, err error) {
	disks := over.targets(o.seen)
	for i := range jobs {
		j := &jobs[i]
		j.owner = o.e.owner(o.vm)
		device := j.choice(req).Path
		at := slices.IndexFunc(disks, func(c chosen) bool {
			return device == "" && c.ID == j.out.VolumeID || device != "" && c.Device == device
		})
		if at < 0 {
			return nil, fmt.Errorf("%w: %q has no volume %q (device %q) to restore over", kvmbackup.ErrNoVolume,
				over.VM, j.out.VolumeID, device)
		}
		if err := req.InPlace.mayReplace(o, o.seen, disks[at].Disk, j); err != nil {
			return nil, err
		}
		if err := j.aimOver(ctx, disks[at].Disk); err != nil {
			return nil, err
		}
	}
	return sources(o.seen), distinctTargets(jobs)
}

// targets are the volumes that the request names, or all disks: unlike for a backup, one whose image is gone is
// welcome.
func (r BackupRequest) targets(st kvmbackup.DomainStatus) []chosen {
	var found []chosen
	for _, d := range st.Disks {
		if v, named := r.volumeOn(st, d); named || !r.names() && d.Skip == "" {
			found = append(found, chosen{v, d})
		}
	}
	return found
}

// sources are the places of a VM's images, as far as they are files or block devices here.
func sources(st kvmbackup.DomainStatus) []string {
	var paths []string
	for _, d := range st.Disks {
		if d.Skip == "" && filepath.IsAbs(d.Path) {
			paths = append(paths, d.Path)
		}
	}
	return paths
}

func (j *copyJob) aimOver(ctx context.Context, d kvmbackup.DiskStatus) error {
	j.out.Path, j.out.Format = d.Path, qcow2.Format(d.Format)
	t, err := lookAt(ctx, d.Path)
	if err == nil && t.kind != targetDevice {
		j.out.Path, err = swap.Look(ctx, func() (string, error) { return swap.BehindLinks(d.Path) })
	}
	switch {
	case err != nil:
		return err
	case t.kind == targetDevice && t.size < j.out.VirtualSize:
		return fmt.Errorf("%w: %s has %d bytes, volume %q has %d", kvmbackup.ErrTooSmall, d.Path, t.size,
			j.out.VolumeID, j.out.VirtualSize)
	case t.kind == targetDevice && j.out.Format != qcow2.FormatRaw:
		return fmt.Errorf("%w: %s is a block device with %s content; restore to a file and convert that",
			kvmbackup.ErrUnsupported, d.Path, d.Format)
	}
	j.exists, j.place = t.kind == targetDevice, t.place
	if !j.exists {
		j.place = j.out.Path
	}
	return nil
}

// mayReplace refuses a disk whose image a restore in place can't replace, or not without harm. It comes before anything
// is written.
func (p InPlace) mayReplace(o *op, st kvmbackup.DomainStatus, d kvmbackup.DiskStatus, j *copyJob) error {
	part := j.layers[0].volume
	switch {
	case !filepath.IsAbs(d.Path):
		return fmt.Errorf("%w: disk %s (%s) is no file or block device here to restore over; restore volume %q to a "+
			"file and copy it there, or leave it out",
			kvmbackup.ErrUnsupported, d.Device, d.Source, part.VolumeID)
	case d.InUse:
		return fmt.Errorf("%w: disk %s: %s", kvmbackup.ErrImageLocked, d.Device, d.Unreadable)
	case d.Encryption != "":
		return fmt.Errorf("%w: disk %s is encrypted (%s), and its secret is not known here; restore volume %q to a "+
			"file, and write that into the encrypted "+
			"image with qemu-img convert -n and the secret, or leave it out", kvmbackup.ErrUnsupported, d.Device,
			d.Encryption, part.VolumeID)
	case !st.Defined && undescribed(p.Disks, d, part):
		return fmt.Errorf("%w: %s", kvmbackup.ErrInvalid, askForEncryption(d.Device, part))
	case d.Format != "qcow2" && d.Format != "raw":
		return fmt.Errorf("%w: disk %s has format %q; restore it to a file and convert that", kvmbackup.ErrUnsupported,
			d.Device, d.Format)
	case d.StackedOn != "":
		return fmt.Errorf("%w: the definition puts disk %s over %s, which would show through what is restored; "+
			"commit the snapshot (virsh blockcommit), or restore to files",
			kvmbackup.ErrUnsupported, d.Device, d.StackedOn)
	case len(d.Snapshots) > 0 && !p.DropSnapshots:
		return fmt.Errorf("%w: disk %s has snapshots that would be lost with its image: %s; delete them (virsh "+
			"snapshot-delete %s NAME, or qemu-img snapshot -d NAME %s), "+
			"ask for it (DropSnapshots), or restore to files", kvmbackup.ErrUnsupported, d.Device,
			strings.Join(d.Snapshots, ", "), st.Name, d.Path)
	case len(d.Snapshots) > 0:
		o.warn("snapshots go with the image that is replaced; what libvirt still lists goes with virsh "+
			"snapshot-delete --metadata", "device", d.Device,
			"snapshots", strings.Join(d.Snapshots, ", "))
	}
	return nil
}
