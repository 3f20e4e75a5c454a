package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// FindingCode says what kind of difference a diagnosis found. Codes are stable.
type FindingCode string

// The differences between the four truths: store, libvirt's checkpoints, bitmaps, files in the repository.
const (
	FindingRunningRecord   FindingCode = "running-record"    // a crash left a running record
	FindingDeletePending   FindingCode = "removable-pending" // a delete-pending backup that nothing needs any more
	FindingStaleCheckpoint FindingCode = "stale-checkpoint"  // a checkpoint or bitmap of ours that no longer counts
	FindingActiveNotNewest FindingCode = "active-not-newest" // the active checkpoint is not the newest backup's
	// Libvirt doesn't list the active checkpoint; its bitmaps are there.
	FindingActiveUnlisted FindingCode = "active-unlisted"
	// The active checkpoint has no bitmap on a volume it tracked.
	FindingBitmapMissing FindingCode = "bitmap-missing"
	FindingBitmapBroken  FindingCode = "bitmap-inconsistent" // QEMU marked it inconsistent
	FindingBitmapUnknown FindingCode = "bitmap-unknown"      // the bitmaps could not be listed
	// It begins in a file that the volume had not at its last backup.
	FindingBitmapMoved FindingCode = "bitmap-moved"
	FindingShrank      FindingCode = "volume-shrank"   // a volume is smaller than at its last backup
	FindingUnreadable  FindingCode = "unreadable-disk" // a disk's image is missing or can't be read
	// It can't have a bitmap, so that it is full in every backup: worth knowing.
	FindingUntrackable  FindingCode = "untrackable-disk"
	FindingMissingFile  FindingCode = "missing-file"      // a recorded backup lacks a file
	FindingUnrecorded   FindingCode = "unrecorded-folder" // a published folder without a record
	FindingLeftPartial  FindingCode = "left-partial"      // a partial folder of a record that is not running
	FindingLeftDeleting FindingCode = "left-deleting"     // a folder whose removal was begun
	// A job's folder in a scratch, and its record is not running.
	FindingLeftScratch FindingCode = "left-scratch"
	FindingScratch     FindingCode = "scratch-unusable" // a configured scratch can't be used
	// Backups of another VM, which had the name before: left alone.
	FindingOtherDomain FindingCode = "other-domain"
	// The VM's last stamp is ahead of the clock, which was wrong then or is now.
	FindingStampAhead        FindingCode = "stamp-ahead"
	FindingForeignPartial    FindingCode = "foreign-partial"    // a partial folder that this store knows nothing of
	FindingForeignCheckpoint FindingCode = "foreign-checkpoint" // another consumer's checkpoint or bitmap: left alone
	// Something in the VM's folder that is no backup: left alone.
	FindingForeignFolder FindingCode = "foreign-folder"
)

// Finding is one difference, what it means for the next backup, and whether Repair mends it.
type Finding struct {
	Code    FindingCode              `json:"code"`
	Detail  string                   `json:"detail"`
	Effect  string                   `json:"effect"`
	Repair  string                   `json:"repair,omitempty"` // what Repair does about it; empty: nothing
	Backup  kvmbackup.BackupID       `json:"backup,omitempty"`
	Device  string                   `json:"device,omitempty"`
	Path    string                   `json:"path,omitempty"`
	Name    kvmbackup.CheckpointName `json:"checkpoint,omitempty"`
	Foreign bool                     `json:"foreign,omitempty"` // it isn't ours, and is left alone
	Advice  bool                     `json:"advice,omitempty"`  // nothing is wrong, and something could be better
}

// String returns the finding as lines for people.
func (f Finding) String() string {
	s := fmt.Sprintf("%s: %s", f.Code, f.Detail)
	if f.Effect != "" {
		s += "\n    effect: " + f.Effect
	}
	if f.Repair != "" {
		s += "\n    repair: " + f.Repair
	}
	return s
}

// Diagnosis is what Inspect found about one VM.
type Diagnosis struct {
	VM       kvmbackup.VMID          `json:"vm"`
	Record   kvmbackup.VMRecord      `json:"record"`
	Domain   *kvmbackup.DomainStatus `json:"domain,omitempty"` // nil when the hypervisor doesn't know it
	Findings []Finding               `json:"findings"`
	Complete bool                    `json:"complete"` // all four truths were looked at
}

// MarshalJSON writes the fields and what can be said of them: whether the VM is healthy, the domain's state and the
// active checkpoint.
func (d Diagnosis) MarshalJSON() ([]byte, error) {
	type fields Diagnosis
	if d.Findings == nil {
		d.Findings = []Finding{}
	}
	return json.Marshal(struct {
		fields
		Healthy          bool                     `json:"healthy"`
		State            kvmbackup.DomainState    `json:"state"`
		ActiveCheckpoint kvmbackup.CheckpointName `json:"active_checkpoint"`
	}{fields(d), d.Healthy(), d.State(), d.Record.ActiveCheckpoint})
}

// State is the domain's, or DomainUnknown when the hypervisor doesn't know it.
func (d Diagnosis) State() kvmbackup.DomainState {
	if d.Domain == nil {
		return kvmbackup.DomainUnknown
	}
	return d.Domain.State
}

// String returns the diagnosis as lines for people.
func (d Diagnosis) String() string {
	verdict := "healthy"
	switch {
	case !d.Complete:
		verdict = "not everything could be looked at"
	case !d.Healthy():
		verdict = "not healthy"
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%s: %v, %s\n", d.VM, d.State(), verdict)
	for _, f := range d.Findings {
		fmt.Fprintf(&s, "  %s\n", f)
	}
	return s.String()
}

// Healthy says whether everything was looked at and there is nothing to repair. What is foreign doesn't count, nor do
// disks that can't have bitmaps. It is false beside an error.
func (d Diagnosis) Healthy() bool {
	return d.Complete && !slices.ContainsFunc(d.Findings, func(f Finding) bool { return !f.Foreign && !f.Advice })
}

// Inspect compares the four truths about a VM: store, libvirt's checkpoints, bitmaps in QEMU or in the image files, and
// files in the repository. It changes nothing and takes no lease, so an operation under way shows up as findings. Where
// scratches are configured it writes into them and into the repository what it removes again at once, as nothing else
// says that this can be done.
func (e *Engine) Inspect(ctx context.Context, t Target) (Diagnosis, error) {
	o := e.open("inspect", t.VM)
	o.dom = t.ref()
	kept, release := e.cfg.Repository.Keep(ctx)
	defer release()
	d, err := o.diagnose(kept, t.request())
	return d, o.fail(ctx, err)
}

// Repair mends what is safe to mend, under the VM's lease, and returns what Inspect finds afterwards. It never touches
// what isn't ours.
func (e *Engine) Repair(ctx context.Context, t Target) (Diagnosis, error) {
	o, req := e.open("repair", t.VM), t.request()
	o.dom = t.ref()
	var after Diagnosis
	err := o.do(ctx, firstError(e.needHypervisor(), req.validate()), func(ctx context.Context) error {
		before, err := o.diagnose(ctx, req)
		if err != nil {
			return err
		}
		if err := o.repair(ctx, before); err != nil {
			return err
		}
		after, err = o.diagnose(ctx, req)
		return err
	})
	return after, err
}

func (o *op) repair(ctx context.Context, d Diagnosis) error {
	stages := []stage{
		{"settle", func() error { _, err := o.settleRunning(ctx); return err }},
		{"mend findings", func() error { return o.mend(ctx, d.Findings) }},
		{"finish deletions", func() error { _, err := o.settleDeletes(ctx); return err }},
	}
	return o.tryAll(append(stages, o.onDomain(ctx)...)...)
}

// mend does what a finding alone tells how to.
func (o *op) mend(ctx context.Context, findings []Finding) error {
	var errs []error
	for _, f := range findings {
		switch f.Code {
		case FindingLeftPartial, FindingLeftDeleting:
			b, err := o.e.cfg.Store.Backup(ctx, f.Backup)
			if err == nil {
				err = o.removeLeft(ctx, f, b)
			}
			errs = append(errs, err)
		case FindingLeftScratch:
			errs = append(errs, o.e.removeScratchFolder(ctx, filepath.Dir(f.Path), f.Backup))
		case FindingActiveNotNewest:
			errs = append(errs, o.e.cfg.Store.SetActive(ctx, o.lease(), ""))
		}
	}
	return errors.Join(errs...)
}

func (o *op) removeLeft(ctx context.Context, f Finding, b kvmbackup.Backup) error {
	if f.Code == FindingLeftPartial {
		return o.tellForeign(o.e.cfg.Repository.RemovePartial(ctx, b))
	}
	_, err := o.e.cfg.Repository.Remove(ctx, b)
	return o.tellForeign(err)
}

func (o *op) diagnose(ctx context.Context, req BackupRequest) (Diagnosis, error) {
	d := Diagnosis{VM: req.VM}
	if err := firstError(o.e.needHypervisor(), req.validate()); err != nil {
		return d, err
	}
	o.step("read records")
	var err error
	if d.Record, err = o.e.cfg.Store.VM(ctx, req.VM); err != nil {
		return d, err
	}
	records, err := o.e.cfg.Store.List(ctx, kvmbackup.Query{VM: req.VM})
	if err != nil {
		return d, err
	}
	d.addRecords(records)
	d.addStamps(records, o.e.now())
	o.step("inspect domain")
	if err = o.look(ctx); err == nil {
		st := o.seen
		d.Domain = &st
	} else if !errors.Is(err, kvmbackup.ErrNoDomain) {
		return d, err
	}
	o.step("list folders")
	entries, err := o.e.cfg.Repository.List(ctx, req.VM)
	if err != nil {
		return d, err
	}
	d.addOtherDomain(records)
	if d.Domain != nil {
		owned := Ownership{Prefix: o.e.prefix(), VM: req.VM, Known: checkpointsOf(records),
			Others: othersOf(entries, records)}
		d.addDomain(owned, *d.Domain, records, req)
	}
	d.addFolders(entries, records)
	o.step("look at the scratch")
	if err := o.addScratches(ctx, &d, records); err != nil {
		return d, err
	}
	o.step("look for files")
	err = o.addFiles(ctx, &d, records)
	d.Complete = err == nil
	return d, err
}

// add takes a finding whose texts may have names from the share in them.
func (d *Diagnosis) add(f Finding) {
	f.Detail, f.Effect = kvmbackup.Printable(f.Detail), kvmbackup.Printable(f.Effect)
	d.Findings = append(d.Findings, f)
}

// newestOf returns the newest backup that was completed, deleted or not.
func newestOf(records []kvmbackup.Backup) *kvmbackup.Backup {
	var newest *kvmbackup.Backup
	for _, b := range records {
		taken := b.Status == kvmbackup.StatusCompleted || b.Status == kvmbackup.StatusDeletePending
		if taken && (newest == nil || b.Sequence > newest.Sequence) {
			newest = &b
		}
	}
	return newest
}

func (d *Diagnosis) addRecords(records []kvmbackup.Backup) {
	children := map[kvmbackup.BackupID]bool{}
	for _, b := range records {
		children[b.ParentID] = true
	}
	for _, b := range records {
		switch {
		case b.Status == kvmbackup.StatusRunning:
			d.add(Finding{Code: FindingRunningRecord, Backup: b.ID,
				Detail: fmt.Sprintf("backup %s is recorded as running since %v", b.ID, b.StartedAt),
				Effect: "the next backup settles it first", Repair: "finish it or undo it"})
		case b.Status == kvmbackup.StatusDeletePending && !children[b.ID] && len(b.Holds) == 0:
			d.add(Finding{Code: FindingDeletePending, Backup: b.ID,
				Detail: fmt.Sprintf("backup %s was deleted and nothing needs it", b.ID),
				Effect: "none; it takes space", Repair: "remove it"})
		}
	}
	newest := newestOf(records)
	if a := d.Record.ActiveCheckpoint; a != "" && (newest == nil || newest.Checkpoint != a && newest.Tracked()) {
		d.add(Finding{Code: FindingActiveNotNewest, Name: a,
			Detail: fmt.Sprintf("the active checkpoint %s is not the newest backup's", a),
			Effect: "the next backup is full", Repair: "empty the active checkpoint"})
	}
}

// maxDrift is by how much the clocks of hosts that share a store may differ.
const maxDrift = time.Hour

// addStamps tells of a clock that was ahead of this one when a backup began.
func (d *Diagnosis) addStamps(records []kvmbackup.Backup, now time.Time) {
	newest := newestOf(records)
	if newest == nil {
		return
	}
	for _, b := range records {
		if b.Status != kvmbackup.StatusRunning && b.Status != kvmbackup.StatusFailed &&
			path.Base(b.Path) > path.Base(newest.Path) {
			newest = &b
		}
	}
	s, err := kvmbackup.ParseStamp(path.Base(newest.Path))
	if err != nil || !s.Time().After(now.Add(maxDrift)) {
		return
	}
	d.add(Finding{Code: FindingStampAhead, Backup: newest.ID, Path: newest.Path,
		Detail: fmt.Sprintf("the newest stamp is %s, and this host's clock says %s: it is wrong, or was when that "+
			"backup began", s, now.Format(time.RFC3339)),
		Effect: "later backups get stamps just after that one, and by age none of them counts as old until then; if " +
			"the clock is wrong now, set it"})
}

func (d *Diagnosis) addDomain(
	owned Ownership, st kvmbackup.DomainStatus, records []kvmbackup.Backup, req BackupRequest,
) {
	keep := []kvmbackup.CheckpointName{d.Record.ActiveCheckpoint}
	for _, b := range records {
		if b.Status == kvmbackup.StatusRunning {
			keep = append(keep, b.Checkpoint)
		}
	}
	owned.Known = append(owned.Known, keep...)
	for _, n := range owned.Stale(st, keep...) {
		d.add(Finding{Code: FindingStaleCheckpoint, Name: n,
			Detail: fmt.Sprintf("checkpoint or bitmap %s no longer counts", n),
			Effect: "none; it costs memory and writes", Repair: "drop it"})
	}
	for _, f := range owned.Foreign(st, keep...) {
		detail := fmt.Sprintf("checkpoint or bitmap %s is another consumer's, or another VM's", f.Name)
		if f.OtherStore {
			detail = fmt.Sprintf("checkpoint or bitmap %s belongs to a backup that is in this repository and not in "+
				"this store: give each store a prefix of its own, or import the backup", f.Name)
		}
		d.add(Finding{Code: FindingForeignCheckpoint, Name: f.Name, Detail: detail, Effect: "none", Foreign: true})
	}
	for _, k := range st.Disks {
		if k.Unreadable != "" {
			d.add(Finding{Code: FindingUnreadable, Device: k.Device, Path: k.Path,
				Detail: fmt.Sprintf("%s can't be read: %s", k.Device, k.Unreadable),
				Effect: "backups leave this disk out, and none is taken where nothing else can be saved or all disks are required"})
		}
	}
	d.addUntrackable(st, req)
	if newest := newestOf(records); newest != nil && d.Record.ActiveCheckpoint != "" &&
		newest.Checkpoint == d.Record.ActiveCheckpoint {
		d.addActive(st, *newest, req)
	}
}

// addUntrackable tells of the volumes that are full every time.
func (d *Diagnosis) addUntrackable(st kvmbackup.DomainStatus, req BackupRequest) {
	vols, _, err := req.choose(st)
	if err != nil {
		return // the next backup reports it
	}
	for _, v := range vols {
		if why := v.Disk.WhyUntrackable(); why != "" {
			d.add(Finding{Code: FindingUntrackable, Device: v.Device, Path: v.Disk.Path, Detail: why,
				Effect: fmt.Sprintf("volume %s is full in every backup", v.ID), Advice: true})
		}
	}
}

// addActive looks at the bitmaps that the next incremental needs.
func (d *Diagnosis) addActive(st kvmbackup.DomainStatus, newest kvmbackup.Backup, req BackupRequest) {
	active := d.Record.ActiveCheckpoint
	listed := slices.ContainsFunc(st.Checkpoints, func(c kvmbackup.CheckpointStatus) bool {
		return c.Name == string(active)
	})
	if !listed && st.State != kvmbackup.DomainStopped {
		d.add(Finding{Code: FindingActiveUnlisted, Name: active,
			Detail: fmt.Sprintf("libvirt doesn't list the active checkpoint %s", active),
			Effect: "none: the next backup registers it again where its bitmaps are there"})
	}
	vols, _, err := req.choose(st)
	if err != nil {
		return // the next backup reports it
	}
	for _, v := range vols {
		part, ok := newest.Volume(v.ID)
		if !ok || !part.Tracked {
			continue
		}
		if f := findBitmap(active, v, part); f.Code != "" {
			f.Name, f.Device, f.Effect = active, v.Device, fmt.Sprintf("volume %s is backed up in full", v.ID)
			if f.Code == FindingBitmapUnknown && st.Job == kvmbackup.JobOther {
				f.Effect = "no backup is taken while that lasts"
			}
			d.add(f)
		}
	}
}

// findBitmap says why the volume can't be incremental, as far as its bitmap and its size go.
func findBitmap(active kvmbackup.CheckpointName, v chosen, part kvmbackup.VolumeBackup) Finding {
	began := v.Disk.BitmapBegan(active)
	switch state := v.Disk.BitmapState(active); {
	case state == kvmbackup.BitmapMissing:
		return Finding{Code: FindingBitmapMissing, Detail: fmt.Sprintf("%s has no bitmap %s", v.Device, active)}
	case state == kvmbackup.BitmapInconsistent:
		return Finding{Code: FindingBitmapBroken, Detail: fmt.Sprintf("bitmap %s on %s is inconsistent, as after a "+
			"crash of QEMU", active, v.Device)}
	case state == kvmbackup.BitmapUnknown:
		return Finding{Code: FindingBitmapUnknown, Detail: fmt.Sprintf("the bitmaps of %s can't be listed: %s",
			v.Device, v.Disk.BitmapsUnknown)}
	case began != "" && !part.HasLayer(began):
		return Finding{Code: FindingBitmapMoved, Detail: fmt.Sprintf("bitmap %s on %s begins in %s, which was not "+
			"there at the last backup", active, v.Device, began)}
	case v.Disk.VirtualSize < part.VirtualSize:
		return Finding{Code: FindingShrank, Detail: fmt.Sprintf("%s has %d bytes, and had %d at the last backup",
			v.Device, v.Disk.VirtualSize, part.VirtualSize)}
	}
	return Finding{}
}

func (d *Diagnosis) addFolders(entries []repository.Entry, records []kvmbackup.Backup) {
	byID := map[kvmbackup.BackupID]kvmbackup.Backup{}
	for _, b := range records {
		byID[b.ID] = b
	}
	for _, e := range entries {
		b, known := byID[e.ID]
		f := Finding{Backup: e.ID, Path: e.Path, Effect: "none; it takes space"}
		switch {
		case e.Kind == repository.FolderPartial && known && b.Status != kvmbackup.StatusRunning:
			f.Code, f.Detail, f.Repair = FindingLeftPartial,
				fmt.Sprintf("%s/%s is left of backup %s, which is %v", e.VM, e.Name, b.ID, b.Status), "remove it"
		case e.Kind == repository.FolderPartial && !known:
			f.Code, f.Foreign, f.Detail = FindingForeignPartial, true,
				fmt.Sprintf("%s/%s belongs to a backup that this store doesn't know", e.VM, e.Name)
		case e.Kind == repository.FolderDeleting && known:
			f.Code, f.Detail, f.Repair = FindingLeftDeleting,
				fmt.Sprintf("the removal of %s/%s was begun", e.VM, e.Name), "finish it"
		case e.Kind == repository.FolderPublished && e.Err != nil && !hasFolder(records, e.Path):
			f.Code, f.Detail = FindingUnrecorded, fmt.Sprintf("%s has no record of a whole backup, and its manifest "+
				"can't be used: %v; mend it, then Import adds it", e.Path, e.Err)
		case e.Kind == repository.FolderPublished && known && b.Status == kvmbackup.StatusFailed:
			f.Code, f.Detail, f.Effect = FindingUnrecorded, fmt.Sprintf("%s is whole, and recorded as failed; Import "+
				"adds it", e.Path), "none"
		case e.Kind == repository.FolderPublished && !known && d.ofOther(e.DomainUUID):
			f.Code, f.Foreign, f.Detail = FindingOtherDomain, true,
				fmt.Sprintf("%s has no record, and is of the domain with UUID %s, which had this name", e.Path, e.DomainUUID)
		case e.Kind == repository.FolderPublished && !known:
			f.Code, f.Detail, f.Effect = FindingUnrecorded, fmt.Sprintf("%s has no record; Import adds it", e.Path), "none"
		case e.Kind == repository.FolderLeft:
			f.Code, f.Foreign, f.Detail = FindingForeignFolder, true,
				fmt.Sprintf("%s/%s has what others had put into the folder of a backup that is removed; remove it if "+
					"nobody needs that", e.VM, e.Name)
		case e.Kind == repository.FolderForeign, e.Kind == repository.FolderDeleting:
			f.Code, f.Foreign, f.Detail = FindingForeignFolder, true,
				fmt.Sprintf("%s/%s is no backup of this store", e.VM, e.Name)
		default:
			continue
		}
		d.add(f)
	}
}

// addScratches tells of scratches that can't be used, and of what jobs have left there that are over. A folder of a
// backup that has no record is another store's, and left alone.
func (o *op) addScratches(ctx context.Context, d *Diagnosis, records []kvmbackup.Backup) error {
	if len(o.e.cfg.Scratch) == 0 {
		return nil
	}
	space, err := o.e.cfg.Repository.Probe(ctx, o.vm)
	if err != nil {
		return err
	}
	for _, path := range o.e.cfg.Scratch {
		_, err := o.lookAt(ctx, path, space)
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			d.add(Finding{Code: FindingScratch, Path: path, Detail: err.Error(),
				Effect: "backups by pull fail, or take another scratch"})
		}
		names, err := scratchEntries(ctx, o.e, path)
		if err != nil {
			continue // told already
		}
		for _, name := range names {
			d.addScratch(filepath.Join(path, name), records)
		}
	}
	return nil
}

func (d *Diagnosis) addScratch(path string, records []kvmbackup.Backup) {
	id, ok := scratchOf(filepath.Base(path))
	at := slices.IndexFunc(records, func(b kvmbackup.Backup) bool { return b.ID == id })
	if !ok || at < 0 || records[at].Status == kvmbackup.StatusRunning {
		return
	}
	d.add(Finding{Code: FindingLeftScratch, Backup: id, Path: path, Repair: "remove it",
		Effect: "none; it takes room in the scratch",
		Detail: fmt.Sprintf("%s is left of backup %s, which is %v", path, id, records[at].Status)})
}

// ofOther says whether a UUID is not that of the domain as it is now.
func (d *Diagnosis) ofOther(uuid string) bool {
	return d.Domain != nil && (kvmbackup.Backup{DomainUUID: uuid}).OtherDomain(d.Domain.UUID)
}

// addOtherDomain tells of the recorded backups of VMs that had the name before.
func (d *Diagnosis) addOtherDomain(records []kvmbackup.Backup) {
	count := map[string]int{}
	for _, b := range records {
		if b.Status == kvmbackup.StatusCompleted && d.ofOther(b.DomainUUID) {
			count[b.DomainUUID]++
		}
	}
	for _, uuid := range slices.Sorted(maps.Keys(count)) {
		d.add(Finding{Code: FindingOtherDomain, Foreign: true,
			Detail: fmt.Sprintf("%d backups are of the domain with UUID %s, which had this name", count[uuid], uuid),
			Effect: "they are kept as those of a VM of its own; delete them by their IDs when nobody needs them"})
	}
}

// hasFolder says whether a record needs the folder.
func hasFolder(records []kvmbackup.Backup, path string) bool {
	return slices.ContainsFunc(records, func(b kvmbackup.Backup) bool {
		return b.Path == path && b.Status != kvmbackup.StatusFailed
	})
}

// addFiles looks for the files of every backup that should have them.
func (o *op) addFiles(ctx context.Context, d *Diagnosis, records []kvmbackup.Backup) error {
	for _, b := range records {
		if b.Status != kvmbackup.StatusCompleted && b.Status != kvmbackup.StatusDeletePending ||
			b.Repository != o.e.cfg.Repository.ID() {
			continue
		}
		missing, err := o.missingFiles(ctx, []kvmbackup.Backup{b})
		if err != nil {
			return err
		}
		for _, file := range missing {
			d.add(Finding{Code: FindingMissingFile, Backup: b.ID, Path: file,
				Detail: fmt.Sprintf("%s of backup %s is not there", file, b.ID),
				Effect: "the backups that need it can't be restored; the next backup is full if it would have stood on it"})
		}
	}
	return nil
}
