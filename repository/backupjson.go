package repository

import (
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// document is backup.json, field by field and in its order; docs/format.md is the reference. Nothing else knows it.
type document struct {
	Version     int                      `json:"version"`
	ID          kvmbackup.BackupID       `json:"id"`
	VM          kvmbackup.VMID           `json:"vm"`
	Domain      string                   `json:"domain,omitempty"`
	DomainUUID  string                   `json:"domain_uuid,omitempty"`
	Kind        string                   `json:"kind"`
	ChainID     kvmbackup.ChainID        `json:"chain_id"`
	Position    int                      `json:"position"`
	ParentID    kvmbackup.BackupID       `json:"parent_id,omitempty"`
	ParentPath  string                   `json:"parent_path,omitempty"`
	Tracked     bool                     `json:"tracked"`
	Checkpoint  kvmbackup.CheckpointName `json:"checkpoint,omitempty"`
	Path        string                   `json:"path"`
	Sequence    int64                    `json:"sequence"`
	StartedAt   time.Time                `json:"started_at"`
	CompletedAt time.Time                `json:"completed_at"`
	Transfer    string                   `json:"transfer,omitempty"`
	Consistency string                   `json:"consistency"`
	FrozenMS    int64                    `json:"frozen_ms"`
	Pinned      bool                     `json:"pinned"`
	VerifiedAt  time.Time                `json:"verified_at,omitzero"`
	Reasons     []reasonJSON             `json:"reasons,omitempty"`
	Volumes     []volumeJSON             `json:"volumes"`
	Files       []fileJSON               `json:"files,omitempty"`
	ParentMAC   string                   `json:"parent_mac,omitempty"`
	Keys        []keyJSON                `json:"keys,omitempty"`
	MAC         string                   `json:"mac,omitempty"`
}

type keyJSON struct {
	ID      string `json:"id"`
	Wrapped []byte `json:"wrapped"`
}

type reasonJSON struct {
	Code     kvmbackup.ReasonCode `json:"code"`
	Detail   string               `json:"detail,omitempty"`
	VolumeID kvmbackup.VolumeID   `json:"volume_id,omitempty"`
}

type volumeJSON struct {
	VolumeID     kvmbackup.VolumeID `json:"volume_id"`
	Device       string             `json:"device,omitempty"`
	Kind         string             `json:"kind"`
	File         string             `json:"file"`
	ParentFile   string             `json:"parent_file,omitempty"`
	VirtualSize  int64              `json:"virtual_size"`
	StoredSize   int64              `json:"stored_size"`
	DirtyBytes   int64              `json:"dirty_bytes"`
	SourceFormat string             `json:"source_format,omitempty"`
	Encryption   string             `json:"encryption,omitempty"`
	Compression  string             `json:"compression,omitempty"`
	Tracked      bool               `json:"tracked,omitempty"`
	Digest       *digestJSON        `json:"digest,omitempty"`
	FileDigest   *digestJSON        `json:"file_digest,omitempty"`

	FileEncryption string `json:"file_encryption,omitempty"`
}

type digestJSON struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"value"`
}

type fileJSON struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// summed is a document as it is written. The checksum is not a manifest's own: it is of the bytes, not of what they
// mean.
type summed struct {
	document
	Checksum string `json:"checksum"`
}

// document returns what is written of m, with times in UTC and without the clock readings that only this process
// understands.
func (m Manifest) document() document {
	d := document{
		Version: m.version(), ID: m.ID, VM: m.VM, Domain: m.Domain, DomainUUID: m.DomainUUID, Kind: m.Kind.String(),
		ChainID: m.ChainID, Position: m.Position, ParentID: m.ParentID, ParentPath: m.ParentPath(),
		Tracked: m.Tracked(), Checkpoint: m.Checkpoint, Path: m.Path, Sequence: m.Sequence,
		StartedAt: inUTC(m.StartedAt), CompletedAt: inUTC(m.CompletedAt), VerifiedAt: inUTC(m.VerifiedAt),
		Consistency: m.Consistency.String(), FrozenMS: m.FrozenFor.Milliseconds(), Pinned: m.Pinned,
	}
	if m.Transfer != kvmbackup.TransferAuto {
		d.Transfer = m.Transfer.String()
	}
	for _, r := range m.Reasons {
		d.Reasons = append(d.Reasons, reasonJSON(r))
	}
	for _, v := range m.Volumes {
		d.Volumes = append(d.Volumes, volumeJSON{
			VolumeID: v.VolumeID, Device: v.Device, Kind: v.Kind.String(), File: v.File, ParentFile: v.ParentFile,
			VirtualSize: v.VirtualSize, StoredSize: v.StoredSize, DirtyBytes: v.DirtyBytes, SourceFormat: v.SourceFormat,
			Encryption: v.Encryption, Compression: string(v.Compression), Tracked: v.Tracked,
			Digest: digestOf(v.Digest), FileDigest: digestOf(v.FileDigest),
			FileEncryption: string(v.FileEncryption),
		})
	}
	for _, f := range m.Files {
		d.Files = append(d.Files, fileJSON(f))
	}
	for _, k := range m.Keys {
		d.Keys = append(d.Keys, keyJSON{k.KeyID, k.Wrapped})
	}
	d.ParentMAC, d.MAC = m.ParentMAC, m.MAC
	return d
}

// manifest is the inverse of document. What a record can't hold is left out, and for Validate to find.
func (d document) manifest() Manifest {
	m := Manifest{Backup: kvmbackup.Backup{
		ID: d.ID, VM: d.VM, Domain: d.Domain, DomainUUID: d.DomainUUID, Kind: kindOf(d.Kind),
		Status: kvmbackup.StatusCompleted, ChainID: d.ChainID, Position: d.Position, ParentID: d.ParentID,
		Checkpoint: d.Checkpoint, Path: d.Path,
		Sequence: d.Sequence, StartedAt: inUTC(d.StartedAt), CompletedAt: inUTC(d.CompletedAt),
		FrozenFor: time.Duration(d.FrozenMS) * time.Millisecond, Pinned: d.Pinned,
	}, VerifiedAt: inUTC(d.VerifiedAt)}
	_ = m.Transfer.UnmarshalText([]byte(d.Transfer)) // one that this version doesn't know is not known
	_ = m.Consistency.UnmarshalText([]byte(d.Consistency))
	for _, r := range d.Reasons {
		r.Detail = kvmbackup.Printable(r.Detail)
		m.Reasons = append(m.Reasons, kvmbackup.Reason(r))
	}
	for _, v := range d.Volumes {
		m.Volumes = append(m.Volumes, kvmbackup.VolumeBackup{
			VolumeID: v.VolumeID, Device: v.Device, Kind: kindOf(v.Kind), File: v.File, ParentFile: v.ParentFile,
			VirtualSize: v.VirtualSize, StoredSize: v.StoredSize, DirtyBytes: v.DirtyBytes, SourceFormat: v.SourceFormat,
			Encryption: v.Encryption, Compression: kvmbackup.Compression(v.Compression), Tracked: v.Tracked,
			Digest: v.Digest.String(), FileDigest: v.FileDigest.String(),
			FileEncryption: kvmbackup.Encryption(v.FileEncryption),
		})
	}
	for _, f := range d.Files {
		m.Files = append(m.Files, kvmbackup.SideFile(f))
	}
	for _, k := range d.Keys {
		m.Keys, m.KeyIDs = append(m.Keys, kvmbackup.WrappedKey{KeyID: k.ID, Wrapped: k.Wrapped}), append(m.KeyIDs, k.ID)
	}
	m.ParentMAC, m.MAC = d.ParentMAC, d.MAC
	return m
}

// kindOf returns KindUnknown for what is no kind.
func kindOf(s string) (k kvmbackup.Kind) {
	_ = k.UnmarshalText([]byte(s)) // KindUnknown on an error
	return k
}

func inUTC(t time.Time) time.Time { return t.UTC().Round(0) }

// digestOf parts ALGORITHM:HEX. The algorithm is empty, and so not valid, where s has none.
func digestOf(s string) *digestJSON {
	if s == "" {
		return nil
	}
	at := max(strings.LastIndexByte(s, ':'), 0)
	return &digestJSON{Algorithm: s[:at], Value: strings.TrimPrefix(s[at:], ":")}
}

// String returns ALGORITHM:HEX; empty for nil.
func (d *digestJSON) String() string {
	if d == nil {
		return ""
	}
	return d.Algorithm + ":" + d.Value
}
