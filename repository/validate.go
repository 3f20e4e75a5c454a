package repository

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kvmbackup/kvmbackup"
)

// Validate says what is wrong with m, joined, up to a limit; each matches ErrManifest. It looks at m alone, at no file.
func (m Manifest) Validate() error { return m.document().validate() }

// validate checks what only the folder needs first, as that bounds all that there is; then what holds for every record.
func (d document) validate() error {
	c := &checker{}
	if !c.limits(d) {
		return errors.Join(c.errs...)
	}
	c.sealed(d)
	c.err("id", validID(d.ID))
	c.err("vm", validVM(string(d.VM)))
	c.text("domain", d.Domain)
	c.text("domain_uuid", d.DomainUUID)
	c.err("chain_id", kvmbackup.ValidName("chain id", string(d.ChainID)))
	c.path("path", d.Path, d.VM)
	c.parent(d)
	c.text("checkpoint", string(d.Checkpoint))
	c.that(!d.Tracked || d.Checkpoint != "", "tracked without a checkpoint")
	for _, r := range d.Reasons {
		c.text("reason", string(r.Code))
		c.that(utf8.ValidString(r.Detail) && len(r.Detail) <= MaxDetailBytes,
			"reason %.200q: detail is too long or not UTF-8", r.Code)
		c.text("reason's volume_id", string(r.VolumeID))
	}
	c.files(d)
	if len(c.errs) == 0 {
		c.record(d)
	}
	return errors.Join(c.errs...)
}

// checker gathers what is wrong.
type checker struct{ errs []error }

func (c *checker) that(ok bool, format string, args ...any) {
	if !ok && len(c.errs) < maxErrors {
		c.errs = append(c.errs, fmt.Errorf("%w: %s", ErrManifest, fmt.Sprintf(format, args...)))
	}
}

func (c *checker) err(field string, err error) {
	if err != nil && len(c.errs) < maxErrors {
		c.errs = append(c.errs, fmt.Errorf("%w: %s: %w", ErrManifest, field, err))
	}
}

func (c *checker) text(field, s string) {
	c.that(len(s) <= maxText && utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0,
		"%s: too long, not UTF-8 or with control characters", field)
}

// path checks a path VM/STAMP, and that it is the given VM's.
func (c *checker) path(field, path string, vm kvmbackup.VMID) {
	f, err := parsePath(path)
	c.err(field, err)
	c.that(err != nil || f.vm == string(vm), "%s %.200q is not of VM %.200q", field, path, vm)
}

// parent checks the folder that an incremental is built on; that there is one is the record's to say.
func (c *checker) parent(d document) {
	if d.ParentID != "" {
		c.err("parent_id", validID(d.ParentID))
		c.path("parent_path", d.ParentPath, d.VM)
	}
	c.that(d.ParentID != "" || d.ParentPath == "", "parent_path without parent_id")
	c.that(d.ParentPath == "" || d.ParentPath != d.Path, "incremental is its own parent")
}

// record checks what holds for every record.
func (c *checker) record(d document) {
	m := d.manifest()
	c.that(m.Consistency != kvmbackup.ConsistencyUnknown, "consistency %.200q", d.Consistency)
	err := m.Backup.Validate()
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			c.err("record", err)
		}
	}
}

// files checks the volumes and side files. Names are compared without case: some shares don't tell cases apart.
func (c *checker) files(d document) {
	names := map[string]bool{strings.ToLower(ManifestName): true}
	incremental := 0
	for _, v := range d.Volumes {
		c.file(v.File, names)
		c.volume(d, v)
		if kindOf(v.Kind) == kvmbackup.KindIncremental {
			incremental++
		}
	}
	c.that(kindOf(d.Kind) != kvmbackup.KindIncremental || incremental > 0, "incremental without an incremental volume")
	for _, f := range d.Files {
		c.file(f.Name, names)
		c.that(f.Size >= 0 && f.Size <= MaxSideFileBytes, "file %.200q: size %d", f.Name, f.Size)
		c.that(isHex(f.SHA256) && len(f.SHA256) == 64, "file %.200q: sha256 %.80q", f.Name, f.SHA256)
	}
}

func (c *checker) file(name string, names map[string]bool) {
	c.err("file", kvmbackup.ValidFileName(name))
	c.that(!names[strings.ToLower(name)], "file name %.200q twice or reserved", name)
	names[strings.ToLower(name)] = true
}

func (c *checker) volume(d document, v volumeJSON) {
	c.err("volume_id", kvmbackup.ValidName("volume id", string(v.VolumeID)))
	if v.Device != "" {
		c.err("device", kvmbackup.ValidName("device", v.Device))
	}
	c.text("source_format", v.SourceFormat)
	c.text("encryption", v.Encryption)
	for _, n := range []int64{v.VirtualSize, v.StoredSize, v.DirtyBytes} {
		c.that(n >= 0 && n <= MaxVolumeBytes, "volume %.200q: size %d", v.VolumeID, n)
	}
	c.that(v.Digest.valid() && v.FileDigest.valid(), "volume %.200q: digest", v.VolumeID)
	if v.ParentFile != "" {
		c.parentFile(d, v)
	}
}

// sealed checks what is there of a sealed backup, and only of one. That its volumes are is the record's to say.
func (c *checker) sealed(d document) {
	sealed := len(d.Keys) > 0
	c.that(d.Version == map[bool]int{false: plainVersion, true: sealedVersion}[sealed], "version %d with %d keys",
		d.Version, len(d.Keys))
	for _, k := range d.Keys {
		c.key(k.ID, k.Wrapped)
	}
	c.that(!sealed && d.MAC == "" || sealed && isHex(d.MAC) &&
		len(d.MAC) == 64, "mac %.80q with %d keys", d.MAC, len(d.Keys))
	c.that(d.ParentMAC == "" || sealed && d.ParentID != "" && isHex(d.ParentMAC) && len(d.ParentMAC) == 64,
		"parent_mac %.80q with %d keys and the parent %.80q", d.ParentMAC, len(d.Keys), d.ParentID)
	for _, v := range d.Volumes {
		c.that(!sealed || v.FileDigest != nil, "volume %.200q: sealed without a file_digest", v.VolumeID)
	}
}

func (c *checker) key(id string, wrapped []byte) {
	c.that(id != "" && len(id) <= maxKeyID && kvmbackup.Printable(id) == id,
		"key %.200q: empty, too long or not printable", id)
	c.that(len(wrapped) > 0 && len(wrapped) <= maxWrapped, "key %.200q: wrapped in %d bytes", id, len(wrapped))
}

// parentFile checks that the backing link is exactly the one to a file of the backup's parent.
func (c *checker) parentFile(d document, v volumeJSON) {
	file := path.Base(v.ParentFile)
	c.err("parent_file", kvmbackup.ValidFileName(file))
	c.that(v.ParentFile == kvmbackup.Backup{Path: d.ParentPath}.BackingLink(file),
		"volume %.200q: parent_file %.300q is not of %.200q", v.VolumeID, v.ParentFile, d.ParentPath)
}

func (d *digestJSON) valid() bool {
	return d == nil || d.Algorithm != "" && len(d.Algorithm) <= maxAlgorithms && len(d.Value) <= maxHex && isHex(d.Value)
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && s != "" && s == strings.ToLower(s)
}
