package libvirtjob

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
)

// namePattern is what libvirt's schema allows as a checkpoint's name.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9_\-][a-zA-Z0-9_\-.]*$`)

func checkName(name kvmbackup.CheckpointName) error {
	if !namePattern.MatchString(string(name)) {
		return fmt.Errorf("%w: checkpoint name %q; a letter, digit, - or _ comes first, then also dots",
			kvmbackup.ErrInvalid, name)
	}
	return nil
}

// checkSpec refuses what libvirt would refuse with a schema error, or take for something else.
func checkSpec(spec kvmbackup.JobSpec) error {
	if spec.Checkpoint != "" {
		if err := checkName(spec.Checkpoint); err != nil {
			return err
		}
	}
	if !filepath.IsAbs(spec.Dir) {
		return fmt.Errorf("%w: target folder %q is not absolute", kvmbackup.ErrInvalid, spec.Dir)
	}
	if len(spec.Volumes) == 0 {
		return fmt.Errorf("%w: the job has no volumes", kvmbackup.ErrNothingToBackUp)
	}
	if spec.Transfer == kvmbackup.TransferPull {
		if err := checkScratch(spec.Scratch); err != nil {
			return err
		}
	}
	for _, v := range spec.Volumes {
		if err := checkVolume(spec, v); err != nil {
			return err
		}
	}
	return nil
}

func checkVolume(spec kvmbackup.JobSpec, v kvmbackup.JobVolume) error {
	bad := func(why string) error {
		return fmt.Errorf("%w: volume %s (%s): %s", kvmbackup.ErrInvalid, v.VolumeID, v.Device, why)
	}
	switch {
	case v.File == "" || v.File != filepath.Base(v.File) || v.File == "." || v.File == "..":
		return bad("target is not a plain name")
	case !xmlText(filepath.Join(spec.Dir, v.File)):
		return bad("target path can't be written in XML")
	case v.ByBitmap() && checkName(spec.Base) != nil:
		return bad("incremental without a base checkpoint")
	case v.Kind != kvmbackup.KindIncremental && v.Kind != kvmbackup.KindFull:
		return bad("kind is not set")
	case v.Tracked && spec.Checkpoint == "":
		return bad("tracked in a job without a checkpoint")
	}
	return nil
}

// xmlText says whether XML can hold the text: it has no place for control characters or broken UTF-8.
func xmlText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r < 0x20 || r == 0xFFFE || r == 0xFFFF || r == utf8.RuneError
	})
}

// backupXML describes a pull backup, or a push backup into files that are there. Every disk with media is listed; what
// is not in the spec is not backed up. (An empty drive may not even be named.) Shareable disks come first: QEMU may
// refuse one for what another process does at that moment, and libvirt keeps the order and survives when the first is
// refused. See rehearse.
func backupXML(spec kvmbackup.JobSpec, disks []disk) (string, error) {
	if spec.Transfer == kvmbackup.TransferPull {
		return pullXML(spec, disks)
	}
	list := &libvirtxml.DomainBackupPushDisks{}
	for _, d := range shareableFirst(disks) {
		if d.empty {
			continue
		}
		entry := libvirtxml.DomainBackupPushDisk{Name: d.device, Backup: "no"}
		if v, ok := volumeOf(spec, d.device); ok {
			entry = backupDisk(spec, v)
		}
		list.Disks = append(list.Disks, entry)
	}
	def := libvirtxml.DomainBackup{Push: &libvirtxml.DomainBackupPush{Disks: list}}
	return def.Marshal()
}

func shareableFirst(disks []disk) []disk {
	return slices.SortedStableFunc(slices.Values(disks), func(a, b disk) int {
		switch {
		case a.shareable == b.shareable:
			return 0
		case a.shareable:
			return -1
		}
		return 1
	})
}

func backupDisk(spec kvmbackup.JobSpec, v kvmbackup.JobVolume) libvirtxml.DomainBackupPushDisk {
	entry := libvirtxml.DomainBackupPushDisk{
		Name: v.Device, Backup: "yes", BackupMode: "full",
		Driver: &libvirtxml.DomainBackupDiskDriver{Type: "qcow2"},
		Target: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: targetPath(spec, v)}},
	}
	if v.Kind == kvmbackup.KindIncremental {
		entry.BackupMode, entry.Incremental = "incremental", string(spec.Base)
	}
	return entry
}

func targetPath(spec kvmbackup.JobSpec, v kvmbackup.JobVolume) string {
	return filepath.Join(spec.Dir, v.File)
}

func volumeOf(spec kvmbackup.JobSpec, device string) (kvmbackup.JobVolume, bool) {
	i := slices.IndexFunc(spec.Volumes, func(v kvmbackup.JobVolume) bool { return v.Device == device })
	if i < 0 {
		return kvmbackup.JobVolume{}, false
	}
	return spec.Volumes[i], true
}

// checkpointXML describes a checkpoint with bitmaps on the devices. All disks are listed: libvirt would put a bitmap on
// those that aren't, and one without a list leaves its bitmaps behind when it is deleted.
func checkpointXML(name kvmbackup.CheckpointName, created time.Time, disks []disk, devices []string) (string, error) {
	list := &libvirtxml.DomainCheckpointDisks{}
	for _, d := range disks {
		if d.empty {
			continue
		}
		mode := "no"
		if slices.Contains(devices, d.device) {
			mode = "bitmap"
		}
		list.Disks = append(list.Disks, libvirtxml.DomainCheckpointDisk{Name: d.device, Checkpoint: mode})
	}
	def := libvirtxml.DomainCheckpoint{Name: string(name), CreationTime: strconv.FormatInt(created.Unix(), 10),
		Disks: list}
	return def.Marshal()
}
