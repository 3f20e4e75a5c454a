package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// PlanWith is Plan with what the host knows of the domain in place of what its hypervisor says, which isn't asked: for
// a manager whose engine has no Executor. The status is an Inspect's from another machine, which JSON carries, or made
// from an inventory. That has at least State, and of each disk Device, Source or Serial, Format and VirtualSize;
// BitmapsNotListed where it doesn't keep bitmaps. What the decision had to take for granted is in Plan.Assumed. The
// estimate is the most that the backup can write, with all its devices in Plan.Unmeasured: what disks hold, and how
// much of it changed, is the hypervisor's to say. So Plan.Blocked is an ErrNoSpace only where not even the images'
// tables would fit.
//
// ErrInvalid for a status that lacks what a decision needs, ErrNoDomain for one of another domain.
func (e *Engine) PlanWith(ctx context.Context, req BackupRequest, st kvmbackup.DomainStatus) (Plan, error) {
	o := e.open("plan", req.VM)
	p, err := o.planWith(ctx, req, st)
	return p, o.fail(ctx, err)
}

func (o *op) planWith(ctx context.Context, req BackupRequest, st kvmbackup.DomainStatus) (Plan, error) {
	o.step("read inventory")
	if err := req.validate(); err != nil {
		return Plan{}, err
	}
	st, assumed, err := fromInventory(req, st)
	if err != nil {
		return Plan{}, err
	}
	o.seen, o.inventory = st, true
	v, err := o.viewOf(ctx, req)
	if err != nil {
		return Plan{}, err
	}
	v.assumeBitmaps()
	p, _, err := o.planned(ctx, v)
	if err != nil {
		return Plan{}, err
	}
	p.Assumed = slices.Concat(assumed, v.bitmapsAssumed(p.Decision), o.comparisonAssumed(v, p.Decision))
	p.EstimateBytes, p.Unmeasured = v.sizeOf(p.Decision, nil, nil),
		devicesOf(p.Decision, func(kvmbackup.VolumeDecision) bool { return true })
	if p.Blocked == nil {
		p.Blocked = o.e.spaceVerdict(req, estimate{bytes: v.leastSize(p.Decision)}, p.FreeBytes)
	}
	return p, nil
}

// fromInventory fills in what Inspect would say of itself, and refuses a status on which nothing can be decided.
func fromInventory(
	req BackupRequest, st kvmbackup.DomainStatus,
) (_ kvmbackup.DomainStatus, assumed []string, err error) {
	ref := req.ref()
	if st.Name == "" {
		st.Name = ref.Name
	}
	if st.Name != ref.Name || ref.UUID != "" && !strings.EqualFold(ref.UUID, st.UUID) {
		return st, nil, fmt.Errorf("%w: the status is of domain %q with UUID %q", kvmbackup.ErrNoDomain, st.Name, st.UUID)
	}
	if st.Job == kvmbackup.JobUnknown {
		st.Job = kvmbackup.JobNone
		assumed = append(assumed, "no job runs on the domain")
	}
	disks := make([]kvmbackup.DiskStatus, 0, len(st.Disks))
	for _, d := range st.Disks {
		if d.Skip == "" && d.Unreadable == "" && (d.VirtualSize <= 0 || d.Format == "") {
			return st, nil, fmt.Errorf("%w status of domain %q: disk %q has no format or no size", kvmbackup.ErrInvalid,
				st.Name, d.Device)
		}
		if d.Skip == "" && d.Source == "" && d.Serial == "" && len(req.Volumes) == 0 {
			return st, nil, fmt.Errorf("%w status of domain %q: disk %q has neither source nor serial, by which to "+
				"identify it: add one, or name its volume (Volumes)", kvmbackup.ErrInvalid, st.Name, d.Device)
		}
		if d.Untrackable == "" && d.Format != "qcow2" {
			d.Untrackable = d.Format
		}
		disks = append(disks, d)
	}
	st.Disks = disks
	return st, assumed, nil
}

// assumeBitmaps takes the active checkpoint's bitmaps for whole where its backup made one and the inventory doesn't
// keep them.
func (v *view) assumeBitmaps() {
	in := &v.input
	for i, c := range v.volumes {
		if c.Disk.BitmapsUnknown != kvmbackup.BitmapsNotListed || in.Newest == nil || in.ActiveCheckpoint == "" {
			continue
		}
		in.Volumes[i].Bitmap = kvmbackup.BitmapMissing
		if part, _ := in.Newest.Volume(c.ID); part.Tracked {
			in.Volumes[i].Bitmap = kvmbackup.BitmapUsable
		}
	}
}

// bitmapsAssumed says on which of them the decision rests.
func (v view) bitmapsAssumed(d kvmbackup.Decision) (assumed []string) {
	for i, vd := range d.Volumes {
		if vd.ByBitmap() && v.volumes[i].Disk.BitmapsUnknown == kvmbackup.BitmapsNotListed {
			assumed = append(assumed, fmt.Sprintf("%s still has the bitmap %s, and it is whole", vd.Device, d.Base))
		}
	}
	return assumed
}

// comparisonAssumed says what a comparison needs of the VM's host that isn't known here.
func (o *op) comparisonAssumed(v view, d kvmbackup.Decision) (assumed []string) {
	if !compares(d) {
		return nil
	}
	if !o.seen.CanCompare {
		assumed = append(assumed, "the host's executor can compare contents")
	}
	if o.seen.State != kvmbackup.DomainStopped {
		assumed = append(assumed, "the host has a scratch")
	}
	if v.input.Newest.Sealed() {
		assumed = append(assumed, "the host opens the last backups, or has the key of their indexes")
	}
	if o.e.cfg.Images == nil {
		assumed = append(assumed, "the files of the last backups are sound")
	}
	return assumed
}

// leastSize is what the job writes if nothing is on the disks, or has changed.
func (v view) leastSize(d kvmbackup.Decision) int64 {
	none := map[string]int64{}
	for _, vd := range d.Volumes {
		none[vd.Device] = 0
	}
	return v.sizeOf(d, none, none)
}
