package repository

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"time"
)

// ManifestVersion is the version of the manifest that this package writes, and the latest it reads.
const ManifestVersion = 1

// MaxManifestBytes is the size beyond which a manifest is neither written nor read.
const MaxManifestBytes = 4 << 20

// Kind says whether a backup or a volume stands on its own. The zero value is invalid.
type Kind string

// The kinds.
const (
	KindFull        Kind = "full"        // needs nothing else
	KindIncremental Kind = "incremental" // needs its parent
)

// Consistency says what state the guest's disks were caught in. The zero value is invalid.
type Consistency string

// The consistencies.
const (
	ConsistencyCrash      Consistency = "crash"      // as after a power loss
	ConsistencyFilesystem Consistency = "filesystem" // frozen by the guest agent, or shut down
)

// Manifest is a backup's backup.json: all that is needed to verify, restore and list the backup without any database.
// It is a plain value; what its slices hold is shared by copies.
type Manifest struct {
	Version     int         `json:"version"` // 0 is written as ManifestVersion
	ID          string      `json:"id"`
	VM          string      `json:"vm"`                    // the host's name of the VM; the folder's name
	Domain      string      `json:"domain,omitempty"`      // libvirt's name of the VM at the time
	DomainUUID  string      `json:"domain_uuid,omitempty"` // libvirt's UUID of the VM at the time
	Kind        Kind        `json:"kind"`
	ChainID     string      `json:"chain_id"`
	Position    int         `json:"position"`              // 0 is the full
	ParentID    string      `json:"parent_id,omitempty"`   // of an incremental
	ParentPath  string      `json:"parent_path,omitempty"` // of an incremental: VM/STAMP below the root
	Tracked     bool        `json:"tracked"`               // taken with a checkpoint, so that an incremental may follow
	Checkpoint  string      `json:"checkpoint,omitempty"`  // name of the libvirt checkpoint and bitmap taken with it
	Path        string      `json:"path"`                  // VM/STAMP below the root
	Sequence    int64       `json:"sequence"`              // the store's order of backups; 0: none
	StartedAt   time.Time   `json:"started_at"`            // UTC
	CompletedAt time.Time   `json:"completed_at"`          // UTC
	Consistency Consistency `json:"consistency"`
	FrozenMS    int64       `json:"frozen_ms"` // how long the guest was frozen, in milliseconds; 0: not at all
	Pinned      bool        `json:"pinned"`    // not to be removed by a retention policy
	VerifiedAt  time.Time   `json:"verified_at,omitzero"`
	Reasons     []Reason    `json:"reasons,omitempty"`
	Volumes     []Volume    `json:"volumes"`
	Files       []FileEntry `json:"files,omitempty"` // the side files
}

// Volume is one disk in a manifest, and its file.
type Volume struct {
	VolumeID     string  `json:"volume_id"`
	Device       string  `json:"device,omitempty"` // target at the time, e.g. "vda"
	Kind         Kind    `json:"kind"`
	File         string  `json:"file"`                  // name in the backup's folder
	ParentFile   string  `json:"parent_file,omitempty"` // "../STAMP/FILE", the file's backing link; empty: full
	VirtualSize  int64   `json:"virtual_size"`          // bytes the guest sees
	StoredSize   int64   `json:"stored_size"`           // bytes the file took on the storage (allocated) when written
	DirtyBytes   int64   `json:"dirty_bytes"`           // bytes the bitmap said were to be copied; full: what was in use
	SourceFormat string  `json:"source_format,omitempty"`
	Encryption   string  `json:"encryption,omitempty"`  // of the disk on its host, e.g. "luks"; the file isn't encrypted
	Tracked      bool    `json:"tracked,omitempty"`     // the backup's checkpoint has a bitmap on this disk
	Digest       *Digest `json:"digest,omitempty"`      // of the bytes the guest sees; nil: not computed
	FileDigest   *Digest `json:"file_digest,omitempty"` // of the file's own bytes; nil: not computed
}

// Digest is a checksum of a volume's file.
type Digest struct {
	Algorithm string `json:"algorithm"` // e.g. "sha256"
	Value     string `json:"value"`     // lower-case hexadecimal
}

// FileEntry is one side file: small, written whole, e.g. domain.xml.
type FileEntry struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // lower-case hexadecimal
}

// Reason is one step of the explanation why a backup is what it is.
type Reason struct {
	Code     string `json:"code"`
	Detail   string `json:"detail,omitempty"`
	VolumeID string `json:"volume_id,omitempty"` // empty: the whole backup
}

// DecodeManifest reads a manifest and compares its bytes with its checksum. Fields that this version doesn't know are ignored.
// The error matches ErrManifestVersion for a later version, else ErrManifest: too large, without its checksum, not JSON, or not
// valid by Validate. What is decoded takes memory in proportion to the limits, whatever b is made of.
func DecodeManifest(b []byte) (Manifest, error) {
	if len(b) > MaxManifestBytes {
		return Manifest{}, fmt.Errorf("%w: larger than %d bytes", ErrManifest, MaxManifestBytes)
	}
	if err := checkSum(b); err != nil {
		return Manifest{}, err
	}
	if err := checkVersion(b); err != nil {
		return Manifest{}, err
	}
	if err := checkShape(b); err != nil {
		return Manifest{}, err
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	m = m.normal()
	if err := m.Validate(); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// sealed is a manifest as it is written. The checksum is not a manifest's own: it is of the bytes, not of what they mean.
type sealed struct {
	Manifest
	Checksum string `json:"checksum"`
}

// noSum stands where the checksum will be, or was, while it is computed.
const noSum = "0000000000000000000000000000000000000000000000000000000000000000"

// sumPlace finds the checksum's digits in the document's last field.
var sumPlace = regexp.MustCompile(`[{,\s]"checksum"\s*:\s*"([0-9a-f]{64})"\s*}\s*\z`)

// checkSum comes before anything else is believed, the version too: the checksum is the same in every version.
func checkSum(b []byte) error {
	place := sumPlace.FindSubmatchIndex(b)
	if place == nil {
		return fmt.Errorf("%w: it doesn't end with its checksum, so it was cut off, damaged or changed: %s", ErrManifest, sumHelp)
	}
	has, want := sumOf(b, place[2]), string(b[place[2]:place[3]])
	if has != want {
		return fmt.Errorf("%w: its sha256 is %s, its checksum says %s, so it was damaged or changed: %s", ErrManifest, has, want, sumHelp)
	}
	return nil
}

const sumHelp = "put a copy of the file in its place, or look through it and compute the checksum anew as docs/format.md says"

// sumOf is the SHA-256 of a manifest with zeros for the digits at that place.
func sumOf(b []byte, at int) string {
	h := sha256.New()
	for _, part := range [][]byte{b[:at], []byte(noSum), b[at+len(noSum):]} {
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// checkVersion reads the version alone, so that a later one is told apart even if its other fields have changed.
func checkVersion(b []byte) error {
	var v struct {
		Version int `json:"version"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&v); err != nil {
		return fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: data after the end", ErrManifest)
	}
	if v.Version < 1 {
		return fmt.Errorf("%w: version %d", ErrManifest, v.Version)
	}
	if v.Version > ManifestVersion {
		return fmt.Errorf("%w: %d, this program reads up to %d: use a later release", ErrManifestVersion, v.Version,
			ManifestVersion)
	}
	return nil
}

// Encode validates m and returns it as indented JSON with its checksum, times in UTC. The error matches ErrManifest.
func (m Manifest) Encode() ([]byte, error) {
	if m.Version == 0 {
		m.Version = ManifestVersion
	}
	m = m.normal()
	if err := m.Validate(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(sealed{m, noSum}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if len(b) >= MaxManifestBytes {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrManifest, MaxManifestBytes)
	}
	b = append(b, '\n')
	at := sumPlace.FindSubmatchIndex(b)[2]
	copy(b[at:], sumOf(b, at))
	return b, nil
}

// normal is m with its times in UTC and without the clock readings that only this process understands.
func (m Manifest) normal() Manifest {
	for _, t := range []*time.Time{&m.StartedAt, &m.CompletedAt, &m.VerifiedAt} {
		*t = t.UTC().Round(0)
	}
	return m
}

// Target returns what Remove needs to know.
func (m Manifest) Target() Target {
	t := Target{Path: m.Path, ID: m.ID}
	for _, v := range m.Volumes {
		t.Files = append(t.Files, TargetFile{Name: v.File, StoredBytes: v.StoredSize})
	}
	for _, f := range m.Files {
		t.Files = append(t.Files, TargetFile{Name: f.Name, StoredBytes: f.Size})
	}
	return t
}
