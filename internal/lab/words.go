package lab

import (
	"time"

	"github.com/google/uuid"

	"github.com/kvmbackup/kvmbackup"
)

// VM is the one that tests are about which need only one.
const VM = kvmbackup.VMID("i-2-17-VM")

// The UUIDs of two domains that had one name.
const (
	OldUUID = "0a1b0000-0000-4000-8000-000000000001"
	NewUUID = "0a1b0000-0000-4000-8000-000000000002"
)

// Epoch is when tests begin.
var Epoch = time.Date(2026, 11, 23, 7, 4, 50, 0, time.UTC)

// BackupID gives a backup a stable ID by its name in a test.
func BackupID(name string) kvmbackup.BackupID {
	return kvmbackup.BackupID(uuid.NewSHA1(uuid.NameSpaceOID, []byte(name)).String())
}

// ChainID gives the chain of the backup with that name a stable ID.
func ChainID(name string) kvmbackup.ChainID { return kvmbackup.ChainID(BackupID("chain of " + name)) }

// Full is a valid record of a full backup under way.
func Full() kvmbackup.Backup {
	return kvmbackup.Backup{
		ID: BackupID("A"), VM: VM, Kind: kvmbackup.KindFull, Status: kvmbackup.StatusRunning, ChainID: ChainID("A"),
		Path: "i-2-17-VM/2026.11.23.07.04.50", StartedAt: Epoch,
		Volumes: []kvmbackup.VolumeBackup{{VolumeID: "v1", Kind: kvmbackup.KindFull, File: "root.v1.qcow2"}},
	}
}
