package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/kvmbackup/kvmbackup"
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
	// DropSnapshots replaces also an image that has internal snapshots, which are lost with it, and a disk of which libvirt has
	// snapshots, which it goes on listing. Otherwise such a disk is an ErrUnsupported that names them.
	DropSnapshots bool
	// OtherDomain allows that the VM has the backup's name and another UUID: another VM then, whose disks are overwritten. A VM of another
	// name is allowed by naming it in VM.
	OtherDomain bool
}

// allows refuses to restore over a VM that isn't the backup's, unless the request says so.
func (p InPlace) allows(b kvmbackup.Backup, st kvmbackup.DomainStatus) error {
	if p.OtherDomain || p.VM != "" && p.VM != b.VM || !kvmbackup.OtherDomain(b.DomainUUID, st.UUID) {
		return nil
	}
	return fmt.Errorf("%w: backup %s was taken of the domain with UUID %s, and %q is another one of that name, with UUID %s; restore to new files, or allow to overwrite it (InPlace.OtherDomain)",
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

// withLeases takes several VMs' leases, always in the same order, so that nobody waits in a circle.
func (o *op) withLeases(ctx context.Context, vms []kvmbackup.VMID, f func(context.Context, map[kvmbackup.VMID]*heldLease) error) error {
	vms = slices.Clone(vms)
	slices.Sort(vms)
	held := map[kvmbackup.VMID]*heldLease{}
	var next func(ctx context.Context, rest []kvmbackup.VMID) error
	next = func(ctx context.Context, rest []kvmbackup.VMID) error {
		if len(rest) == 0 {
			o.begun()
			return f(ctx, held)
		}
		return o.e.withLease(ctx, o, rest[0], o.e.cfg.LeaseWait, func(ctx context.Context, h *heldLease) error {
			held[rest[0]] = h
			return next(ctx, rest[1:])
		})
	}
	return o.telling(func() error { return next(o.context(ctx), slices.Compact(vms)) })
}

// restoreInPlace writes every volume aside, then swaps them all; block devices are written at once, so that one may be half written
// after a failure. The VM must be off. Its active checkpoint is cleared before the first byte, so that whatever happens
// its next backup is full.
func (e *Engine) restoreInPlace(ctx context.Context, o *op, h *heldLease, req RestoreRequest) (Restored, error) {
	if e.cfg.Executor == nil {
		return Restored{}, fmt.Errorf("%w config: a restore in place needs the Executor", kvmbackup.ErrInvalid)
	}
	b, jobs, err := e.prepareRestore(ctx, o, req)
	if err != nil {
		return Restored{}, err
	}
	over := req.InPlace.request(b)
	o.step("check targets")
	st, err := e.inspect(ctx, over.ref())
	if err != nil {
		return Restored{}, err
	}
	if err := req.InPlace.allows(e.ofDomain(ctx, b), st); err != nil {
		return Restored{}, err
	}
	t, tctx := o.on(ctx, o.name, over.VM, o.backup)
	if err := e.settle(tctx, t, h, over.ref()); err != nil {
		return Restored{}, err
	}
	at, err := e.aimInPlace(ctx, o, over, req, jobs)
	if err != nil {
		return Restored{}, err
	}
	if err := e.makeRoom(ctx, req, jobs, at); err != nil {
		return Restored{}, err
	}
	if err := e.notInUse(ctx, over.ref(), targetsOf(jobs), targetsOf(jobs)); err != nil {
		return Restored{}, err
	}
	o.step("clear active checkpoint")
	if err := e.cfg.Store.SetActive(ctx, h.lease(), ""); err != nil {
		return Restored{}, err
	}
	if err := e.dropStale(tctx, t, over.ref()); err != nil {
		o.warn("drop the cleared checkpoint", "error", err)
	}
	if err := e.notInUse(ctx, over.ref(), blockDevicesOf(jobs), blockDevicesOf(jobs)); err != nil {
		return Restored{}, err
	}
	o.step("copy")
	if err := e.copyAside(ctx, o, req, jobs, at); err != nil {
		return Restored{}, err
	}
	o.step("swap")
	owner := e.owner(over.VM)
	free := func(files []string) error {
		if err := e.stillOff(ctx, over); err != nil {
			return err
		}
		return e.notInUse(ctx, over.ref(), filesOf(jobs), files)
	}
	err = e.changing(ctx, at, func(w *fileWork) error {
		err := swapWork{w, owner}.swapAll(filesOf(jobs), free)
		if err != nil {
			err = errors.Join(err, w.removeAsides(jobs))
		}
		return err
	})
	if err != nil {
		return Restored{}, err
	}
	if err := e.changing(ctx, at, func(w *fileWork) error { _, err := swapWork{w, owner}.settleSwap(filesOf(jobs)); return err }); err != nil {
		o.warn("remove the replaced images", "error", err) // the next operation tries again
	}
	r := Restored{Backup: b}
	for _, j := range jobs {
		r.Volumes = append(r.Volumes, j.out)
	}
	return r, nil
}

func (e *Engine) stillOff(ctx context.Context, over BackupRequest) error {
	st, err := e.inspect(ctx, over.ref())
	switch {
	case err != nil:
	case st.State != kvmbackup.DomainStopped:
		err = fmt.Errorf("%w: %q is %v; shut it down before a restore over its volumes", kvmbackup.ErrDomainRunning, over.VM, st.State)
	case st.ManagedSave:
		err = fmt.Errorf("%w: the memory of %q is saved, and would go on over other disks; start it and shut it down, or drop its memory with virsh managedsave-remove",
			kvmbackup.ErrDomainRunning, over.VM)
	}
	return err
}

// aimInPlace finds each volume's file on the VM, by identity or by the device that the request names, and returns where all its images are.
func (e *Engine) aimInPlace(ctx context.Context, o *op, over BackupRequest, req RestoreRequest, jobs []copyJob) (images []string, err error) {
	if err := e.stillOff(ctx, over); err != nil {
		return nil, err
	}
	st, err := e.inspect(ctx, over.ref())
	if err != nil {
		return nil, err
	}
	if _, err := e.settleFiles(ctx, over.VM, st); err != nil {
		return nil, err
	}
	if st, err = e.inspect(ctx, over.ref()); err != nil {
		return nil, err
	}
	disks := over.targets(st)
	for i := range jobs {
		j := &jobs[i]
		j.owner = e.owner(over.VM)
		device := j.choice(req).Path
		at := slices.IndexFunc(disks, func(c chosen) bool {
			return device == "" && c.ID == j.out.VolumeID || device != "" && c.Device == device
		})
		if at < 0 {
			return nil, fmt.Errorf("%w: %q has no volume %q (device %q) to restore over", kvmbackup.ErrNoVolume, over.VM, j.out.VolumeID, device)
		}
		if err := req.InPlace.mayReplace(o, st, disks[at].Disk, j); err != nil {
			return nil, err
		}
		if err := j.aimOver(ctx, disks[at].Disk); err != nil {
			return nil, err
		}
	}
	return sources(st), distinctTargets(jobs)
}

// targets are the volumes that the request names, or all disks: unlike for a backup, one whose image is gone is welcome.
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
		j.out.Path, err = leaveBehind(ctx, func() (string, error) { return behindLinks(d.Path) })
	}
	switch {
	case err != nil:
		return err
	case t.kind == targetDevice && t.size < j.out.VirtualSize:
		return fmt.Errorf("%w: %s has %d bytes, volume %q has %d", kvmbackup.ErrTooSmall, d.Path, t.size, j.out.VolumeID, j.out.VirtualSize)
	case t.kind == targetDevice && j.out.Format != qcow2.FormatRaw:
		return fmt.Errorf("%w: %s is a block device with %s content; restore to a file and convert that", kvmbackup.ErrUnsupported, d.Path, d.Format)
	}
	j.exists, j.place = t.kind == targetDevice, t.place
	if !j.exists {
		j.place = j.out.Path
	}
	return nil
}
