package engine

import (
	"fmt"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

// A disk that QEMU decrypts is backed up as the guest sees it: libvirt has the secret, the engine doesn't. So
// everybody who can read the repository can read its backups, unless they are sealed, and the backups say so. While the
// domain is off the engine can neither read nor write its image.

// encrypted has a reason for each volume whose backup says more than the host's disk did.
func encrypted(volumes []chosen, policy kvmbackup.Policy) []kvmbackup.Reason {
	if policy.Encryption != "" {
		return nil
	}
	var out []kvmbackup.Reason
	for _, v := range volumes {
		if v.Disk.Encryption != "" {
			out = append(out, kvmbackup.Reason{Code: ReasonDiskEncrypted, VolumeID: v.ID,
				Detail: fmt.Sprintf("%s: encrypted on its host (%s); the backup's content is not", v.Device, v.Disk.Encryption)})
		}
	}
	return out
}

// sameEncryption refuses what would back ciphertext up as a volume whose backups are what the guest sees. Only the
// description of a domain that is not defined can leave that out.
func (v view) sameEncryption(st kvmbackup.DomainStatus) error {
	if st.Defined || v.input.Newest == nil {
		return nil
	}
	for _, c := range v.volumes {
		if part, _ := v.input.Newest.Volume(c.ID); undescribed(v.req.Disks, c.Disk, part) {
			return fmt.Errorf("%w: %s", kvmbackup.ErrInvalid, askForEncryption(c.Device, part))
		}
	}
	return nil
}

// undescribed says whether the volume was encrypted and nobody has said what its disk is now.
func undescribed(refs []kvmbackup.DiskRef, d kvmbackup.DiskStatus, part kvmbackup.VolumeBackup) bool {
	return part.Encryption != "" && d.Encryption == "" &&
		!slices.ContainsFunc(refs, func(r kvmbackup.DiskRef) bool {
			return r.Device == d.Device && r.Encryption == kvmbackup.NotEncrypted
		})
}

func askForEncryption(device string, part kvmbackup.VolumeBackup) string {
	return fmt.Sprintf("disk %s was encrypted (%s) when it was backed up, and the description of the domain, which "+
		"is off and not defined, doesn't say whether it still is; "+
		"set Encryption of its DiskRef to %q, or to %q where it isn't any more",
		device, part.Encryption, part.Encryption, kvmbackup.NotEncrypted)
}
