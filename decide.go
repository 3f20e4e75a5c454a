package kvmbackup

import (
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
)

// DecideInput is all that a decision depends on.
type DecideInput struct {
	VM               VMID
	Policy           Policy
	State            DomainState
	DomainUUID       string // libvirt's; empty: not known
	ActiveCheckpoint CheckpointName
	// Newest is the newest completed or delete-pending backup; nil: the VM has no such backup. A host that decides on
	// records of its own fills in what ChainDecider reads: ID, Status, DomainUUID, Checkpoint, Repository, Path, ChainID
	// and Position, and of each volume VolumeID, Device, File, VirtualSize, Encryption and Layers.
	Newest       *Backup
	Repository   string   // ID of the repository that the backup goes to
	MissingFiles []string // files of Newest and its ancestors that are not there
	// What the last verifications of Newest and its ancestors found, unless a later one has disproved it.
	Damaged     []string
	Volumes     []VolumeFacts
	LeftOut     []VolumeID // volumes of Newest that the VM still has, and that this backup leaves out
	CantCompare string     // why contents can't be compared with the parent's now, and the way out; empty: they can

	NewCheckpoint CheckpointName // the name the new checkpoint gets, if there is one
	NewChain      ChainID        // the ID that a new chain gets, if there is one
}

// VolumeFacts is what the hypervisor says about one volume.
type VolumeFacts struct {
	VolumeID    VolumeID
	Device      string
	Format      string
	VirtualSize int64       // bytes
	Encryption  string      // as the domain has it, e.g. luks; empty: none
	Untrackable string      // why it can't have a bitmap; empty: it can
	NameTaken   string      // the bitmap of another program whose name an incremental would need; empty: none
	Bitmap      BitmapState // of the active checkpoint's bitmap on it
	// BitmapBegan is the path of the lowest layer that has this bitmap; empty: not known. It has to be one of the
	// layers that the volume had when the checkpoint was made.
	BitmapBegan string
}

// BitmapState is the state of one bitmap on one volume.
type BitmapState int

// The states. In doubt a volume is backed up in full, so the zero value counts as no bitmap.
const (
	BitmapUnknown BitmapState = iota
	BitmapUsable
	BitmapMissing
	BitmapInconsistent
)

// Decision is what the next backup will be and why.
type Decision struct {
	Kind       Kind             `json:"kind"`
	Checkpoint CheckpointName   `json:"checkpoint,omitempty"` // the new one; empty: untracked
	Base       CheckpointName   `json:"base,omitempty"`       // what an incremental starts from; empty in a full
	ChainID    ChainID          `json:"chain_id"`
	Position   int              `json:"position"`
	ParentID   BackupID         `json:"parent_id,omitempty"`
	Transfer   Transfer         `json:"transfer,omitzero"` // the engine's choice, whatever a Decider says
	Reasons    []Reason         `json:"reasons"`           // the rule that decided, then what else is worth saying
	Volumes    []VolumeDecision `json:"volumes"`
}

// String returns the decision as lines for people: kind, reasons, and each volume's part.
func (d Decision) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%v backup at position %d of chain %s\n", d.Kind, d.Position, d.ChainID)
	for _, r := range d.Reasons {
		fmt.Fprintf(&s, "  because: %s\n", r)
	}
	for _, v := range d.Volumes {
		fmt.Fprintf(&s, "  %s\n", v)
	}
	return s.String()
}

// LogValue implements slog.LogValuer: kind, place in the chain, checkpoint and reasons.
func (d Decision) LogValue() slog.Value {
	reasons := make([]string, len(d.Reasons))
	for i, r := range d.Reasons {
		reasons[i] = r.String()
	}
	return slog.GroupValue(slog.String("kind", d.Kind.String()), slog.String("transfer", d.Transfer.String()),
		slog.String("chain", string(d.ChainID)), slog.Int("position", d.Position),
		slog.String("checkpoint", string(d.Checkpoint)), slog.String("reasons", strings.Join(reasons, "; ")))
}

// VolumeDecision is one volume's part of a Decision.
type VolumeDecision struct {
	VolumeID   VolumeID `json:"volume_id"`
	Device     string   `json:"device"`
	Kind       Kind     `json:"kind"`
	ParentFile string   `json:"parent_file,omitempty"` // relative to the new backup's folder; empty in a full
	Tracked    bool     `json:"tracked"`               // the new checkpoint gets a bitmap on it
	// Compare says that everything is read, and what differs from the parent chain stored; CheckBitmap that the base's
	// bitmap is fine all the same, and that what differs outside of it is to be reported.
	Compare     bool   `json:"compare,omitempty"`
	CheckBitmap bool   `json:"check_bitmap,omitempty"`
	Reason      Reason `json:"reason"`
}

// ByBitmap says whether the volume needs the bitmap of the base.
func (v VolumeDecision) ByBitmap() bool {
	return v.Kind == KindIncremental && (!v.Compare || v.CheckBitmap)
}

// String returns the volume's part as one line.
func (v VolumeDecision) String() string {
	return fmt.Sprintf("%s (%s): %v, %s", v.VolumeID, v.Device, v.Kind,
		Reason{Code: v.Reason.Code, Detail: v.Reason.Detail})
}

// ChainDecider decides whether the next backup is full or incremental, and each volume's part in it: the rules of
// full-every and of the active checkpoint. It is pure. The zero value is ready to use. An engine takes a host's own,
// too.
type ChainDecider struct{}

// rule is one row of the table: the first whose condition holds makes the backup a full.
type rule struct {
	code  ReasonCode
	holds func(in DecideInput) (detail string, ok bool)
}

// ofBitmaps says whether the rule is about bitmaps alone, so that a comparison of contents does without it.
func (r rule) ofBitmaps() bool {
	return r.code == ReasonStopped || r.code == ReasonNoActiveCheckpoint || r.code == ReasonNotNewest
}

// fullRules are asked in this order; the first match wins. A decision rule is added here.
var fullRules = []rule{
	{ReasonIncrementalDisabled, func(in DecideInput) (string, bool) { return "", in.Policy.DisableIncremental }},
	{ReasonForced, func(in DecideInput) (string, bool) { return "", in.Policy.ForceFull }},
	{ReasonEveryFull, func(in DecideInput) (string, bool) { return "", in.Policy.fullEvery() <= 1 }},
	{ReasonStopped, func(in DecideInput) (string, bool) {
		return "offline incrementals are not allowed", in.State == DomainStopped && !in.Policy.OfflineIncremental
	}},
	{ReasonNoActiveCheckpoint, func(in DecideInput) (string, bool) { return "", in.ActiveCheckpoint == "" }},
	{ReasonNotNewest, activeNotNewest},
	{ReasonParentOtherDomain, func(in DecideInput) (string, bool) {
		return fmt.Sprintf("backup %s is of the domain with UUID %s, which had this name", in.Newest.ID,
				in.Newest.DomainUUID),
			in.Newest.OtherDomain(in.DomainUUID)
	}},
	{ReasonParentDeletePending, func(in DecideInput) (string, bool) {
		return "backup " + in.Newest.ID.String(), in.Newest.Status != StatusCompleted
	}},
	{ReasonParentNoChainData, func(in DecideInput) (string, bool) {
		lacks := lacksForChain(*in.Newest)
		return fmt.Sprintf("backup %s has no %s", in.Newest.ID, strings.Join(lacks, ", no ")), len(lacks) > 0
	}},
	{ReasonParentOtherRepository, func(in DecideInput) (string, bool) {
		return fmt.Sprintf("backup %s is in %q", in.Newest.ID, in.Newest.Repository), in.Newest.Repository != in.Repository
	}},
	{ReasonParentFileMissing, func(in DecideInput) (string, bool) {
		return strings.Join(in.MissingFiles, ", "), len(in.MissingFiles) > 0
	}},
	{ReasonParentDamaged, func(in DecideInput) (string, bool) {
		return strings.Join(in.Damaged, "; "), len(in.Damaged) > 0
	}},
	{ReasonChainComplete, func(in DecideInput) (string, bool) {
		return fmt.Sprintf("full every %d backups", in.Policy.fullEvery()), in.Newest.Position+1 >= in.Policy.fullEvery()
	}},
}

// lacksForChain names what an incremental on the backup would need, and its record doesn't have.
func lacksForChain(b Backup) (lacks []string) {
	if b.ChainID == "" {
		lacks = append(lacks, "chain ID")
	}
	if b.Path == "" {
		lacks = append(lacks, "path")
	}
	if len(b.Volumes) == 0 {
		lacks = append(lacks, "volumes")
	}
	return lacks
}

func activeNotNewest(in DecideInput) (string, bool) {
	if in.Newest == nil {
		return "no completed backup is on record", true
	}
	return fmt.Sprintf("the newest backup %s has %q, active is %q", in.Newest.ID, in.Newest.Checkpoint,
			in.ActiveCheckpoint),
		in.Newest.Checkpoint != in.ActiveCheckpoint
}

// Decide applies the rules in their order. Returns ErrInvalid if the input can't be decided on,
// ErrNothingToBackUp if it has no volume.
func (ChainDecider) Decide(in DecideInput) (Decision, error) {
	if err := in.validate(); err != nil {
		return Decision{}, err
	}
	for _, r := range fullRules {
		detail, ok := r.holds(in)
		if !ok || r.ofBitmaps() && in.compares() {
			continue
		}
		return full(in, Reason{Code: r.code, Detail: detail}), nil
	}
	d := incremental(in)
	for _, v := range d.Volumes {
		if v.Kind == KindIncremental {
			return d, nil
		}
	}
	// Each volume keeps the reason why it could not be incremental.
	f := full(in, Reason{Code: ReasonNoVolumeIncremental})
	for i := range f.Volumes {
		f.Volumes[i].Reason = d.Volumes[i].Reason
	}
	return f, nil
}

func (in DecideInput) validate() error {
	if len(in.Volumes) == 0 {
		return fmt.Errorf("%w: %q has no disk that can be backed up", ErrNothingToBackUp, in.VM)
	}
	var errs []error
	ids, devices := map[VolumeID]bool{}, map[string]bool{}
	for _, v := range in.Volumes {
		if v.VolumeID == "" || v.Device == "" || ids[v.VolumeID] || devices[v.Device] {
			errs = append(errs, fmt.Errorf("%w volume %q on device %q of %q: empty or there twice", ErrInvalid,
				v.VolumeID, v.Device, in.VM))
		}
		ids[v.VolumeID], devices[v.Device] = true, true
	}
	if in.State == DomainUnknown {
		errs = append(errs, fmt.Errorf("%w: the state of %q is not known", ErrInvalid, in.VM))
	}
	if in.NewChain == "" || in.NewCheckpoint == "" {
		errs = append(errs, fmt.Errorf("%w: no chain ID or checkpoint name for a new chain of %q", ErrInvalid, in.VM))
	}
	return errors.Join(errs...)
}

// full is tracked unless the feature is off or nothing on the VM can be tracked. What will keep a volume from being
// incremental the next time too is said with every full, unless nothing is to be incremental.
func full(in DecideInput, why Reason) Decision {
	d := Decision{Kind: KindFull, ChainID: in.NewChain, Reasons: []Reason{why}}
	for _, v := range in.Volumes {
		tracked := v.Untrackable == "" && why.Code != ReasonIncrementalDisabled
		if tracked {
			d.Checkpoint = in.NewCheckpoint
		}
		because := Reason{Code: ReasonBackupFull, VolumeID: v.VolumeID}
		if v.Untrackable != "" && why.Code != ReasonIncrementalDisabled && why.Code != ReasonEveryFull {
			because.Code, because.Detail = ReasonVolumeUntrackable, v.Untrackable
		}
		d.Volumes = append(d.Volumes, VolumeDecision{
			VolumeID: v.VolumeID, Device: v.Device, Kind: KindFull, Tracked: tracked, Reason: because,
		})
	}
	return d
}

func incremental(in DecideInput) Decision {
	d := Decision{
		Kind:    KindIncremental,
		ChainID: in.Newest.ChainID, Position: in.Newest.Position + 1, ParentID: in.Newest.ID,
		Reasons: []Reason{{Code: ReasonIncremental, Detail: fmt.Sprintf("position %d on backup %s",
			in.Newest.Position+1, in.Newest.ID)}},
	}
	present := map[VolumeID]bool{}
	for _, v := range in.Volumes {
		vd := decideVolume(in, v)
		if vd.ByBitmap() {
			d.Base = in.ActiveCheckpoint
		}
		if vd.Tracked {
			d.Checkpoint = in.NewCheckpoint
		}
		d.Volumes = append(d.Volumes, vd)
		present[v.VolumeID] = true
	}
	for _, v := range in.Newest.Volumes {
		if !present[v.VolumeID] && !slices.Contains(in.LeftOut, v.VolumeID) {
			d.Reasons = append(d.Reasons, Reason{Code: ReasonVolumeGone, VolumeID: v.VolumeID, Detail: "was " + v.Device})
		}
	}
	return d
}

func decideVolume(in DecideInput, v VolumeFacts) VolumeDecision {
	d := VolumeDecision{VolumeID: v.VolumeID, Device: v.Device, Kind: KindFull, Tracked: v.Untrackable == ""}
	because := func(r Reason) VolumeDecision {
		d.Reason = Reason{Code: r.Code, Detail: r.Detail, VolumeID: v.VolumeID}
		return d
	}
	parent, known := in.Newest.Volume(v.VolumeID)
	if !known {
		return because(Reason{Code: ReasonVolumeNew})
	}
	unmarked, stands := in.bitmapFault(v), parentFault(parent, v)
	switch {
	case !in.compares() && (v.Untrackable != "" || v.NameTaken != ""):
		return because(unmarked)
	case stands.Code != "":
		return because(stands)
	case unmarked.Code != "" && !in.compares():
		return because(unmarked)
	}
	d.Kind = KindIncremental
	d.ParentFile = in.Newest.BackingLink(parent.File)
	due := in.Policy.compareDue(in.Newest.Position + 1)
	switch d.Compare = in.compares() && (unmarked.Code != "" || due != ""); {
	case !d.Compare:
		return because(Reason{Code: ReasonVolumeIncremental})
	case unmarked.Code == "":
		d.CheckBitmap = true
		return because(Reason{Code: ReasonVolumeCompared, Detail: due})
	}
	return because(Reason{Code: ReasonVolumeCompared, Detail: unmarked.cause()})
}

// parentFault says why a volume can't stand on its parent's file, however it is read.
func parentFault(parent VolumeBackup, v VolumeFacts) Reason {
	switch {
	case parent.File == "":
		return Reason{Code: ReasonVolumeNoParentFile}
	case v.Encryption != parent.Encryption: // the guest may see other bytes of the same clusters
		return Reason{Code: ReasonVolumeReencrypted, Detail: fmt.Sprintf("from %q to %q", parent.Encryption, v.Encryption)}
	case v.VirtualSize < parent.VirtualSize:
		return Reason{Code: ReasonVolumeShrank, Detail: fmt.Sprintf("from %d to %d bytes", parent.VirtualSize, v.VirtualSize)}
	}
	return Reason{}
}

// bitmapFault says why a bitmap can't tell what has changed on a volume since Newest.
func (in DecideInput) bitmapFault(v VolumeFacts) Reason {
	parent, _ := in.Newest.Volume(v.VolumeID)
	for _, r := range fullRules { // without a comparison Decide has asked them of the whole backup
		if !in.compares() || !r.ofBitmaps() || v.Untrackable != "" {
			continue
		}
		if detail, ok := r.holds(in); ok {
			return Reason{Code: r.code, Detail: detail}
		}
	}
	switch {
	case v.Untrackable != "":
		return Reason{Code: ReasonVolumeUntrackable, Detail: v.Untrackable}
	case v.NameTaken != "":
		return Reason{Code: ReasonVolumeNameTaken, Detail: v.NameTaken}
	case v.Bitmap == BitmapMissing:
		return Reason{Code: ReasonVolumeBitmapMissing, Detail: in.ActiveCheckpoint.String()}
	case v.Bitmap == BitmapInconsistent:
		return Reason{Code: ReasonVolumeBitmapInconsistent, Detail: in.ActiveCheckpoint.String()}
	case v.Bitmap != BitmapUsable:
		return Reason{Code: ReasonVolumeBitmapUnknown, Detail: in.ActiveCheckpoint.String()}
	case v.BitmapBegan != "" && !parent.HasLayer(v.BitmapBegan):
		return Reason{Code: ReasonVolumeBitmapMoved, Detail: fmt.Sprintf("%s begins in %s", in.ActiveCheckpoint,
			v.BitmapBegan)}
	}
	return Reason{}
}

// HasLayer says whether the file was one of the volume's when the backup was taken. After an external snapshot each
// layer has a part of a bitmap, and a part looks like a whole one when those below it are lost: committed into an image
// that can't have bitmaps, or copied without them. Only where it began tells them apart. Merging goes down, so a layer
// below is as good.
func (v VolumeBackup) HasLayer(file string) bool {
	return slices.ContainsFunc(v.Layers, func(l string) bool { return path.Clean(l) == path.Clean(file) })
}

// Check proves that carrying the decision out keeps the chain true: it is what the engine asks of any decider's answer.
// Every breach is an ErrInvalid.
func (d Decision) Check(in DecideInput) error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w decision for %q: "+format, append([]any{ErrInvalid, in.VM}, args...)...))
	}
	if len(d.Volumes) != len(in.Volumes) {
		return fmt.Errorf("%w decision for %q: %d volumes decided, the VM has %d", ErrInvalid, in.VM, len(d.Volumes),
			len(in.Volumes))
	}
	safest := Decision{}
	if d.Kind == KindIncremental {
		if in.Newest == nil || !in.compares() && (in.ActiveCheckpoint == "" || in.Newest.Checkpoint != in.ActiveCheckpoint) ||
			in.Newest.Status != StatusCompleted || in.Newest.Repository != in.Repository ||
			in.Newest.OtherDomain(in.DomainUUID) ||
			len(in.MissingFiles) > 0 || len(in.Damaged) > 0 {
			return fmt.Errorf("%w decision for %q: there is nothing that an incremental could start from", ErrInvalid, in.VM)
		}
		safest = incremental(in)
	} else {
		safest = full(in, Reason{})
	}
	if d.Kind != safest.Kind || d.ChainID != safest.ChainID || d.Position != safest.Position ||
		d.ParentID != safest.ParentID || d.Base != safest.Base {
		bad("kind, chain, position, parent or base is not %v, %s, %d, %q, %q", safest.Kind, safest.ChainID,
			safest.Position, safest.ParentID, safest.Base)
	}
	if d.Checkpoint != "" && d.Checkpoint != in.NewCheckpoint {
		bad("checkpoint %q is not the new one %q", d.Checkpoint, in.NewCheckpoint)
	}
	for i, v := range d.Volumes {
		v.check(safest.Volumes[i], d.Checkpoint, bad)
	}
	return errors.Join(errs...)
}

// check compares the volume's part with the one that is safest.
func (v VolumeDecision) check(s VolumeDecision, checkpoint CheckpointName, bad func(format string, args ...any)) {
	if v.VolumeID != s.VolumeID || v.Device != s.Device {
		bad("volume %q on %s out of place", v.VolumeID, v.Device)
	}
	if v.Kind != KindFull && (v.Kind != s.Kind || v.ParentFile != s.ParentFile) {
		bad("volume %q can't be %v on %q", v.VolumeID, v.Kind, v.ParentFile)
	}
	if s.Compare && v.Kind != KindFull && (!v.Compare || v.CheckBitmap != s.CheckBitmap) {
		bad("volume %q has to be compared", v.VolumeID)
	}
	if v.Compare && (!s.Compare || v.Kind == KindFull) || v.CheckBitmap && !v.Compare {
		bad("volume %q can't be compared", v.VolumeID)
	}
	if v.Kind == KindFull && v.ParentFile != "" {
		bad("volume %q is full and has a parent file", v.VolumeID)
	}
	if v.Tracked && (!s.Tracked || checkpoint == "") {
		bad("volume %q can't be tracked", v.VolumeID)
	}
}
