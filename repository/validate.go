package repository

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/kvmbackup/kvmbackup"
)

// Validate says what is wrong with m, joined, up to a limit; each matches ErrManifest. It looks at m alone, at no file.
func (m Manifest) Validate() error {
	c := &checker{}
	if !c.limits(m) {
		return errors.Join(c.errs...)
	}
	c.that(m.Version == ManifestVersion || m.Version == 0, "version %d", m.Version)
	c.err("id", validID(m.ID))
	c.err("vm", validVM(m.VM))
	c.text("domain", m.Domain)
	c.text("domain_uuid", m.DomainUUID)
	c.err("chain_id", kvmbackup.CheckName("chain id", m.ChainID, kvmbackup.MaxNameBytes))
	c.path("path", m.Path, m.VM)
	c.lineage(m)
	c.text("checkpoint", m.Checkpoint)
	c.that(!m.Tracked || m.Checkpoint != "", "tracked without a checkpoint")
	c.that(m.Consistency == ConsistencyCrash || m.Consistency == ConsistencyFilesystem, "consistency %.200q", m.Consistency)
	for _, r := range m.Reasons {
		c.text("reason", r.Code)
		c.that(utf8.ValidString(r.Detail) && len(r.Detail) <= MaxDetailBytes, "reason %.200q: detail is too long or not UTF-8", r.Code)
		c.text("reason's volume_id", r.VolumeID)
	}
	c.files(m)
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
func (c *checker) path(field, path, vm string) folder {
	f, err := parsePath(path)
	c.err(field, err)
	c.that(err != nil || f.vm == vm, "%s %.200q is not of VM %.200q", field, path, vm)
	return f
}

// lineage checks that kind, position and parent agree.
func (c *checker) lineage(m Manifest) {
	switch m.Kind {
	case KindFull:
		c.that(m.Position == 0 && m.ParentID == "" && m.ParentPath == "", "full with a position or a parent")
	case KindIncremental:
		c.that(m.Position > 0, "incremental at position %d", m.Position)
		c.err("parent_id", validID(m.ParentID))
		c.path("parent_path", m.ParentPath, m.VM)
		c.that(m.ParentID != m.ID && m.ParentPath != m.Path, "incremental is its own parent")
	default:
		c.that(false, "kind %.200q", m.Kind)
	}
}

// files checks the volumes and side files. Names are compared without case: some shares don't tell cases apart.
func (c *checker) files(m Manifest) {
	ids, names := map[string]bool{}, map[string]bool{strings.ToLower(ManifestName): true}
	incremental := 0
	for _, v := range m.Volumes {
		c.that(!ids[v.VolumeID], "volume %.200q twice", v.VolumeID)
		ids[v.VolumeID] = true
		c.file(v.File, names)
		c.volume(m, v)
		if v.Kind == KindIncremental {
			incremental++
		}
	}
	c.that(len(m.Volumes) > 0, "no volumes")
	c.that(m.Kind == KindFull == (incremental == 0), "%s backup with %d incremental volumes", m.Kind, incremental)
	for _, f := range m.Files {
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

func (c *checker) volume(m Manifest, v Volume) {
	c.err("volume_id", kvmbackup.CheckName("volume id", v.VolumeID, kvmbackup.MaxNameBytes))
	if v.Device != "" {
		c.err("device", kvmbackup.CheckName("device", v.Device, kvmbackup.MaxNameBytes))
	}
	c.text("source_format", v.SourceFormat)
	c.text("encryption", v.Encryption)
	for _, n := range []int64{v.VirtualSize, v.StoredSize, v.DirtyBytes} {
		c.that(n >= 0 && n <= MaxVolumeBytes, "volume %.200q: size %d", v.VolumeID, n)
	}
	c.that(v.Digest.valid() && v.FileDigest.valid(), "volume %.200q: digest", v.VolumeID)
	switch v.Kind {
	case KindFull:
		c.that(v.ParentFile == "", "volume %.200q: full with a parent file", v.VolumeID)
	case KindIncremental:
		c.parentFile(m, v)
	default:
		c.that(false, "volume %.200q: kind %.200q", v.VolumeID, v.Kind)
	}
}

// parentFile checks that the backing link is exactly ../STAMP/FILE, with the stamp of the backup's parent.
func (c *checker) parentFile(m Manifest, v Volume) {
	rest, ok := strings.CutPrefix(v.ParentFile, "../")
	stamp, file, ok2 := strings.Cut(rest, "/")
	_, parent, _ := strings.Cut(m.ParentPath, "/")
	c.that(ok && ok2 && stamp == parent, "volume %.200q: parent_file %.300q is not ../%.64s/FILE", v.VolumeID, v.ParentFile, parent)
	if ok && ok2 {
		c.err("parent_file", kvmbackup.ValidFileName(file))
	}
}

func (d *Digest) valid() bool {
	return d == nil || d.Algorithm != "" && len(d.Algorithm) <= maxAlgorithms && len(d.Value) <= maxHex && isHex(d.Value)
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && s != "" && s == strings.ToLower(s)
}
