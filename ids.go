package kvmbackup

import (
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// VMID is the host's stable identity of a virtual machine: an instance name or UUID.
// It names the VM's folder in the repository, so it must be a plain file name.
type VMID string

// VolumeID is the host's stable identity of one disk of a VM. It outlives a change of device name or path.
type VolumeID string

// BackupID identifies a backup: a UUID in its usual text form.
type BackupID string

// ChainID identifies a chain: a UUID in its usual text form.
type ChainID string

// CheckpointName is the name of a libvirt checkpoint and of the dirty bitmap on every tracked disk.
type CheckpointName string

// NewBackupID returns a fresh random ID.
func NewBackupID() BackupID { return BackupID(uuid.NewString()) }

// NewChainID returns a fresh random ID.
func NewChainID() ChainID { return ChainID(uuid.NewString()) }

// ParseBackupID accepts a UUID in any form that google/uuid parses and returns it in its usual text form.
// The error is an ErrInvalid.
func ParseBackupID(s string) (BackupID, error) {
	u, err := uuid.Parse(s)
	if err != nil {
		return "", fmt.Errorf("%w backup ID %q: %w", ErrInvalid, s, err)
	}
	return BackupID(u.String()), nil
}

// parseChainID is ParseBackupID for chain IDs.
func parseChainID(s string) (ChainID, error) {
	u, err := uuid.Parse(s)
	if err != nil {
		return "", fmt.Errorf("%w chain ID %q: %w", ErrInvalid, s, err)
	}
	return ChainID(u.String()), nil
}

func (id VMID) String() string          { return string(id) }
func (id VolumeID) String() string      { return string(id) }
func (id BackupID) String() string      { return string(id) }
func (id ChainID) String() string       { return string(id) }
func (n CheckpointName) String() string { return string(n) }

// OtherDomain says whether two UUIDs are certainly of two domains. An empty one, and the nil UUID, are not known.
func (b Backup) OtherDomain(uuid string) bool {
	return knownUUID(b.DomainUUID) && knownUUID(uuid) && !strings.EqualFold(b.DomainUUID, uuid)
}

func knownUUID(id string) bool { return id != "" && id != uuid.Nil.String() }
