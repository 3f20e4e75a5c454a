package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Plan is what Backup would do now. Nothing was changed to find it out.
type Plan struct {
	VM kvmbackup.VMID `json:"vm"`
	kvmbackup.Decision
	// Path is the backup's folder, VM/STAMP; it and the checkpoint's name follow the clock.
	Path string `json:"path"`
	// EstimateBytes is what the job is expected to write, its images' tables included; FreeBytes what the repository has,
	// of which ReserveBytes are to stay free.
	EstimateBytes int64 `json:"estimate_bytes"`
	FreeBytes     int64 `json:"free_bytes"`
	ReserveBytes  int64 `json:"reserve_bytes"`
	// ReadBytes is the size of the disks that are read whole, to be compared with the parent chain, which is read as far
	// as it has something there. The estimate counts for them what they hold, though only what differs is stored.
	ReadBytes int64 `json:"read_bytes,omitempty"`
	// Scratch is the folder that a pull would take, and ScratchFreeBytes its room, without what is promised to other
	// backups of this process; empty for what isn't pulled, or can't be now, and in a PlanWith.
	Scratch          string `json:"scratch,omitempty"`
	ScratchFreeBytes int64  `json:"scratch_free_bytes,omitempty"`
	// Compression is that of the images. FromHistory are devices whose part of the estimate is what their last backups
	// came to with it; others count as if they didn't compress.
	Compression kvmbackup.Compression `json:"compression,omitempty"`
	FromHistory []string              `json:"from_history,omitempty"`
	// Unmeasured are devices of which it can't be told what they hold, such as one in a network: the estimate counts them
	// as full.
	Unmeasured []string `json:"unmeasured,omitempty"`
	// Assumed says what PlanWith takes for granted because the inventory doesn't know it; empty in a Plan.
	Assumed []string `json:"assumed,omitempty"`
	// Pending are the backups that are recorded as running: what an earlier crash has left is settled before the backup,
	// and the decision may then differ.
	Pending []kvmbackup.BackupID `json:"pending,omitempty"`
	// BusyWith describes a job on the domain that Backup would refuse to disturb; empty: none.
	BusyWith string `json:"busy_with,omitempty"`
	// Blocked is the error that Backup would return now: ErrBusy for a job on the domain, ErrNoSpace (a *SpaceError),
	// ErrScratch. nil: nothing is known that stands in its way. Whether another operation holds the VM's lease isn't
	// looked at. JSON has its text.
	Blocked error `json:"-"`
}

// planJSON has what JSON says of a Plan beside its fields.
type planJSON struct {
	Blocked textError `json:"blocked,omitzero"`
}

// MarshalJSON writes the fields, with the text of Blocked.
func (p Plan) MarshalJSON() ([]byte, error) {
	type fields Plan
	return json.Marshal(struct {
		fields
		planJSON
	}{fields(p), planJSON{textError{p.Blocked}}})
}

// UnmarshalJSON reads what MarshalJSON writes. Blocked has the text alone then: it matches no sentinel.
func (p *Plan) UnmarshalJSON(b []byte) error {
	type fields Plan
	var has planJSON
	err := errors.Join(json.Unmarshal(b, (*fields)(p)), json.Unmarshal(b, &has))
	p.Blocked = has.Blocked.error
	return err
}

// String returns the plan as lines for people.
func (p Plan) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s: %v backup to %s, %s, about %d bytes\n", p.VM, p.Decision.Kind, p.Path, p.Transfer.Phrase(),
		p.EstimateBytes)
	if p.ReadBytes > 0 {
		fmt.Fprintf(&s, "  compared: %d bytes are read, and their parent's; only what differs is stored\n", p.ReadBytes)
	}
	if text := p.compressionPhrase(); text != "" {
		fmt.Fprintf(&s, "  %s\n", text)
	}
	if len(p.Unmeasured) > 0 {
		fmt.Fprintf(&s, "  at most: it can't be told what is on %s\n", strings.Join(p.Unmeasured, ", "))
	}
	for _, a := range p.Assumed {
		fmt.Fprintf(&s, "  if: %s\n", a)
	}
	for _, r := range p.Decision.Reasons {
		fmt.Fprintf(&s, "  because: %s\n", r)
	}
	for _, v := range p.Decision.Volumes {
		fmt.Fprintf(&s, "  %s\n", v)
	}
	if p.Blocked != nil {
		fmt.Fprintf(&s, "  not now: %v\n", p.Blocked)
	}
	for _, id := range p.Pending {
		fmt.Fprintf(&s, "  first: wait for %s, which is recorded as running, or settle it if a crash has left it so\n", id)
	}
	return s.String()
}

// compressionPhrase says on what the estimate of a compressed backup rests.
func (p Plan) compressionPhrase() string {
	switch {
	case p.Compression == "":
		return ""
	case len(p.FromHistory) == 0:
		return fmt.Sprintf("with %s it may be less: no backup of these disks tells yet by how much", p.Compression)
	}
	return fmt.Sprintf("as the last backups of %s came to with %s, and a quarter more", strings.Join(p.FromHistory, ", "),
		p.Compression)
}

// LogValue implements slog.LogValuer: the decision, the folder, the estimate and what stands in its way.
func (p Plan) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("vm", string(p.VM)), slog.Any("decision", p.Decision), slog.String("path", p.Path),
		slog.Int64("estimate_bytes", p.EstimateBytes), slog.Int64("free_bytes", p.FreeBytes)}
	if p.Blocked != nil {
		attrs = append(attrs, slog.String("blocked", p.Blocked.Error()))
	}
	return slog.GroupValue(attrs...)
}

// Plan shows what Backup would do with the same request, and changes nothing. It takes no lease.
func (e *Engine) Plan(ctx context.Context, req BackupRequest) (Plan, error) {
	o := e.open("plan", req.VM)
	o.dom = req.ref()
	kept, release := e.cfg.Repository.Keep(ctx)
	defer release()
	p, err := o.plan(kept, req)
	return p, o.fail(ctx, err)
}

func (o *op) plan(ctx context.Context, req BackupRequest) (Plan, error) {
	if err := firstError(o.e.needHypervisor(), req.validate()); err != nil {
		return Plan{}, err
	}
	view, err := o.observe(ctx, req)
	if err != nil {
		return Plan{}, err
	}
	p, space, err := o.planned(ctx, view)
	if err != nil {
		return Plan{}, err
	}
	need, err := o.estimate(ctx, view, p.Decision, 0)
	if err != nil {
		return Plan{}, err
	}
	p.EstimateBytes, p.Unmeasured, p.FromHistory = need.bytes, need.unmeasured, need.fromHistory
	scratch, unusable, err := o.planScratch(ctx, p.Transfer, space, scratchNeed(req, need.copied))
	if err != nil {
		return Plan{}, err
	}
	p.Scratch, p.ScratchFreeBytes = scratch.path, scratch.room()
	p.Blocked = firstError(p.Blocked, o.needKeys(req), o.e.spaceVerdict(req, need, p.FreeBytes), unusable)
	return p, nil
}

// planned is the plan without its estimate, and the room that the repository has.
func (o *op) planned(ctx context.Context, v view) (p Plan, space repository.Space, err error) {
	p = Plan{VM: v.req.VM, Path: v.path(), ReserveBytes: o.e.cfg.ReserveBytes, Compression: v.req.Policy.Compression}
	p.Decision, err = o.decide(v)
	if err == nil && o.e.cfg.Images != nil { // a manager may have none
		p.Decision, _, err = o.decideOnParents(ctx, &v, p.Decision)
	}
	if err != nil {
		return Plan{}, space, err
	}
	for i, vd := range p.Decision.Volumes {
		if vd.Compare {
			p.ReadBytes += v.volumes[i].Disk.VirtualSize
		}
	}
	if p.Blocked = o.busy(); p.Blocked != nil {
		p.BusyWith = o.seen.JobDetail
	}
	if space, err = o.e.cfg.Repository.Probe(ctx, o.vm); err != nil {
		return Plan{}, space, err
	}
	p.FreeBytes = space.FreeBytes
	left, err := o.records(ctx, kvmbackup.StatusRunning)
	for _, b := range left {
		p.Pending = append(p.Pending, b.ID)
	}
	return p, space, err
}

// view is what was seen before a decision, besides the domain.
type view struct {
	req     BackupRequest
	record  kvmbackup.VMRecord
	stamp   kvmbackup.Stamp
	volumes []chosen
	left    []leftOut
	input   kvmbackup.DecideInput
	// parentMAC is that of a sealed parent on which the backup is to be sealed too.
	parentMAC string
}

// busy is an ErrBusy while the domain has a job that a backup would disturb.
func (o *op) busy() error {
	if o.seen.Job == kvmbackup.JobNone {
		return nil
	}
	return &kvmbackup.BusyError{VM: o.vm, Holder: "a job on its domain: " + o.seen.JobDetail}
}

func (v view) path() string { return string(v.req.VM) + "/" + v.stamp.String() }

// observe reads the domain, the records and the repository's parent files.
func (o *op) observe(ctx context.Context, req BackupRequest) (view, error) {
	o.step("inspect")
	if err := o.look(ctx); err != nil {
		if errors.Is(err, kvmbackup.ErrNoDomain) && req.Domain == "" && req.DomainUUID == "" {
			err = fmt.Errorf("%w; where libvirt has another name for the VM, say it (Domain)", err)
		}
		return view{req: req}, err
	}
	return o.viewOf(ctx, req)
}

// viewOf adds to what was seen of the domain what records and files say.
func (o *op) viewOf(ctx context.Context, req BackupRequest) (view, error) {
	v := view{req: req}
	var err error
	if v.volumes, v.left, err = req.choose(o.seen); err != nil {
		return v, err
	}
	if v.record, err = o.e.cfg.Store.VM(ctx, req.VM); err != nil {
		return v, err
	}
	v.stamp = nextStamp(o.e.now(), v.record, o.e.prefix(), o.seen)
	v.input = kvmbackup.DecideInput{
		VM: req.VM, Policy: req.Policy, State: o.seen.State, DomainUUID: o.seen.UUID,
		ActiveCheckpoint: v.record.ActiveCheckpoint, Repository: o.e.cfg.Repository.ID(), NewChain: kvmbackup.NewChainID(),
		NewCheckpoint: kvmbackup.NewCheckpointName(o.e.prefix(), v.stamp, req.VM),
	}
	for _, c := range v.volumes {
		v.input.Volumes = append(v.input.Volumes, kvmbackup.VolumeFacts{
			VolumeID: c.ID, Device: c.Device, Format: c.Disk.Format, VirtualSize: c.Disk.VirtualSize,
			Encryption: c.Disk.Encryption, Untrackable: c.Disk.WhyUntrackable(), NameTaken: c.Disk.NameTaken,
			Bitmap:      c.Disk.BitmapState(v.record.ActiveCheckpoint),
			BitmapBegan: c.Disk.BitmapBegan(v.record.ActiveCheckpoint),
		})
	}
	v.input.CantCompare = o.cantCompare()
	if err := o.observeParent(ctx, v.record, &v.input); err != nil {
		return v, err
	}
	if v.input.Newest != nil {
		v.input.LeftOut = present(*v.input.Newest, v.left)
	}
	return v, v.sameEncryption(o.seen)
}

// nextStamp names the next backup: later than every stamp of the VM before it, also when the clock stepped back, and
// with a checkpoint name that nothing on the domain has.
func nextStamp(now time.Time, vm kvmbackup.VMRecord, prefix string, st kvmbackup.DomainStatus) kvmbackup.Stamp {
	after, err := kvmbackup.ParseStamp(vm.LastStamp)
	if err != nil {
		after = kvmbackup.Stamp{} // a VM without a record yet, or one whose stamps are not ours
	}
	names := st.CheckpointNames()
	return after.Next(now, func(s kvmbackup.Stamp) bool {
		return slices.Contains(names, string(kvmbackup.NewCheckpointName(prefix, s, vm.VM)))
	})

}

// observeParent looks at the newest backup and, if it could be a parent, whether its chain's files are there.
func (o *op) observeParent(ctx context.Context, vm kvmbackup.VMRecord, in *kvmbackup.DecideInput) error {
	recent, err := o.recent(ctx, vm, in.Policy)
	if err != nil {
		return err
	}
	newest, err := recent.Newest(ctx, in.VM)
	if errors.Is(err, kvmbackup.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	newest = o.e.ofDomain(ctx, newest)
	in.Newest = &newest
	unmarked := newest.Checkpoint != in.ActiveCheckpoint && !mayCompare(*in)
	if newest.Status != kvmbackup.StatusCompleted || unmarked || newest.Repository != in.Repository {
		return nil
	}
	chain, err := kvmbackup.ChainOf(ctx, recent, newest.ID)
	if errors.Is(err, kvmbackup.ErrInvalid) {
		in.MissingFiles = []string{err.Error()} // a broken chain is no parent
		return nil
	}
	if err != nil {
		return err
	}
	if damage := newest.DamageIn(chain); damage != "" {
		in.Damaged = []string{fmt.Sprintf("backup %s: %s", newest.ID, damage)}
	}
	in.MissingFiles, err = o.missingFiles(ctx, chain)
	return err
}

// missingFiles names the files of a chain that are not there or are no plain files. A repository that doesn't answer is
// an error: it would make every backup a full.
func (o *op) missingFiles(ctx context.Context, chain []kvmbackup.Backup) ([]string, error) {
	var missing []string
	for _, b := range chain {
		for _, vol := range b.Volumes {
			_, err := o.e.cfg.Repository.Stat(ctx, b.Path, vol.File)
			switch {
			case errors.Is(err, repository.ErrNotFound), errors.Is(err, repository.ErrUnsafe):
				missing = append(missing, path.Join(b.Path, vol.File))
			case err != nil:
				return nil, err
			}
		}
	}
	return missing, nil
}

// decide asks the decider and checks its answer.
func (o *op) decide(v view) (kvmbackup.Decision, error) {
	o.step("decide")
	d, err := o.e.cfg.Decider.Decide(v.input)
	if err != nil {
		return kvmbackup.Decision{}, err
	}
	if err := d.Check(v.input); err != nil {
		return kvmbackup.Decision{}, err
	}
	way, why, err := chooseWay(wayInput{
		VM: v.req.VM, Wanted: v.req.Policy.Transfer, State: o.seen.State, Scratch: len(o.e.cfg.Scratch) > 0,
		CanPull: o.seen.CanPull, NoPull: o.seen.NoPull, Compare: compares(d), NeedsCopier: needsCopier(v.req.Policy),
	})
	if err != nil {
		return kvmbackup.Decision{}, err
	}
	missed, err := o.e.notCompared(v.input, d)
	if err != nil {
		return kvmbackup.Decision{}, err
	}
	d.Reasons = append(d.Reasons, missed...)
	if d.Transfer = way; why.Code != "" {
		d.Reasons = append(d.Reasons, why)
	}
	d.Reasons = append(append(d.Reasons, reasonsOf(v.left)...), encrypted(v.volumes, v.req.Policy)...)
	return d, nil
}

// devicesOf lists the devices of the volumes for which keep holds.
func devicesOf(d kvmbackup.Decision, keep func(kvmbackup.VolumeDecision) bool) []string {
	var names []string
	for _, v := range d.Volumes {
		if keep(v) {
			names = append(names, v.Device)
		}
	}
	slices.Sort(names)
	return names
}
