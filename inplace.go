package kvmbackup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// InPlace says over which VM's volumes to restore.
type InPlace struct {
	// VM whose volumes are overwritten. Defaults to the VM of the backup.
	VM VMID
	// Domain is libvirt's name of that VM. Defaults to VM.
	Domain string
	// Disks describes a domain that is not defined while it is off.
	Disks []DiskRef
	// Volumes gives that VM's disks their identities, as in a BackupRequest.
	Volumes []Volume
}

func (p InPlace) request(b Backup) BackupRequest {
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
func (e *Engine) withLeases(ctx context.Context, vms []VMID, f func(context.Context, map[VMID]*heldLease) error) error {
	vms = slices.Clone(vms)
	slices.Sort(vms)
	held := map[VMID]*heldLease{}
	var next func(ctx context.Context, rest []VMID) error
	next = func(ctx context.Context, rest []VMID) error {
		if len(rest) == 0 {
			return f(ctx, held)
		}
		return e.withLease(ctx, rest[0], func(ctx context.Context, h *heldLease) error {
			held[rest[0]] = h
			return next(ctx, rest[1:])
		})
	}
	return next(ctx, slices.Compact(vms))
}

// restoreInPlace writes every volume aside, then swaps them all. The VM must be off. Its active checkpoint is cleared before the
// first byte, so that whatever happens its next backup is full.
func (e *Engine) restoreInPlace(ctx context.Context, o *op, h *heldLease, req RestoreRequest) (Restored, error) {
	if e.cfg.Executor == nil {
		return Restored{}, fmt.Errorf("%w config: a restore in place needs the Executor", ErrInvalid)
	}
	b, jobs, err := e.prepareRestore(ctx, o, req)
	if err != nil {
		return Restored{}, err
	}
	over := req.InPlace.request(b)
	t := *o
	t.vm = over.VM
	o.step("check targets")
	if err := e.settle(ctx, &t, h, over.ref()); err != nil {
		return Restored{}, err
	}
	if err := e.aimInPlace(ctx, over, req, jobs); err != nil {
		return Restored{}, err
	}
	o.step("clear active checkpoint")
	if err := e.cfg.Store.SetActive(ctx, h.lease(), ""); err != nil {
		return Restored{}, err
	}
	if err := e.dropStale(ctx, &t, over.ref()); err != nil {
		o.warn("drop the cleared checkpoint", "error", err)
	}
	o.step("copy")
	if err := e.copyAside(ctx, req, jobs); err != nil {
		return Restored{}, err
	}
	o.step("swap")
	if err := e.stillOff(ctx, over); err != nil {
		return Restored{}, errors.Join(err, removeAsides(jobs))
	}
	if err := swapAll(jobs); err != nil {
		return Restored{}, errors.Join(err, removeAsides(jobs))
	}
	r := Restored{Backup: b}
	for _, j := range jobs {
		r.Volumes = append(r.Volumes, j.out)
	}
	return r, nil
}

func (e *Engine) stillOff(ctx context.Context, over BackupRequest) error {
	st, err := e.cfg.Executor.Inspect(ctx, over.ref())
	if err == nil && st.State != DomainStopped {
		err = fmt.Errorf("%w: %q is %v; shut it down before a restore over its volumes", ErrDomainRunning, over.VM, st.State)
	}
	return err
}

// aimInPlace finds each volume's file on the VM, by identity or by the device that the request names.
func (e *Engine) aimInPlace(ctx context.Context, over BackupRequest, req RestoreRequest, jobs []copyJob) error {
	if err := e.stillOff(ctx, over); err != nil {
		return err
	}
	st, err := e.cfg.Executor.Inspect(ctx, over.ref())
	if err != nil {
		return err
	}
	disks, _, err := over.choose(st)
	if err != nil {
		return err
	}
	for i := range jobs {
		j := &jobs[i]
		device := j.choice(req).Path
		at := slices.IndexFunc(disks, func(c chosen) bool {
			return device == "" && c.ID == j.out.VolumeID || device != "" && c.Device == device
		})
		if at < 0 {
			return fmt.Errorf("%w: %q has no volume %q (device %q) to restore over", ErrNoVolume, over.VM, j.out.VolumeID, device)
		}
		if err := j.aimOver(ctx, disks[at].Disk); err != nil {
			return err
		}
	}
	return distinctTargets(jobs)
}

func (j *copyJob) aimOver(ctx context.Context, d DiskStatus) error {
	j.out.Path, j.out.Format = d.Source, qcow2.Format(d.Format)
	if d.Format != "qcow2" && d.Format != "raw" {
		return fmt.Errorf("%w: disk %s has format %q; restore it to a file and convert that", ErrUnsupported, d.Device, d.Format)
	}
	if _, err := leaveBehind(ctx, func() (any, error) { return nil, undoSwap(d.Source) }); err != nil {
		return err
	}
	t, err := lookAt(ctx, d.Source)
	switch {
	case err != nil:
		return err
	case t.kind == targetDevice && t.size < j.out.VirtualSize:
		return fmt.Errorf("%w: %s has %d bytes, volume %q has %d", ErrTooSmall, d.Source, t.size, j.out.VolumeID, j.out.VirtualSize)
	case t.kind == targetDevice && j.out.Format != qcow2.FormatRaw:
		return fmt.Errorf("%w: %s is a block device with %s content; restore to a file and convert that", ErrUnsupported, d.Source, d.Format)
	}
	j.exists = t.kind == targetDevice
	return nil
}

// old is where a volume waits during a swap.
func old(path string) string { return path + ".kvmbackup-old" }

// undoSwap puts back a volume that a killed restore had moved away and not yet replaced, or removes one that it had replaced.
func undoSwap(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return removeFile(old(path))
	}
	if err := os.Rename(old(path), path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// swapAll puts the new files in place of the old ones. On a failure the old ones are put back, all of them.
func swapAll(jobs []copyJob) error {
	for i, j := range jobs {
		if j.exists {
			continue
		}
		if err := swap(j.out.Path); err != nil {
			for _, done := range jobs[:i] {
				if !done.exists {
					err = errors.Join(err, os.Rename(old(done.out.Path), done.out.Path))
				}
			}
			return err
		}
	}
	var errs []error
	for _, j := range jobs {
		if !j.exists {
			errs = append(errs, removeFile(old(j.out.Path)))
		}
	}
	return errors.Join(errs...)
}

// swap gives the new file the old one's owner and mode and its name.
func swap(path string) error {
	if info, err := os.Stat(path); err == nil {
		if err := takeOver(info, aside(path)); err != nil {
			return err
		}
		if err := os.Rename(path, old(path)); err != nil {
			return err
		}
	}
	if err := publishFile(aside(path), path); err != nil {
		return errors.Join(err, undoSwap(path))
	}
	return nil
}

func takeOver(from os.FileInfo, path string) error {
	if err := os.Chmod(path, from.Mode().Perm()); err != nil {
		return err
	}
	if st, ok := from.Sys().(*syscall.Stat_t); ok {
		return os.Chown(path, int(st.Uid), int(st.Gid))
	}
	return nil
}
