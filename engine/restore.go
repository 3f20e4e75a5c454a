package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/swap"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// RestoreRequest says what to restore and where to. Volumes are addressed by their identity, never by order.
type RestoreRequest struct {
	Backup kvmbackup.BackupID
	// Dir takes one new file per volume, named DEVICE.VOLUMEID.FORMAT after the format that it gets; it must exist.
	// Volumes with a path of their own don't go there.
	Dir string
	// Format of new files. Defaults to qcow2.
	Format qcow2.Format
	// Volumes chooses volumes and, optionally, each one's target. Empty: all.
	Volumes []RestoreVolume
	// InPlace, if not nil, restores over the volumes of a VM that is off, instead of to Dir.
	InPlace *InPlace
	// Parallel is how many volumes are copied at once. Defaults to 4.
	Parallel int
	// BandwidthBytes limits each volume's copy to so many bytes per second. 0: no limit.
	BandwidthBytes int64
	// Turn says when it is this restore's turn for a place; see Config.HostLimit. Where backups name what they are due
	// by, so should a restore that somebody waits for: a Due long ago goes first.
	Turn Turn
	// IgnoreSpace begins also where the file system of the targets seems to have too little room for them. What then
	// runs out in the middle of the copy is an ErrNoSpace, and nothing is left of it.
	IgnoreSpace bool
	// SkipDigests restores without comparing what was written with the digests on record. Where a volume has one,
	// Restore otherwise reads back what it has written, and returns ErrDamaged when that is not what was backed up; no
	// new file is left then. Of sealed volumes the files are compared, before they are opened.
	SkipDigests bool
}

// validate names what is wrong with the request in itself.
func (r RestoreRequest) validate() error {
	if r.BandwidthBytes < 0 {
		return fmt.Errorf("%w request: bandwidth %d", kvmbackup.ErrInvalid, r.BandwidthBytes)
	}
	if err := r.Turn.validate(); err != nil {
		return err
	}
	formats := []qcow2.Format{r.Format}
	for _, v := range r.Volumes {
		formats = append(formats, v.Format)
	}
	for _, f := range formats {
		if f != "" && f != qcow2.FormatQcow2 && f != qcow2.FormatRaw {
			return fmt.Errorf("%w request: format %q; restores are qcow2 or raw", kvmbackup.ErrInvalid, f)
		}
	}
	return nil
}

// RestoreVolume chooses a volume.
type RestoreVolume struct {
	ID kvmbackup.VolumeID
	// Path is where it goes: a new file, or an existing block device. Empty: a new file in Dir. In place it is the target
	// volume's device (vda), where the identities of the two VMs differ; empty: the volume with the same identity.
	Path string
	// Format of this volume's target. Defaults to the request's for a new file, and to raw for a block device.
	Format qcow2.Format
}

// Restored is what Restore has written.
type Restored struct {
	Backup  kvmbackup.Backup // JSON has its ID
	Volumes []RestoredVolume
}

type restoredJSON struct {
	Backup  kvmbackup.BackupID `json:"backup"`
	Volumes []RestoredVolume   `json:"volumes"`
}

// MarshalJSON writes the backup's ID and the volumes.
func (r Restored) MarshalJSON() ([]byte, error) {
	return json.Marshal(restoredJSON{r.Backup.ID, r.Volumes})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Restored) UnmarshalJSON(b []byte) error {
	var has restoredJSON
	err := json.Unmarshal(b, &has)
	*r = Restored{kvmbackup.Backup{ID: has.Backup}, has.Volumes}
	return err
}

// String returns what was written as lines for people.
func (r Restored) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "restored %s of %s\n", r.Backup.Path, r.Backup.VM)
	for _, v := range r.Volumes {
		fmt.Fprintf(&s, "  %s\n", v)
	}
	return s.String()
}

// RestoredVolume is one volume's target.
type RestoredVolume struct {
	VolumeID    kvmbackup.VolumeID `json:"volume_id"`
	Device      string             `json:"device"` // in the backup
	Path        string             `json:"path"`
	Format      qcow2.Format       `json:"format"`
	VirtualSize int64              `json:"virtual_size"` // bytes of the volume; a block device may be larger
	// Encryption is the kind of encryption that the disk had on its host when it was backed up; what is written has
	// none. Empty: none.
	Encryption string `json:"encryption,omitempty"`
}

// String returns the volume as one line.
func (v RestoredVolume) String() string {
	s := fmt.Sprintf("%s (%s): %s, %s of %d bytes", v.VolumeID, v.Device, v.Path, v.Format, v.VirtualSize)
	if v.Encryption != "" {
		s += fmt.Sprintf("; it was encrypted on its host (%s) and is not now", v.Encryption)
	}
	return s
}

// copyJob is one volume on its way.
type copyJob struct {
	layers []layer
	out    RestoredVolume
	owner  swap.Owner
	exists bool   // a block device
	place  string // of the target, the same however its path is written
	file   *writtenFile
}

func (j copyJob) aside() string { return j.owner.Aside(j.out.Path) }

// closeJobs closes the files of the chains, and those that were made.
func closeJobs(jobs []copyJob) {
	for _, j := range jobs {
		closeLayers(j.layers)
		if j.file.File != nil {
			_ = j.file.Close() // it was flushed, or is removed
		}
	}
}

// Restore writes chosen volumes of a completed backup. Before the first byte it takes the lease, compares the manifests
// of the whole chain with the records, every backing link with the manifests, runs qemu-img check on every file, and
// checks the targets: a new file must not exist (ErrTargetExists), a block device must be large enough (ErrTooSmall),
// and the file systems of new files must have room for all of them (ErrNoSpace, as a *SpaceError). New files are
// written aside, flushed and renamed when the chain's headers still are as they were verified and each volume's content
// has the digest on record, where there is one; after a failure or a cancel none is left, but block devices may be half
// written. A target whose storage doesn't answer is left behind CleanupLimit after the context's end (ErrUnavailable),
// stays ErrUnavailable until it does, and is taken back then.
//
// Errors: ErrInvalid, ErrNotFound, ErrStatus for a backup that is not completed, ErrNoVolume, ErrMissingFile,
// ErrDamaged, ErrOtherRepository, ErrKey for a chain with a sealed backup that the Keys don't open, ErrOtherDomain and
// ErrDomainRunning in place, ErrImageLocked for an image or a device that something uses, ErrTargetAccess, ErrNoSpace,
// ErrLeaseLost; all within an *OpError.
func (e *Engine) Restore(ctx context.Context, req RestoreRequest) (Restored, error) {
	o, b, err := e.find(ctx, "restore", req.Backup)
	if err != nil {
		return Restored{}, err
	}
	o.needPlaces(req.Turn)
	var done Restored
	var others []*op
	restore := func(ctx context.Context) error { return o.restoreToFiles(ctx, req, &done) }
	if req.InPlace != nil {
		over, t := req.InPlace.request(b), o
		if over.VM != o.vm {
			t = o.onVM(over.VM)
			others = append(others, t)
		}
		t.dom = over.ref()
		restore = func(ctx context.Context) error { return o.restoreInPlace(ctx, t, over, req, &done) }
	}
	err = o.do(ctx, firstError(e.needImages("restore"), req.validate()), func(ctx context.Context) error {
		if err := restore(ctx); err != nil {
			return err
		}
		o.emit(Event{Type: EventCompleted, Backup: &done.Backup})
		return nil
	}, others...)
	if err != nil {
		return Restored{}, err
	}
	return done, nil
}

func (o *op) restoreToFiles(ctx context.Context, req RestoreRequest, done *Restored) error {
	b, jobs, err := o.prepareRestore(ctx, req)
	defer closeJobs(jobs)
	if err != nil {
		return err
	}
	o.step("check targets")
	for i := range jobs {
		if err := jobs[i].aim(ctx, req); err != nil {
			return err
		}
	}
	if err := distinctTargets(jobs); err != nil {
		return err
	}
	if err := o.e.makeRoom(ctx, req, jobs, placesOf(jobs)); err != nil {
		return err
	}
	if err := o.e.notInUse(ctx, kvmbackup.DomainRef{}, blockDevicesOf(jobs), blockDevicesOf(jobs)); err != nil {
		return err
	}
	o.step("copy")
	if err := o.copyAside(ctx, req, jobs, placesOf(jobs)); err != nil {
		return err
	}
	*done = restored(b, jobs)
	return o.e.publish(ctx, placesOf(jobs), jobs)
}

func restored(b kvmbackup.Backup, jobs []copyJob) Restored {
	r := Restored{Backup: b}
	for _, j := range jobs {
		r.Volumes = append(r.Volumes, j.out)
	}
	return r
}

// prepareRestore reads and verifies the chain and makes one job per chosen volume, in the backup's order.
func (o *op) prepareRestore(ctx context.Context, req RestoreRequest) (kvmbackup.Backup, []copyJob, error) {
	o.step("read chain")
	chain, err := kvmbackup.ChainOf(ctx, o.e.cfg.Store, req.Backup)
	if err != nil {
		return kvmbackup.Backup{}, nil, err
	}
	b := chain[len(chain)-1]
	if b.Status != kvmbackup.StatusCompleted {
		return b, nil, fmt.Errorf("%w: backup %s is %v; only completed backups are restored", kvmbackup.ErrStatus, b.ID,
			b.Status)
	}
	ring, err := o.e.verifyMembers(ctx, chain)
	if err != nil {
		return b, nil, err
	}
	wanted, err := wantedVolumes(b, req.Volumes)
	if err != nil {
		return b, nil, err
	}
	o.step("verify chain")
	var jobs []copyJob
	var all []layer
	for _, v := range wanted {
		layers, err := layersOf(chain, v.VolumeID, o.e.cfg.Repository, ring)
		if err != nil {
			return b, nil, err
		}
		all = append(all, layers...)
		out := RestoredVolume{VolumeID: v.VolumeID, Device: v.Device, VirtualSize: v.VirtualSize, Encryption: v.Encryption}
		jobs = append(jobs, copyJob{layers: layers, out: out, owner: o.e.owner(b.VM), file: &writtenFile{}})
	}
	return b, jobs, o.e.verifyLayers(withTally(ctx, o.tally(checksOf(jobs))), all, req.SkipDigests)
}

func wantedVolumes(b kvmbackup.Backup, chosen []RestoreVolume) ([]kvmbackup.VolumeBackup, error) {
	if len(chosen) == 0 {
		return b.Volumes, nil
	}
	var wanted []kvmbackup.VolumeBackup
	seen := map[kvmbackup.VolumeID]bool{}
	for _, c := range chosen {
		v, ok := b.Volume(c.ID)
		if !ok {
			return nil, fmt.Errorf("%w: backup %s has no volume %q", kvmbackup.ErrNoVolume, b.ID, c.ID)
		}
		if seen[c.ID] {
			return nil, fmt.Errorf("%w request: volume %q is named twice", kvmbackup.ErrInvalid, c.ID)
		}
		seen[c.ID] = true
		wanted = append(wanted, v)
	}
	return wanted, nil
}

// choice returns the request's entry for the job's volume; the zero one when all are restored.
func (j copyJob) choice(req RestoreRequest) RestoreVolume {
	for _, c := range req.Volumes {
		if c.ID == j.out.VolumeID {
			return c
		}
	}
	return RestoreVolume{ID: j.out.VolumeID}
}

// aim finds the job's target and refuses one that can't take it.
func (j *copyJob) aim(ctx context.Context, req RestoreRequest) error {
	c := j.choice(req)
	j.out.Format, j.out.Path = cmp.Or(c.Format, req.Format, qcow2.FormatQcow2), c.Path
	if c.Path == "" {
		if req.Dir == "" {
			return fmt.Errorf("%w request: neither a folder nor a path for volume %q", kvmbackup.ErrInvalid, c.ID)
		}
		name := fmt.Sprintf("%s.%s.%s", j.out.Device, j.out.VolumeID, j.out.Format)
		// Before it is joined: a record is no more to be trusted than its database.
		if err := kvmbackup.ValidFileName(name); err != nil {
			return fmt.Errorf("%w: volume %q on device %q makes no file name; give it a path of its own: %w",
				kvmbackup.ErrInvalid, c.ID, j.out.Device, err)
		}
		j.out.Path = filepath.Join(req.Dir, name)
	}
	abs, err := filepath.Abs(j.out.Path)
	if err != nil {
		return err
	}
	j.out.Path = abs
	t, err := lookAt(ctx, abs)
	if err != nil {
		return err
	}
	switch {
	case t.kind == targetFile:
		return fmt.Errorf("%w: %s; remove it or choose another path", kvmbackup.ErrTargetExists, abs)
	case t.kind == targetDevice && t.size < j.out.VirtualSize:
		return fmt.Errorf("%w: %s has %d bytes, volume %q has %d", kvmbackup.ErrTooSmall, abs, t.size, c.ID,
			j.out.VirtualSize)
	}
	j.exists, j.place = t.kind == targetDevice, t.place
	if j.exists {
		j.out.Format = cmp.Or(c.Format, qcow2.FormatRaw)
	}
	if j.exists && j.out.Format != qcow2.FormatRaw {
		return fmt.Errorf("%w: block device %s takes raw content only", kvmbackup.ErrUnsupported, abs)
	}
	return nil
}

func distinctTargets(jobs []copyJob) error {
	seen := map[string]kvmbackup.VolumeID{}
	for _, j := range jobs {
		if other, ok := seen[j.place]; ok {
			return fmt.Errorf("%w request: volumes %q and %q have the same target %s", kvmbackup.ErrInvalid, other,
				j.out.VolumeID, j.out.Path)
		}
		seen[j.place] = j.out.VolumeID
	}
	return nil
}

func placesOf(jobs []copyJob) []string {
	var places []string
	for _, j := range jobs {
		places = append(places, j.place)
	}
	return places
}

// copyAside copies every volume to its aside file, or to its block device, and then makes sure that it was the verified
// files that were copied. After an error no aside file is left.
func (o *op) copyAside(ctx context.Context, req RestoreRequest, jobs []copyJob, at []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	progress := o.tally(sizesOf(jobs))
	errs := each(ctx, atOnce(req.Parallel), jobs, func(i int, j copyJob) error {
		err := o.e.copyOne(ctx, req, j, func(percent float64) {
			progress.set(i, int64(float64(j.out.VirtualSize)*percent/100))
		})
		if err != nil {
			cancel(fmt.Errorf("volume %q: %w", j.out.VolumeID, targetError(err))) // the others need not go on
		}
		return err
	})
	err := context.Cause(ctx)
	if firstError(errs...) == nil {
		err = o.e.stillTheSame(ctx, jobs)
	}
	if err != nil {
		return errors.Join(err, o.e.discard(ctx, at, jobs))
	}
	return nil
}

// atOnce is how many volumes are copied at once.
func atOnce(asked int) int {
	if asked <= 0 {
		return 4
	}
	return asked
}

// copyOne opens exactly the verified layers: links in the headers are not followed.
func (e *Engine) copyOne(ctx context.Context, req RestoreRequest, j copyJob, progress func(float64)) error {
	dst := j.out.Path
	if !j.exists {
		if err := j.makeAside(ctx); err != nil {
			return err
		}
		dst = qcow2.Descriptor(j.file.File)
	}
	err := e.cfg.Images.Convert(ctx, j.layers[0].path(), dst, qcow2.ConvertOptions{
		TargetFormat: j.out.Format, Secret: j.layers[0].secret, Backing: backing(j.layers), TargetExists: j.exists,
		BandwidthBytes: req.BandwidthBytes, Progress: progress,
	})
	if err != nil {
		return err
	}
	return e.compareDigest(ctx, req, j, dst)
}

// sizesOf says how much there is to copy.
func sizesOf(jobs []copyJob) (volumes []kvmbackup.VolumeProgress) {
	for _, j := range jobs {
		volumes = append(volumes, kvmbackup.VolumeProgress{VolumeID: j.out.VolumeID, Device: j.out.Device,
			TotalBytes: j.out.VirtualSize})
	}
	return volumes
}

// checksOf says how much there is to check before.
func checksOf(jobs []copyJob) (volumes []kvmbackup.VolumeProgress) {
	for _, j := range jobs {
		volumes = append(volumes, kvmbackup.VolumeProgress{VolumeID: j.out.VolumeID, Device: j.out.Device,
			TotalBytes: storedIn(j.layers)})
	}
	return volumes
}
