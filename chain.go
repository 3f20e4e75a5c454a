package kvmbackup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Kind says whether a backup, or one volume in it, is complete in itself.
type Kind int

// The kinds. The zero value is invalid, so that a forgotten field is an error and not a full backup.
const (
	KindUnknown Kind = iota
	KindFull
	KindIncremental
)

// Status is where a backup's record is in its life.
type Status int

// The statuses. A record begins as running and ends as completed or failed; a completed one may become delete-pending.
const (
	StatusUnknown Status = iota
	StatusRunning
	StatusCompleted
	StatusFailed
	// StatusDeletePending is a backup that its user has deleted and whose files a live descendant still needs.
	StatusDeletePending
)

// Consistency is what a restored guest finds in its file systems.
type Consistency int

// The consistencies.
const (
	ConsistencyUnknown Consistency = iota
	// ConsistencyCrash is the state after a power cut: all disks at one instant, caches not written.
	ConsistencyCrash
	// ConsistencyFilesystem means that the guest agent had frozen the file systems.
	ConsistencyFilesystem
)

// MaxSideFiles is how many side files a backup can have.
const MaxSideFiles = 64

// maxVolumes is how many volumes a backup can have.
const maxVolumes = 512

// Backup is one restore point of one VM: a folder with one qcow2 file per volume, a manifest and the domain XML.
type Backup struct {
	ID     BackupID `json:"id"`
	VM     VMID     `json:"vm"`
	Domain string   `json:"domain,omitempty"` // libvirt's name for the VM
	// DomainUUID is libvirt's UUID of the VM. It tells VMs apart that had the name one after the other; empty: not known.
	DomainUUID string `json:"domain_uuid,omitempty"`
	Host       string `json:"host,omitempty"` // where it was taken; see Config.Host
	Kind       Kind   `json:"kind"`
	Status     Status `json:"status"`

	ChainID    ChainID        `json:"chain_id"`
	Position   int            `json:"position"`             // 0 is the full
	ParentID   BackupID       `json:"parent_id,omitempty"`  // empty for a full, and for a failed backup, which needs none
	Checkpoint CheckpointName `json:"checkpoint,omitempty"` // empty: untracked

	Repository string `json:"repository"` // the repository's ID
	Path       string `json:"path"`       // VM/STAMP, relative to the repository
	Sequence   int64  `json:"sequence"`   // given by the store, ascending per VM: "newest" means this, never a clock

	StartedAt   time.Time     `json:"started_at"`            // UTC
	CompletedAt time.Time     `json:"completed_at,omitzero"` // UTC; zero until completed
	Transfer    Transfer      `json:"transfer,omitzero"`     // the way it was copied; TransferAuto: not known
	Consistency Consistency   `json:"consistency"`           // what the guest finds
	FrozenFor   time.Duration `json:"frozen_for,omitempty"`  // how long the guest's file systems were frozen
	// When the backup began: one that an I/O error paused since is resumed.
	GuestRan bool           `json:"guest_ran,omitempty"`
	Asked    Asked          `json:"asked,omitzero"`    // for the process that has to finish it after a crash
	Reasons  []Reason       `json:"reasons,omitempty"` // why this kind was chosen, and what was survived
	Error    string         `json:"error,omitempty"`   // why it failed
	Volumes  []VolumeBackup `json:"volumes"`
	// Beside the volumes'; those of earlier versions' records are in the manifest alone.
	Files []SideFile `json:"files,omitempty"`
	// KeyIDs names those for whom a sealed backup's data key is wrapped. The wrapped keys are in the manifest. Empty:
	// not sealed.
	KeyIDs []string `json:"key_ids,omitempty"`

	Pinned       bool          `json:"pinned,omitempty"` // never deleted by retention
	Holds        []Hold        `json:"holds,omitempty"`  // open restore points
	Verification *Verification `json:"verification,omitempty"`
}

// Asked is what a backup's request wanted of what comes after its job; see BackupRequest. Manifests don't have it.
type Asked struct {
	Secrets bool `json:"secrets,omitempty"`
	Digests bool `json:"digests,omitempty"`
}

// VolumeBackup is one volume's part of a backup.
type VolumeBackup struct {
	VolumeID VolumeID `json:"volume_id"`
	Device   string   `json:"device"` // the target at that time, e.g. vda
	Kind     Kind     `json:"kind"`
	File     string   `json:"file"` // a plain name in the backup's folder
	// Relative to the backup's folder: the backing link; empty for a full.
	ParentFile   string `json:"parent_file,omitempty"`
	VirtualSize  int64  `json:"virtual_size"`  // bytes
	StoredSize   int64  `json:"stored_size"`   // bytes allocated in the repository
	DirtyBytes   int64  `json:"dirty_bytes"`   // bytes the job had to copy
	SourceFormat string `json:"source_format"` // qcow2, raw, ...
	// Under which the disk was on its host, e.g. luks; the file's own is FileEncryption.
	Encryption string `json:"encryption,omitempty"`
	// Paths of the disk's image and of those below it when the job began, top first.
	Layers  []string `json:"layers,omitempty"`
	Tracked bool     `json:"tracked"` // the checkpoint has a bitmap on it
	// FileEncryption is how File is encrypted: all volumes of a sealed backup have it, and no other. Empty: it is not.
	FileEncryption Encryption `json:"file_encryption,omitempty"`
	// Compression is that of File's clusters, unless they can't be made smaller. Files of one chain may differ in it.
	Compression Compression `json:"compression,omitempty"`
	// Digest and FileDigest are ALGORITHM:HEX over the bytes that the guest sees, through the chain, and over the bytes of
	// File; empty: none recorded. A sealed volume has no Digest, and always a FileDigest once it is completed. One whose
	// content was hashed on its way has a FileDigest only where it is compressed, until AddDigests.
	Digest     string `json:"digest,omitempty"`
	FileDigest string `json:"file_digest,omitempty"`
}

// SideFile is a small file in a backup's folder, written whole: the domain XML, the firmware's variables, the TPM's
// state.
type SideFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // lower-case hexadecimal
}

// Hold keeps a backup and its ancestors from being removed while somebody uses the files in place.
type Hold struct {
	ID      string    `json:"id"`
	Purpose string    `json:"purpose"`
	Since   time.Time `json:"since"`
}

// Verification is the outcome of the last verification of a backup.
type Verification struct {
	At      time.Time `json:"at"`
	Content bool      `json:"content"` // digests were compared too
	OK      bool      `json:"ok"`
	Problem string    `json:"problem,omitempty"`
}

// Tracked says whether the backup was taken with a checkpoint.
func (b Backup) Tracked() bool { return b.Checkpoint != "" }

// StoredBytes is the sum over the volumes, in bytes allocated in the repository.
func (b Backup) StoredBytes() int64 {
	var n int64
	for _, v := range b.Volumes {
		n += v.StoredSize
	}
	return n
}

// Sealed says whether the backup's files are encrypted under a data key of its own.
func (b Backup) Sealed() bool { return len(b.KeyIDs) > 0 }

// Volume returns the part of the volume with that identity.
func (b Backup) Volume(id VolumeID) (VolumeBackup, bool) {
	for _, v := range b.Volumes {
		if v.VolumeID == id {
			return v, true
		}
	}
	return VolumeBackup{}, false
}

// Validate checks what holds for every record, whatever its status. All problems are joined; each is an ErrInvalid.
func (b Backup) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w backup %s: "+format, append([]any{ErrInvalid, b.ID}, args...)...))
	}
	if _, err := ParseBackupID(string(b.ID)); err != nil {
		errs = append(errs, err)
	}
	if !plainName(string(b.VM)) {
		bad("VM %q is empty or not a plain name", b.VM)
	}
	if !b.Kind.valid() {
		bad("kind is not set")
	}
	if !b.Status.valid() {
		bad("status is not set")
	}
	b.validateChain(bad)
	b.validatePath(bad)
	if _, ok := transferNames[b.Transfer]; !ok {
		bad("%v is no way to copy it", b.Transfer)
	}
	b.validateFiles(bad)
	if b.StartedAt.IsZero() {
		bad("no start time")
	}
	b.validateVolumes(bad)
	b.validateSeal(bad)
	return errors.Join(errs...)
}

func (b Backup) validatePath(bad func(string, ...any)) {
	if dir, stamp := path.Split(b.Path); dir != string(b.VM)+"/" || !plainName(stamp) {
		bad("path %q is not VM/STAMP", b.Path)
	}
}

// plainName says whether a name stays in its folder. What else a repository demands of names is its own to check.
func plainName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

func (b Backup) validateChain(bad func(string, ...any)) {
	if _, err := parseChainID(string(b.ChainID)); err != nil {
		bad("chain ID %q is not a UUID", b.ChainID)
	}
	switch {
	case b.Position < 0:
		bad("position %d is negative", b.Position)
	case b.Kind == KindFull && (b.Position != 0 || b.ParentID != ""):
		bad("a full has position 0 and no parent, not %d and %q", b.Position, b.ParentID)
	case b.Kind == KindIncremental && b.Position == 0:
		bad("an incremental has a position above 0")
	case b.Kind == KindIncremental && b.ParentID == "" && b.Status != StatusFailed:
		bad("an incremental has a parent")
	case b.ParentID == b.ID && b.ID != "":
		bad("it is its own parent")
	}
}

func (b Backup) validateFiles(bad func(string, ...any)) {
	if len(b.Files) > MaxSideFiles {
		bad("%d side files, not up to %d", len(b.Files), MaxSideFiles)
		return
	}
	names := map[string]bool{}
	for _, v := range b.Volumes {
		names[v.File] = true
	}
	for _, f := range b.Files {
		if !plainName(f.Name) || names[f.Name] {
			bad("side file %q is not a plain name or there twice", f.Name)
		}
		sum, err := hex.DecodeString(f.SHA256)
		if f.Size < 0 || err != nil || len(sum) != sha256.Size || f.SHA256 != strings.ToLower(f.SHA256) {
			bad("side file %q: size %d, SHA-256 %q", f.Name, f.Size, f.SHA256)
		}
		names[f.Name] = true
	}
}

func (b Backup) validateVolumes(bad func(string, ...any)) {
	ids, files := map[VolumeID]bool{}, map[string]bool{}
	if n := len(b.Volumes); n == 0 || n > maxVolumes {
		bad("%d volumes, not 1 to %d", n, maxVolumes)
		return
	}
	for _, v := range b.Volumes {
		if !plainName(string(v.VolumeID)) || ids[v.VolumeID] {
			bad("volume ID %q is empty, no plain name, or there twice", v.VolumeID)
		}
		if v.Device != "" && !plainName(v.Device) {
			bad("volume %s: device %q is not a plain name", v.VolumeID, v.Device)
		}
		if !plainName(v.File) || files[v.File] {
			bad("volume %s: file %q is not a plain name or there twice", v.VolumeID, v.File)
		}
		ids[v.VolumeID], files[v.File] = true, true
		if v.VirtualSize < 0 || v.StoredSize < 0 || v.DirtyBytes < 0 {
			bad("volume %s: negative size", v.VolumeID)
		}
		if (v.Kind == KindIncremental) != (v.ParentFile != "") || !v.Kind.valid() {
			bad("volume %s: kind %v with parent file %q", v.VolumeID, v.Kind, v.ParentFile)
		}
		if err := v.Compression.Validate(); err != nil {
			bad("volume %s: %v", v.VolumeID, err)
		}
		if v.Kind == KindIncremental && b.Kind == KindFull {
			bad("volume %s: incremental in a full", v.VolumeID)
		}
	}
}

// validateSeal refuses what is sealed in part, and a sealed volume of which something can be told without its key.
func (b Backup) validateSeal(bad func(string, ...any)) {
	if len(b.KeyIDs) > maxKeyIDs {
		bad("%d key IDs, not up to %d", len(b.KeyIDs), maxKeyIDs)
		return
	}
	for i, id := range b.KeyIDs {
		if id == "" || len(id) > maxKeyID || Printable(id) != id || slices.Contains(b.KeyIDs[:i], id) {
			bad("key ID %q is empty, too long, not printable or there twice", id)
		}
	}
	for _, v := range b.Volumes {
		switch {
		case !v.FileEncryption.valid():
			bad("volume %s: file encryption %q", v.VolumeID, v.FileEncryption)
		case (v.FileEncryption != "") != b.Sealed():
			bad("volume %s: file encryption %q in a backup with %d key IDs", v.VolumeID, v.FileEncryption, len(b.KeyIDs))
		case b.Sealed() && v.Digest != "":
			bad("volume %s: a sealed volume's content has a digest in the clear", v.VolumeID)
		}
	}
}

// ChainOf returns the backup and its ancestors, the full first. It fails with ErrInvalid, naming the record, when a
// parent is missing, of another VM or chain, at a wrong position, or the links form a circle, and with the store's
// errors.
func ChainOf(ctx context.Context, s Store, id BackupID) ([]Backup, error) {
	b, err := s.Backup(ctx, id)
	if err != nil {
		return nil, err
	}
	chain := []Backup{b}
	for b.ParentID != "" {
		p, err := s.Backup(ctx, b.ParentID)
		if errors.Is(err, ErrNotFound) {
			return nil, fmt.Errorf("%w chain: backup %s names the parent %s, which has no record: import it from the "+
				"repository, or delete %s by force, with all that stands on it",
				ErrInvalid, b.ID, b.ParentID, b.ID)
		}
		if err != nil {
			return nil, err
		}
		if err := b.ValidLink(p); err != nil {
			return nil, err
		}
		chain = append([]Backup{p}, chain...)
		b = p
	}
	if b.Kind != KindFull {
		return nil, fmt.Errorf("%w chain: backup %s is %v and has no parent", ErrInvalid, b.ID, b.Kind)
	}
	return chain, nil
}

// ValidLink returns ErrInvalid unless the backup can stand on the parent: same VM, chain and repository, the next
// position. Positions descend, so no circle passes it.
func (b Backup) ValidLink(parent Backup) error {
	switch {
	case parent.VM != b.VM, parent.ChainID != b.ChainID, parent.Repository != b.Repository:
		return fmt.Errorf("%w chain: backup %s and its parent %s differ in VM, chain or repository", ErrInvalid, b.ID,
			parent.ID)
	case parent.Position != b.Position-1:
		return fmt.Errorf("%w chain: backup %s at position %d has a parent %s at %d", ErrInvalid, b.ID, b.Position,
			parent.ID, parent.Position)
	}
	return nil
}

// BackingLink is the backing link to a file of the backup, from the folder of another one of the same VM.
func (b Backup) BackingLink(file string) string {
	return fmt.Sprintf("../%s/%s", path.Base(b.Path), file)
}

// ParentPath returns the folder of the backup that b is built on, VM/STAMP, as b's backing links name it. It is empty
// without any.
func (b Backup) ParentPath() string {
	for _, v := range b.Volumes {
		if v.ParentFile != "" {
			return fmt.Sprintf("%s/%s", b.VM, path.Base(path.Dir(v.ParentFile)))
		}
	}
	return ""
}
