package engine

import (
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// manifestOf is the backup as its folder describes it.
func manifestOf(b kvmbackup.Backup, parent *kvmbackup.Backup, files []repository.FileEntry) repository.Manifest {
	m := repository.Manifest{
		ID: string(b.ID), VM: string(b.VM), Domain: b.Domain, DomainUUID: b.DomainUUID, Kind: repository.Kind(b.Kind.String()),
		ChainID: string(b.ChainID), Position: b.Position, ParentID: string(b.ParentID),
		Tracked: b.Tracked(), Checkpoint: string(b.Checkpoint), Path: b.Path, Sequence: b.Sequence,
		StartedAt: b.StartedAt, CompletedAt: b.CompletedAt, Consistency: repository.Consistency(b.Consistency.String()),
		FrozenMS: b.FrozenFor.Milliseconds(), Pinned: b.Pinned, Files: files,
	}
	if parent != nil {
		m.ParentPath = parent.Path
	}
	if b.Verification != nil && b.Verification.OK {
		m.VerifiedAt = b.Verification.At
	}
	for _, r := range b.Reasons {
		m.Reasons = append(m.Reasons, repository.Reason{Code: string(r.Code), Detail: manifestText(r.Detail), VolumeID: string(r.VolumeID)})
	}
	for _, v := range b.Volumes {
		m.Volumes = append(m.Volumes, manifestVolume(v))
	}
	return m
}

// manifestText is a detail as a manifest can have it: tools may say more, and other things than text.
func manifestText(s string) string {
	const cut = " ..."
	if len(s) > repository.MaxDetailBytes {
		s = s[:repository.MaxDetailBytes-len(cut)] + cut
	}
	return strings.ToValidUTF8(s, "")
}

func manifestVolume(v kvmbackup.VolumeBackup) repository.Volume {
	mv := repository.Volume{
		VolumeID: string(v.VolumeID), Device: v.Device, Kind: repository.Kind(v.Kind.String()), File: v.File, ParentFile: v.ParentFile,
		VirtualSize: v.VirtualSize, StoredSize: v.StoredSize, DirtyBytes: v.DirtyBytes, SourceFormat: v.SourceFormat,
		Encryption: v.Encryption, Tracked: v.Tracked,
	}
	mv.Digest, mv.FileDigest = manifestDigest(v.Digest), manifestDigest(v.FileDigest)
	return mv
}

func manifestDigest(s string) *repository.Digest {
	if algorithm, value, ok := strings.Cut(s, ":"); ok {
		return &repository.Digest{Algorithm: algorithm, Value: value}
	}
	return nil
}

func digestOf(d *repository.Digest) string {
	if d == nil {
		return ""
	}
	return d.Algorithm + ":" + d.Value
}

// BackupFromManifest is the record of a published backup: completed, in the repository with that ID.
func BackupFromManifest(m repository.Manifest, repositoryID string) (kvmbackup.Backup, error) {
	b := kvmbackup.Backup{
		ID: kvmbackup.BackupID(m.ID), VM: kvmbackup.VMID(m.VM), Domain: m.Domain, DomainUUID: m.DomainUUID, Status: kvmbackup.StatusCompleted,
		ChainID: kvmbackup.ChainID(m.ChainID), Position: m.Position, ParentID: kvmbackup.BackupID(m.ParentID),
		Checkpoint: kvmbackup.CheckpointName(m.Checkpoint), Repository: repositoryID, Path: m.Path, Sequence: m.Sequence,
		StartedAt: m.StartedAt, CompletedAt: m.CompletedAt, FrozenFor: time.Duration(m.FrozenMS) * time.Millisecond, Pinned: m.Pinned,
	}
	var err error
	if b.Kind, err = kvmbackup.ParseKind(string(m.Kind)); err != nil {
		return kvmbackup.Backup{}, err
	}
	if b.Consistency, err = kvmbackup.ParseConsistency(string(m.Consistency)); err != nil {
		return kvmbackup.Backup{}, err
	}
	for _, r := range m.Reasons {
		b.Reasons = append(b.Reasons, kvmbackup.Reason{Code: kvmbackup.ReasonCode(r.Code), Detail: r.Detail, VolumeID: kvmbackup.VolumeID(r.VolumeID)})
	}
	for _, mv := range m.Volumes {
		v := kvmbackup.VolumeBackup{
			VolumeID: kvmbackup.VolumeID(mv.VolumeID), Device: mv.Device, File: mv.File, ParentFile: mv.ParentFile,
			VirtualSize: mv.VirtualSize, StoredSize: mv.StoredSize, DirtyBytes: mv.DirtyBytes, SourceFormat: mv.SourceFormat,
			Encryption: mv.Encryption, Tracked: mv.Tracked, Digest: digestOf(mv.Digest), FileDigest: digestOf(mv.FileDigest),
		}
		if v.Kind, err = kvmbackup.ParseKind(string(mv.Kind)); err != nil {
			return kvmbackup.Backup{}, err
		}
		b.Volumes = append(b.Volumes, v)
	}
	return b, b.Validate()
}

// sideFiles are the names a backup's folder may have beside its volumes and its manifest.
var sideFiles = []string{fileDomainXML, fileNVRAM, fileTPM}

const (
	fileDomainXML = repository.DomainXMLName
	fileNVRAM     = repository.NVRAMName
	fileTPM       = repository.TPMName
)

// target is what the repository is told to remove: names that are ours.
func target(b kvmbackup.Backup) repository.Target {
	t := repository.Target{Path: b.Path, ID: string(b.ID), Unproven: true} // the record proves it
	for _, v := range b.Volumes {
		t.Files = append(t.Files, repository.TargetFile{Name: v.File, StoredBytes: v.StoredSize})
	}
	for _, n := range sideFiles {
		t.Files = append(t.Files, repository.TargetFile{Name: n})
	}
	return t
}

func fileNamesOf(b kvmbackup.Backup) []string {
	names := append([]string(nil), sideFiles...)
	for _, v := range b.Volumes {
		names = append(names, v.File)
	}
	return names
}
