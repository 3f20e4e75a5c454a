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
	// EstimateBytes is what the job is expected to write, its images' tables included; FreeBytes what the repository has, of which
	// ReserveBytes are to stay free.
	EstimateBytes int64 `json:"estimate_bytes"`
	FreeBytes     int64 `json:"free_bytes"`
	ReserveBytes  int64 `json:"reserve_bytes"`
	// Unmeasured are devices of which it can't be told what they hold, such as one in a network: the estimate counts them as full.
	Unmeasured []string `json:"unmeasured,omitempty"`
	// Pending are the backups that are recorded as running: what an earlier crash has left is settled before the backup, and the
	// decision may then differ.
	Pending []kvmbackup.BackupID `json:"pending,omitempty"`
	// BusyWith describes a job on the domain that Backup would refuse to disturb; empty: none.
	BusyWith string `json:"busy_with,omitempty"`
	// Blocked is the error that Backup would return now: ErrBusy for a job on the domain, ErrNoSpace (a *SpaceError). nil: nothing
	// is known that stands in its way. Whether another operation holds the VM's lease isn't looked at. JSON has its text.
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
	fmt.Fprintf(&s, "%s: %v backup to %s, about %d bytes\n", p.VM, p.Decision.Kind, p.Path, p.EstimateBytes)
	if len(p.Unmeasured) > 0 {
		fmt.Fprintf(&s, "  at most: it can't be told what is on %s\n", strings.Join(p.Unmeasured, ", "))
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
	o := e.newOp("plan", req.VM)
	p, err := o.plan(ctx, req)
	return p, o.fail(ctx, err)
}

func (o *op) plan(ctx context.Context, req BackupRequest) (Plan, error) {
	if err := firstError([]error{o.e.needHypervisor(), req.validate()}); err != nil {
		return Plan{}, err
	}
	view, err := o.observe(ctx, req)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{VM: req.VM}
	if p.Decision, err = o.decide(view); err != nil {
		return Plan{}, err
	}
	p.Path = view.path()
	busy := view.busy()
	if busy != nil {
		p.BusyWith = view.status.JobDetail
	}
	need, err := o.estimate(ctx, view, p.Decision, 0)
	if err != nil {
		return Plan{}, err
	}
	if err := o.e.cfg.Repository.CheckVM(ctx, req.VM); err != nil {
		return Plan{}, err
	}
	p.EstimateBytes, p.Unmeasured = need.bytes, need.unmeasured
	space, err := o.e.cfg.Repository.Probe(ctx)
	if err != nil {
		return Plan{}, err
	}
	p.FreeBytes, p.ReserveBytes = space.FreeBytes, o.e.cfg.ReserveBytes
	if p.Blocked = busy; busy == nil {
		p.Blocked = o.e.spaceVerdict(req, need, space.FreeBytes)
	}
	running, err := o.e.cfg.Store.List(ctx, kvmbackup.Query{VM: req.VM, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning}})
	for _, b := range running {
		p.Pending = append(p.Pending, b.ID)
	}
	return p, err
}

// view is what was seen before a decision.
type view struct {
	req     BackupRequest
	status  kvmbackup.DomainStatus
	record  kvmbackup.VMRecord
	stamp   kvmbackup.Stamp
	volumes []chosen
	left    []leftOut
	input   kvmbackup.DecideInput
}

// busy is an ErrBusy while the domain has a job that a backup would disturb.
func (v view) busy() error {
	if v.status.Job == kvmbackup.JobNone {
		return nil
	}
	return &kvmbackup.BusyError{VM: v.req.VM, Holder: "a job on its domain: " + v.status.JobDetail}
}

func (v view) path() string { return string(v.req.VM) + "/" + v.stamp.String() }

// observe reads the domain, the records and the repository's parent files.
func (o *op) observe(ctx context.Context, req BackupRequest) (view, error) {
	o.step("inspect")
	v := view{req: req}
	var err error
	if v.status, err = o.e.look(ctx, req.ref()); err != nil {
		return v, err
	}
	if v.volumes, v.left, err = req.choose(v.status); err != nil {
		return v, err
	}
	if v.record, err = o.e.cfg.Store.VM(ctx, req.VM); err != nil {
		return v, err
	}
	v.stamp = nextStamp(o.e.now(), v.record, o.e.prefix(), v.status)
	v.input = kvmbackup.DecideInput{
		VM: req.VM, Policy: req.Policy, State: v.status.State, DomainUUID: v.status.UUID, ActiveCheckpoint: v.record.ActiveCheckpoint,
		Repository: o.e.cfg.Repository.ID(), NewChain: kvmbackup.NewChainID(),
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
	if err := o.observeParent(ctx, &v.input); err != nil {
		return v, err
	}
	if v.input.Newest != nil {
		v.input.LeftOut = present(*v.input.Newest, v.left)
	}
	return v, v.sameEncryption()
}

// nextStamp names the next backup: later than every stamp of the VM before it, also when the clock stepped back, and with
// a checkpoint name that nothing on the domain has.
func nextStamp(now time.Time, vm kvmbackup.VMRecord, prefix string, st kvmbackup.DomainStatus) kvmbackup.Stamp {
	after, err := kvmbackup.ParseStamp(vm.LastStamp)
	if err != nil {
		after = kvmbackup.Stamp{} // a VM without a record yet, or one whose stamps are not ours
	}
	names := st.CheckpointNames()
	return kvmbackup.NextStamp(now, after, func(s kvmbackup.Stamp) bool {
		return slices.Contains(names, string(kvmbackup.NewCheckpointName(prefix, s, vm.VM)))
	})
}

// observeParent looks at the newest backup and, if it could be a parent, whether its chain's files are there.
func (o *op) observeParent(ctx context.Context, in *kvmbackup.DecideInput) error {
	newest, err := o.e.cfg.Store.Newest(ctx, in.VM)
	if errors.Is(err, kvmbackup.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	newest = o.e.ofDomain(ctx, newest)
	in.Newest = &newest
	if newest.Status != kvmbackup.StatusCompleted || newest.Checkpoint != in.ActiveCheckpoint || newest.Repository != in.Repository {
		return nil
	}
	chain, err := kvmbackup.ChainOf(ctx, o.e.cfg.Store, newest.ID)
	if errors.Is(err, kvmbackup.ErrInvalid) {
		in.MissingFiles = []string{err.Error()} // a broken chain is no parent
		return nil
	}
	if err != nil {
		return err
	}
	if damage := kvmbackup.Damage(newest, chain); damage != "" {
		in.Damaged = []string{fmt.Sprintf("backup %s: %s", newest.ID, damage)}
	}
	in.MissingFiles, err = o.missingFiles(ctx, chain)
	return err
}

// missingFiles names the files of a chain that are not there or are no plain files. A repository that doesn't answer is an
// error: it would make every backup a full.
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
	d.Reasons = append(append(d.Reasons, reasonsOf(v.left)...), encrypted(v.volumes)...)
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
