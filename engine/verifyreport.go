package engine

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// ProblemCode says what kind of damage a verification found. Codes are stable.
type ProblemCode string

// The kinds of damage.
const (
	ProblemManifest ProblemCode = "manifest"  // backup.json is missing, damaged or not what the record says
	ProblemMissing  ProblemCode = "missing"   // a file is not there
	ProblemExtra    ProblemCode = "extra"     // a file is there that the manifest doesn't name: a note, no damage
	ProblemLink     ProblemCode = "link"      // size, backing file or data file is not what the manifest says
	ProblemCheck    ProblemCode = "structure" // qemu-img check found corruption
	ProblemContent  ProblemCode = "content"   // a digest differs
	ProblemChain    ProblemCode = "chain"     // the records of the chain contradict each other
	ProblemSideFile ProblemCode = "side-file" // domain.xml, nvram or tpm differs from its checksum
)

// Problem is one finding of a verification.
type Problem struct {
	Code     ProblemCode        `json:"code"`
	Backup   kvmbackup.BackupID `json:"backup"` // whose folder it is in
	VolumeID kvmbackup.VolumeID `json:"volume_id,omitempty"`
	File     string             `json:"file,omitempty"` // relative to the repository
	Detail   string             `json:"detail"`
	// Affects lists the backups that can't be trusted because of it: the one whose folder it is, and its descendants that
	// stand on the damaged file. A note affects none.
	Affects []kvmbackup.BackupID `json:"affects,omitempty"`
}

// VerifyReport is what a verification found.
type VerifyReport struct {
	Backup  kvmbackup.BackupID `json:"backup"`
	Content bool               `json:"content"` // digests were compared: false where there was none
	Digests int                `json:"digests"` // how many there were to compare
	// NoDigests says that the content was asked for, and that neither the backup nor what it stands on has a digest on
	// record, so that nothing is known of it; see AddDigests.
	NoDigests bool      `json:"no_digests,omitempty"`
	Files     int       `json:"files"` // how many files were checked
	Problems  []Problem `json:"problems"`
	// MissingKeys are the key IDs of sealed backups that could not be opened: of these their files' bytes were compared
	// with their digests, and neither the manifests' MACs nor the structure within was looked at.
	MissingKeys []string `json:"missing_keys,omitempty"`
	// Notes are what stands in the way of no restore: files in a backup's folder that are not its own.
	Notes []Problem `json:"notes,omitempty"`

	// Complete says that the verification came to its end and its outcome is on record.
	Complete bool `json:"complete"`
}

// OK says whether the verification came to its end and found no damage. There may be notes. It is false beside any
// error, and of a report that Verify didn't make.
func (r VerifyReport) OK() bool { return r.Complete && len(r.Problems) == 0 }

// String returns the report as lines for people.
func (r VerifyReport) String() string {
	var s strings.Builder
	switch {
	case r.OK():
		fmt.Fprintf(&s, "%s: ok, %d files", r.Backup, r.Files)
	case len(r.Problems) > 0:
		fmt.Fprintf(&s, "%s: damaged, %d files", r.Backup, r.Files)
	default:
		fmt.Fprintf(&s, "%s: not verified", r.Backup)
	}
	switch {
	case r.Content:
		fmt.Fprintf(&s, ", %d digests", r.Digests)
	case r.NoDigests:
		s.WriteString("; content not compared: no digests are on record")
	}
	if len(r.MissingKeys) > 0 {
		fmt.Fprintf(&s, "; sealed files not opened: it takes an identity for one of %s", strings.Join(r.MissingKeys, ", "))
	}
	s.WriteString("\n")
	for _, p := range r.Problems {
		fmt.Fprintf(&s, "  %s: %s\n", p.Code, p.Detail)
	}
	for _, p := range r.Notes {
		fmt.Fprintf(&s, "  note, no damage: %s: %s\n", p.Code, p.Detail)
	}
	return s.String()
}

// add reports damage to what every descendant needs, or only those that stand on the volume's file.
func (v *verifier) add(
	ctx context.Context, code ProblemCode, b kvmbackup.Backup, vol kvmbackup.VolumeID, file, detail string,
) error {
	affected, err := v.e.affected(ctx, b.ID, vol)
	if err != nil {
		return err
	}
	v.report.Problems = append(v.report.Problems, Problem{
		Code: code, Backup: b.ID, VolumeID: vol, File: fileOf(b, file), Detail: kvmbackup.Printable(detail),
		Affects: affected,
	})
	return nil
}

// addLocal reports what no descendant needs.
func (v *verifier) addLocal(code ProblemCode, b kvmbackup.Backup, file, detail string) {
	v.report.Problems = append(v.report.Problems, Problem{Code: code, Backup: b.ID, File: fileOf(b, file),
		Detail: kvmbackup.Printable(detail), Affects: []kvmbackup.BackupID{b.ID}})
}

func fileOf(b kvmbackup.Backup, name string) string {
	if name == "" {
		return ""
	}
	return path.Join(b.Path, name)
}

// affected lists a backup and its descendants, as far as they stand on the volume's file; an empty volume means all
// files.
func (e *Engine) affected(
	ctx context.Context, id kvmbackup.BackupID, vol kvmbackup.VolumeID,
) ([]kvmbackup.BackupID, error) {
	ids, todo := []kvmbackup.BackupID{}, []kvmbackup.BackupID{id}
	for len(todo) > 0 {
		next := todo[0]
		todo = todo[1:]
		if slices.Contains(ids, next) {
			continue
		}
		ids = append(ids, next)
		children, err := e.cfg.Store.Children(ctx, next)
		if err != nil {
			return nil, err
		}
		for _, c := range children {
			part, ok := c.Volume(vol)
			if vol == "" || ok && part.Kind == kvmbackup.KindIncremental {
				todo = append(todo, c.ID)
			}
		}
	}
	return ids, nil
}
