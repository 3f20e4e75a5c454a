package repository

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// ManifestVersion is the latest version of the manifest that this package reads. It writes 1 for what isn't sealed, so
// that earlier releases read it.
const ManifestVersion = sealedVersion

// The versions. An earlier release can't judge a sealed backup.
const (
	plainVersion  = 1
	sealedVersion = 2
)

// MaxManifestBytes is the size beyond which a manifest is neither written nor read.
const MaxManifestBytes = 4 << 20

// Manifest is a backup's backup.json: all that is needed to verify, restore and list the backup without any database.
// It is a plain value; what its slices hold is shared by copies.
type Manifest struct {
	// Backup is the record, as far as the folder has it: a manifest knows of no Host, Asked, GuestRan, Error, Holds,
	// Verification and Layers, and of FrozenFor no less than milliseconds. One that was read is completed, and in the
	// Repository that has read it.
	kvmbackup.Backup
	VerifiedAt time.Time // when the last verification that found nothing wrong began, in UTC; zero: there was none
	// Keys are the wrapped data keys of a sealed backup, and name its KeyIDs. MAC is what Authenticate compares, and
	// ParentMAC what StandsOn does: its parent's MAC, empty on a plain parent. Both are in hexadecimal.
	Keys           []kvmbackup.WrappedKey
	MAC, ParentMAC string
}

func (m Manifest) version() int {
	if len(m.Keys) > 0 {
		return sealedVersion
	}
	return plainVersion
}

// WithKeys returns the manifest with these wrapped keys in place of its own.
func (m Manifest) WithKeys(keys []kvmbackup.WrappedKey) Manifest {
	m.Keys, m.KeyIDs = keys, nil
	for _, k := range keys {
		m.KeyIDs = append(m.KeyIDs, k.KeyID)
	}
	return m
}

// NewManifest returns the manifest of a backup. Details of reasons are made printable and cut to what
// a manifest can have: tools and guests may say more, and other things than text.
func NewManifest(b kvmbackup.Backup) Manifest {
	m := Manifest{Backup: b}
	if b.Verification != nil && b.Verification.OK {
		m.VerifiedAt = b.Verification.At
	}
	m.Reasons = slices.Clone(b.Reasons)
	for i := range m.Reasons {
		m.Reasons[i].Detail = cutDetail(m.Reasons[i].Detail)
	}
	return m
}

func cutDetail(s string) string { return cutText(kvmbackup.Printable(cutText(s))) }

func cutText(s string) string {
	const cut = " ..."
	if len(s) > MaxDetailBytes {
		s = s[:MaxDetailBytes-len(cut)] + cut
	}
	return strings.ToValidUTF8(s, "")
}

// DecodeManifest reads a manifest and compares its bytes with its checksum. Fields that this version doesn't know are
// ignored. The error matches ErrManifestVersion for a later version, else ErrManifest: too large, without its checksum,
// not JSON, or not valid by Validate. What is decoded takes memory in proportion to the limits, whatever b is made of.
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
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if err := d.validate(); err != nil {
		return Manifest{}, err
	}
	return d.manifest(), nil
}

// noSum stands where the checksum will be, or was, while it is computed.
const noSum = "0000000000000000000000000000000000000000000000000000000000000000"

// maxTail is where the document's last field is looked for, from its end.
const maxTail = 1 << 10

// sumPlace finds the checksum's digits in the document's last field.
var sumPlace = regexp.MustCompile(`[{,\s]"checksum"\s*:\s*"([0-9a-f]{64})"\s*}\s*\z`)

// checkSum comes before anything else is believed, the version too: the checksum is the same in every version.
func checkSum(b []byte) error {
	at := findSum(b)
	if at < 0 {
		return fmt.Errorf("%w: it doesn't end with its checksum, so it was cut off, damaged or changed: %s",
			ErrManifest, sumHelp)
	}
	has, want := sumOf(b, at), string(b[at:at+len(noSum)])
	if has != want {
		return fmt.Errorf("%w: its sha256 is %s, its checksum says %s, so it was damaged or changed: %s", ErrManifest,
			has, want, sumHelp)
	}
	return nil
}

// findSum returns where the checksum's digits are, or -1.
func findSum(b []byte) int {
	begin := max(len(b)-maxTail, 0)
	place := sumPlace.FindSubmatchIndex(b[begin:])
	if place == nil {
		return -1
	}
	return begin + place[2]
}

const sumHelp = "put a copy of the file in its place, or look through it and compute its checksum again as " +
	"docs/format.md says"

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
	d := m.document()
	if err := d.validate(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(summed{d, noSum}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if len(b) >= MaxManifestBytes {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrManifest, MaxManifestBytes)
	}
	b = append(b, '\n')
	at := findSum(b)
	copy(b[at:], sumOf(b, at))
	return b, nil
}

// files are all files but the manifest.
func (m Manifest) files() []ownFile {
	files := volumeFiles(m.Backup)
	for _, f := range m.Files {
		files = append(files, ownFile{f.Name, f.Size})
	}
	return files
}
