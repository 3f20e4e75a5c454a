package kvmbackuptest

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// handle is an Executor's Job.
type handle struct {
	e   *executor
	ref kvmbackup.DomainRef
	j   *job
}

var _ kvmbackup.Job = (*handle)(nil)

// Begin implements kvmbackup.Job.
func (t *handle) Begin(ctx context.Context) error {
	return t.e.do(ctx, "Begin", t.ref, func(m *machine) error {
		j := t.j
		if j.begun {
			return fmt.Errorf("%w: the job has been begun before", kvmbackup.ErrInvalid)
		}
		if err := j.mayBegin(m); err != nil {
			return err
		}
		for _, v := range j.volumes {
			if err := m.sameDisk(v.spec); err != nil {
				return err
			}
		}
		for _, v := range j.volumes {
			if err := j.beginVolume(m, v); err != nil {
				return err
			}
		}
		if err := j.fillScratch(); err != nil {
			return err
		}
		if err := j.track(m); err != nil {
			return err
		}
		j.begun = true
		j.plan()
		if j.dom != nil {
			j.dom.job = j
		}
		return nil
	})
}

// mayBegin checks that the domain is as it was when the job was prepared, and free.
func (j *job) mayBegin(m *machine) error {
	if j.dom != nil {
		switch {
		case !m.running() || m.domain != j.dom:
			return fmt.Errorf("%w: %q", kvmbackup.ErrDomainStopped, j.name)
		case m.job != nil || m.foreign != nil:
			return &kvmbackup.BusyError{VM: kvmbackup.VMID(j.name), Holder: "a job on its domain"}
		}
		return nil
	}
	for _, v := range j.volumes {
		if v.image.inUse() {
			return fmt.Errorf("%w: %s", kvmbackup.ErrImageLocked, v.image.path)
		}
		if err := v.image.load(); err != nil {
			return err
		}
	}
	return nil
}

// beginVolume checks one volume and notes what it has to copy.
func (j *job) beginVolume(m *machine, v *jobVolume) error {
	k, err := m.disk(v.spec.Device)
	if err != nil {
		return err
	}
	v.image, v.bytes = k.image, v.spec.VirtualSize
	if v.image.size() != v.spec.VirtualSize {
		return &kvmbackup.BusyError{VM: kvmbackup.VMID(j.name), Holder: "a resize of " + v.spec.Device}
	}
	if len(v.image.sharers) > 1 {
		return fmt.Errorf("%w: another domain has %s (%s) open", kvmbackup.ErrImageLocked, v.spec.Device, v.image.path)
	}
	v.source = v.image.content()
	if !v.spec.ByBitmap() {
		return nil
	}
	base := string(j.spec.Base)
	if _, ok := m.registered(base); !ok && j.dom != nil {
		return fmt.Errorf("%w: %q for disk %q", kvmbackup.ErrNoCheckpoint, base, v.spec.Device)
	}
	if !v.image.usable(base) {
		return fmt.Errorf("%w: missing or broken bitmap %q for disk %q", kvmbackup.ErrCheckpointInconsistent, base,
			v.spec.Device)
	}
	if name := k.jobBitmap(); j.dom != nil && v.image.top().bitmaps.find(name) != nil {
		return fmt.Errorf("%w: bitmap %s of %s", kvmbackup.ErrCheckpointExists, name, v.spec.Device)
	}
	if v.spec.Compare {
		return nil
	}
	v.bytes = int64(len(v.image.dirty(base))) * ClusterBytes
	if j.pulls() { // what is read ends with the disk
		v.bytes = 0
		for _, i := range v.image.dirty(base) {
			v.bytes += min(ClusterBytes, v.image.size()-i*ClusterBytes)
		}
	}
	return nil
}

func (m *machine) registered(name string) (checkpoint, bool) {
	if m.domain == nil {
		return checkpoint{}, false
	}
	cp, ok := m.checkpoints[name]
	return cp, ok
}

// track makes the new checkpoint on all tracked volumes, or on none.
func (j *job) track(m *machine) error {
	name := string(j.spec.Checkpoint)
	var devices []string
	var images []*storedImage
	for _, v := range j.volumes {
		if v.spec.Tracked {
			devices, images = append(devices, v.spec.Device), append(images, v.image)
		}
	}
	if name == "" || len(images) == 0 {
		return nil
	}
	if j.dom != nil {
		return m.createCheckpoint(name, devices, images, j.spec.CreatedAt)
	}
	for _, im := range images {
		if err := im.roomFor(name); err != nil {
			return err
		}
	}
	for _, im := range images {
		im.addBitmap(name)
	}
	return nil
}

// plan lists the clusters to copy: those with data for a full, those that the base's bitmap has marked for an
// incremental.
func (j *job) plan() {
	for _, v := range j.volumes {
		if j.dom == nil {
			v.image.user = j
		}
		clusters := sortedKeys(v.source.clusters)
		switch {
		case v.spec.Compare:
			clusters = v.differing(string(j.spec.Base))
		case v.spec.Kind == kvmbackup.KindIncremental:
			clusters = v.image.dirty(string(j.spec.Base))
		}
		for _, i := range clusters {
			j.queue = append(j.queue, step{v, i})
		}
		j.total += v.bytes
	}
}

// sameDisk makes sure that a device's disk was not exchanged since it was looked at.
func (m *machine) sameDisk(v kvmbackup.JobVolume) error {
	k, err := m.disk(v.Device)
	if err != nil {
		return err
	}
	if k.image == nil {
		return v.CheckSource("")
	}
	paths := k.image.paths(func(*layer) bool { return true })
	return v.CheckSource(k.image.path, paths...)
}
