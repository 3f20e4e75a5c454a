package libvirtjob

import (
	"fmt"
	"path/filepath"

	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
)

// pullXML describes a pull backup. libvirt makes the scratches and removes them. See backupXML for the order.
func pullXML(spec kvmbackup.JobSpec, disks []disk) (string, error) {
	list := &libvirtxml.DomainBackupPullDisks{}
	for _, d := range shareableFirst(disks) {
		if d.empty {
			continue
		}
		entry := libvirtxml.DomainBackupPullDisk{Name: d.device, Backup: "no"}
		if v, ok := volumeOf(spec, d.device); ok {
			entry = pullDisk(spec, v, d)
		}
		list.Disks = append(list.Disks, entry)
	}
	socket := &libvirtxml.DomainBackupPullServerUNIX{Socket: pullSocket(spec.Scratch)}
	server := &libvirtxml.DomainBackupPullServer{UNIX: socket}
	def := libvirtxml.DomainBackup{Pull: &libvirtxml.DomainBackupPull{Server: server, Disks: list}}
	return def.Marshal()
}

func pullDisk(spec kvmbackup.JobSpec, v kvmbackup.JobVolume, d disk) libvirtxml.DomainBackupPullDisk {
	entry := libvirtxml.DomainBackupPullDisk{
		Name: v.Device, Backup: "yes", BackupMode: "full", ExportName: v.Device,
		Driver:  &libvirtxml.DomainBackupDiskDriver{Type: "qcow2"},
		Scratch: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: scratchPath(spec, v)}},
	}
	if v.ByBitmap() {
		entry.BackupMode, entry.Incremental = "incremental", string(spec.Base)
		entry.ExportBitmap = jobBitmap(d) // as libvirt names it by itself, so that what is left of it is known
	}
	return entry
}

// pullSocket is where QEMU listens; it is in the job's own folder.
func pullSocket(scratch string) string { return filepath.Join(scratch, "nbd") }

func scratchPath(spec kvmbackup.JobSpec, v kvmbackup.JobVolume) string {
	return filepath.Join(spec.Scratch, v.Device+".qcow2")
}

// jobFile is the file of libvirt's job by which it is known to be the spec's.
func jobFile(spec kvmbackup.JobSpec, v kvmbackup.JobVolume) string {
	if spec.Transfer == kvmbackup.TransferPull {
		return scratchPath(spec, v)
	}
	return targetPath(spec, v)
}

// maxSocketPath is the kernel's limit for the name of a Unix socket.
const maxSocketPath = 107

func checkScratch(scratch string) error {
	switch socket := pullSocket(scratch); {
	case !filepath.IsAbs(scratch):
		return fmt.Errorf("%w: %q is not absolute", kvmbackup.ErrScratch, scratch)
	case !xmlText(scratch):
		return fmt.Errorf("%w: %q can't be written in XML", kvmbackup.ErrScratch, scratch)
	case len(socket) > maxSocketPath:
		return fmt.Errorf("%w: the socket %q would have a path of %d bytes, and the kernel allows %d: choose a "+
			"folder with a shorter path",
			kvmbackup.ErrScratch, socket, len(socket), maxSocketPath)
	}
	return nil
}
