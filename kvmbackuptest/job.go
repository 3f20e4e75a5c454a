package kvmbackuptest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// job is one backup job: of a running domain, where it belongs to QEMU, or of a stopped one, where it belongs to the
// process.
type job struct {
	h       *Hypervisor
	name    string
	dom     *domain // nil for a job of a stopped domain
	spec    kvmbackup.JobSpec
	volumes []*jobVolume

	begun, over, aborted bool
	err                  error
	queue                []step
	done, total          int64          // bytes
	process              chan struct{}  // of the host process that prepared it, closed when that is killed
	kept                 map[place]bool // what a pull job has in its scratch
	bandwidth            int64
}

// jobVolume is one volume of a job.
type jobVolume struct {
	spec   kvmbackup.JobVolume
	image  *storedImage
	source Content // at the instant of Begin
	copied map[int64][]byte
	bytes  int64 // to be copied, as QEMU counts
	done   int64
	parent Content      // what it is compared with, or
	index  *qcow2.Index // all that is known of it
	missed int64        // bytes that differ outside of the base's bitmap
}

// step is one cluster to be copied.
type step struct {
	volume  *jobVolume
	cluster int64
}

func (j *job) target() Target {
	if d := j.h.domains[j.name]; d != nil {
		return d.target
	}
	return Target{}
}

// stuck says whether the job can't even be ended. A pull job's end doesn't wait for its target.
func (j *job) stuck() bool { return j.hung() && !j.pulls() }

// hung says whether nothing moves.
func (j *job) hung() bool {
	t := j.target()
	return j.begun && !j.over && t.State == TargetHung && j.done >= t.AfterBytes
}

// advance copies the next cluster, or ends the job after the last.
func (j *job) advance() {
	t := j.target()
	switch late := j.done >= t.AfterBytes; {
	case j.hung():
	case j.aborted:
		j.end(errAborted)
	case late && t.State == TargetFull && len(j.queue) > 0:
		j.end(errFull)
	case late && t.State == TargetDead:
		j.end(errDead)
	case len(j.queue) == 0:
		j.end(j.write())
	default:
		s := j.queue[0]
		j.queue = j.queue[1:]
		s.volume.copied[s.cluster] = s.volume.source.clusters[s.cluster]
		s.volume.done += ClusterBytes
		j.done += ClusterBytes
	}
}

// write fills the targets in. Until then they are what PrepareJob made: valid, and without content.
func (j *job) write() error {
	for _, v := range j.volumes {
		im := image{v.spec.VirtualSize, v.spec.ParentFile, v.copied}
		secret := qcow2.NewSecret(j.spec.DataKey.ImageSecret(v.spec.File))
		if err := writeSealed(filepath.Join(j.spec.Dir, v.spec.File), im, secret, false); err != nil {
			return fmt.Errorf("%w: %w", kvmbackup.ErrJobFailed, err)
		}
		v.done = v.bytes
	}
	j.done = j.total
	return nil
}

// end ends the job. Its checkpoint stays, whatever the outcome.
func (j *job) end(err error) {
	if j.over || !j.begun {
		return
	}
	j.over, j.err = true, err
	if j.dom != nil {
		j.dom.job, j.dom.last = nil, j
	}
	for _, v := range j.volumes {
		if v.image.user == j {
			v.image.user = nil
		}
	}
	j.h.store.broadcast()
}

// PrepareJob implements kvmbackup.Executor.
func (e *executor) PrepareJob(
	ctx context.Context, ref kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	var j *job
	err := e.do(ctx, "PrepareJob", ref, func(m *machine) (err error) {
		j = &job{h: e.h, name: ref.Name, spec: spec, bandwidth: spec.BandwidthBytes, process: e.process,
			kept: map[place]bool{}}
		if m.running() {
			j.dom = m.domain
			if err := spec.Pushable(); err != nil && !j.pulls() {
				return err
			}
		}
		for _, v := range spec.Volumes {
			k, err := m.disk(v.Device)
			if err != nil {
				return err
			}
			volume := &jobVolume{spec: v, image: k.image, copied: map[int64][]byte{}}
			if err := j.readParent(volume); err != nil {
				return err
			}
			j.volumes = append(j.volumes, volume)
		}
		if err := j.makeScratch(); err != nil {
			return err
		}
		if err := createTargets(spec); err != nil {
			return errors.Join(err, j.removeScratch())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &handle{e: e, ref: ref, j: j}, nil
}

func createTargets(spec kvmbackup.JobSpec) error {
	for _, v := range spec.Volumes {
		path := filepath.Join(spec.Dir, v.File)
		secret := qcow2.NewSecret(spec.DataKey.ImageSecret(v.File))
		err := writeSealed(path, image{size: v.VirtualSize, backing: v.ParentFile}, secret, true)
		switch {
		case errors.Is(err, os.ErrExist):
			return fmt.Errorf("%w: %w", kvmbackup.ErrTargetExists, err)
		case errors.Is(err, syscall.ENOSPC):
			return fmt.Errorf("%w: %w", kvmbackup.ErrNoSpace, err)
		case err != nil:
			return fmt.Errorf("%w: %w", kvmbackup.ErrTargetAccess, err)
		}
	}
	return nil
}

// AdoptJob implements kvmbackup.Executor.
func (e *executor) AdoptJob(
	ctx context.Context, ref kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	var j *job
	err := e.do(ctx, "AdoptJob", ref, func(m *machine) (err error) {
		if err := checkScratch(spec); err != nil {
			return err
		}
		if m.running() && m.job != nil && sameTargets(m.job.spec, spec) {
			j = m.job
			return nil
		}
		j, err = m.ended(spec)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &handle{e: e, ref: ref, j: j}, nil
}

// ended returns a job that has ended well while nobody followed it. Of an incremental that takes the bitmaps too.
func (m *machine) ended(spec kvmbackup.JobSpec) (*job, error) {
	none := fmt.Errorf("%w: %q has no job to %s", kvmbackup.ErrNoJob, spec.ID, spec.Dir)
	if !m.known || m.last == nil || !sameTargets(m.last.spec, spec) || m.last.pulls() {
		return nil, none
	}
	if m.last.err != nil {
		return nil, fmt.Errorf("%w: it has failed: %w", none, m.last.err)
	}
	if _, ok := m.registered(string(spec.Checkpoint)); spec.Checkpoint != "" && !ok {
		return nil, none
	}
	for _, v := range m.last.volumes {
		if v.spec.Kind == kvmbackup.KindIncremental && !(v.image.usable(string(spec.Base)) &&
			v.image.usable(string(spec.Checkpoint))) {
			return nil, fmt.Errorf("%w: that all of %s was copied can't be proved", none, v.spec.Device)
		}
		if m.last.total == 0 && len(v.image.dirty(string(spec.Base))) > 0 {
			// A record of no bytes could be any job's, and the guest has written since: what was marked can't be told any more.
			return nil, fmt.Errorf("%w: that %s had nothing to copy can't be proved", none, v.spec.Device)
		}
	}
	return m.last, nil
}

func sameTargets(a, b kvmbackup.JobSpec) bool {
	return a.Dir == b.Dir && slices.EqualFunc(a.Volumes, b.Volumes, func(v, w kvmbackup.JobVolume) bool {
		return v.Device == w.Device && v.File == w.File
	})
}

// JobInfo is what can be seen of a domain's job.
type JobInfo struct {
	Spec                  kvmbackup.JobSpec
	DoneBytes, TotalBytes int64
	BandwidthBytes        int64 // the limit in force; 0: none
}

// Job returns the backup job that runs on a domain, if one does.
func (h *Hypervisor) Job(name string) (info JobInfo, ok bool, err error) {
	err = h.with(name, func(d *domain) error {
		if j := d.job; j != nil {
			info, ok = JobInfo{j.spec, j.done, j.total, j.bandwidth}, true
		}
		return nil
	})
	return info, ok, err
}

// RunJob takes the job of a running domain to its end, as QEMU does whether or not a process waits for it. It returns
// the error that the job ended with. Returns ErrJobStuck if it hangs, and for a pull job, which never ends by itself;
// ErrNoJob if the domain has no job.
func (h *Hypervisor) RunJob(name string) error {
	return h.with(name, func(d *domain) error {
		j := d.job
		if j == nil {
			return fmt.Errorf("%w: %q", kvmbackup.ErrNoJob, name)
		}
		for !j.over {
			if j.hung() || j.pulls() {
				return fmt.Errorf("%w: %q", kvmbackup.ErrJobStuck, name)
			}
			j.advance()
		}
		return j.err
	})
}
