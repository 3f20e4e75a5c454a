package kvmbackuptest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup"
)

// ErrScratchWrite is returned by guest writes that fail because the scratch of a pull job is full and nobody has
// aborted the job: its process was killed. A real guest sees an I/O error, or is paused.
var ErrScratchWrite = errors.New("simulated: the scratch is full, and the guest's write fails")

// Pull says how a domain is pulled. The zero value can be, with a scratch that takes all.
type Pull struct {
	Refused      string // why it can't be; empty: it can
	ScratchBytes int64  // how much its jobs' scratch takes; 0: all
}

// SetPull changes how a domain is pulled, also in mid-job. A process that lives aborts its job when the next of the
// guest's writes wouldn't fit into the scratch, before that is carried out.
func (h *Hypervisor) SetPull(name string, p Pull) error {
	return h.with(name, func(d *domain) error {
		d.pull = p
		return nil
	})
}

func (j *job) pulls() bool { return j.dom != nil && j.spec.Transfer == kvmbackup.TransferPull }

// transfer is the way that the job really goes.
func (j *job) transfer() kvmbackup.Transfer {
	switch {
	case j.dom == nil:
		return kvmbackup.TransferOffline
	case j.pulls():
		return kvmbackup.TransferPull
	}
	return kvmbackup.TransferPush
}

// left says whether the process that began the job is gone.
func (j *job) left() bool {
	select {
	case <-j.process:
		return true
	default:
		return false
	}
}

// errNoReader is what becomes of a pull job that was left.
var errNoReader = fmt.Errorf("%w: nobody reads its exports any more", kvmbackup.ErrJobFailed)

// checkScratch wants the folder by which a pull job is known.
func checkScratch(spec kvmbackup.JobSpec) error {
	if spec.Transfer == kvmbackup.TransferPull && !filepath.IsAbs(spec.Scratch) {
		return fmt.Errorf("%w: %q is not absolute", kvmbackup.ErrScratch, spec.Scratch)
	}
	return nil
}

func (j *job) makeScratch() error {
	if !j.pulls() {
		return nil
	}
	if err := os.Mkdir(j.spec.Scratch, 0o700); err != nil {
		return fmt.Errorf("%w: %w", kvmbackup.ErrScratch, err)
	}
	return nil
}

// fillScratch puts a file for each volume there, as libvirt does.
func (j *job) fillScratch() error {
	if !j.pulls() {
		return nil
	}
	for _, v := range j.volumes {
		if err := os.WriteFile(filepath.Join(j.spec.Scratch, v.spec.Device), nil, 0o600); err != nil {
			return fmt.Errorf("%w: %w", kvmbackup.ErrScratch, err)
		}
	}
	return nil
}

// removeScratch is for a job that is over, or never was.
func (j *job) removeScratch() error {
	if !j.pulls() || j.spec.Scratch == "" {
		return nil
	}
	return os.RemoveAll(j.spec.Scratch)
}

// place is a cluster of an image.
type place struct {
	image   *storedImage
	cluster int64
}

// keep puts what a pull job's instant has of a range into its scratch, before the guest overwrites it.
func (d *domain) keep(im *storedImage, offset, length int64) error {
	j := d.job
	if j == nil || !j.pulls() || !j.has(im) {
		return nil
	}
	var fresh []place
	for i := offset / ClusterBytes; i*ClusterBytes < offset+length; i++ {
		if p := (place{im, i}); !j.kept[p] {
			fresh = append(fresh, p)
		}
	}
	used, room := int64(len(j.kept))*ClusterBytes, d.pull.ScratchBytes
	need := int64(len(fresh)) * ClusterBytes
	if room > 0 && used+need > room {
		if j.left() {
			d.guest.failedWrites++
			return ErrScratchWrite
		}
		j.end(errors.Join(kvmbackup.ErrJobFailed, &kvmbackup.ScratchFullError{
			Folder: filepath.Dir(j.spec.Scratch), FreeAtBegin: room, Free: room - used, Used: used, WriteRate: need,
		}))
		return nil
	}
	for _, p := range fresh {
		j.kept[p] = true
	}
	return nil
}

func (j *job) has(im *storedImage) bool {
	for _, v := range j.volumes {
		if v.image == im {
			return true
		}
	}
	return false
}
