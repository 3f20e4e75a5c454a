package engine

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
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

// VerifyOptions says how far a verification goes.
type VerifyOptions struct {
	// Content also computes the digests that were recorded, over all of the volumes' bytes, and compares them.
	Content bool
	// Open returns ErrKey, before anything is looked at, where the chain has a sealed backup that the Keys don't open. By
	// default what needs no key is verified: see VerifyReport.MissingKeys.
	Open bool
}

// Verify checks that a completed backup can be restored: every member of its chain is there, each backing link is
// exactly the manifest's, no file has a backing or data file that it should not, and qemu-img check finds nothing. With
// Content it also computes the digests that were recorded and compares them; where there are none the report has
// NoDigests. The outcome is recorded with its time, and damage with every backup that it
// affects.
//
// Of sealed backups the files' bytes are always compared with their digests. Who has their keys also finds every change
// to their manifests.
//
// Damage is in the report's Problems, and makes the error an ErrDamaged; other errors mean that nothing is known. A
// file that is in a folder and not in its manifest is no damage, as the backup restores all the same: it is in the
// report's Notes. Verify takes the VM's lease.
func (e *Engine) Verify(ctx context.Context, id kvmbackup.BackupID, opts VerifyOptions) (VerifyReport, error) {
	o, _, err := e.find(ctx, "verify", id)
	if err != nil {
		return VerifyReport{}, err
	}
	v := &verifier{op: o, report: VerifyReport{Backup: id, Content: opts.Content, Problems: []Problem{}},
		compared: map[string]bool{}, ring: keyring{}, open: opts.Open}
	err = o.do(ctx, e.needImages("verify"), func(ctx context.Context) error {
		b, err := e.cfg.Store.Backup(ctx, id) // it may have been deleted while the VM was busy
		if err != nil {
			return err
		}
		if b.Status != kvmbackup.StatusCompleted {
			return fmt.Errorf("%w: backup %s is %v", kvmbackup.ErrStatus, id, b.Status)
		}
		if err := v.verify(ctx, b); err != nil {
			return err
		}
		v.report.Content = v.report.Digests > 0
		o.step("record")
		if err := v.record(ctx); err != nil {
			return err
		}
		v.report.Complete = true
		if !v.report.OK() {
			return fmt.Errorf("%w: %d problems, the first: %s", kvmbackup.ErrDamaged, len(v.report.Problems),
				v.report.Problems[0].Detail)
		}
		summary, _, _ := strings.Cut(v.report.String(), "\n")
		o.emit(Event{Type: EventVerified, Backup: &b, Detail: summary})
		return nil
	})
	return v.report, err
}

// record writes the outcome down, and what was found of other backups with those: nothing may be built on them, and
// none may take a whole one's place in retention, just because they were not asked for.
func (v *verifier) record(ctx context.Context) error {
	outcome := kvmbackup.Verification{At: v.e.now().Truncate(time.Microsecond), Content: v.report.Content,
		OK: len(v.report.Problems) == 0}
	if !outcome.OK {
		outcome.Problem = v.report.Problems[0].Detail
	}
	err := v.verified(ctx, v.report.Backup, outcome)
	told := map[kvmbackup.BackupID]bool{v.report.Backup: true}
	for _, p := range v.report.Problems {
		outcome.Problem = p.Detail
		for _, id := range p.Affects {
			if err == nil && !told[id] {
				told[id] = true
				err = v.affectedBy(ctx, id, outcome)
			}
		}
	}
	return err
}

// verified records what a verification has found of a backup.
func (o *op) verified(ctx context.Context, id kvmbackup.BackupID, found kvmbackup.Verification) error {
	return o.e.cfg.Store.Annotate(ctx, o.lease(), id, kvmbackup.Annotation{Verification: &found})
}

// affectedBy is verified for what stands on a backup with damage. A running or failed one is no backup yet, or none.
func (o *op) affectedBy(ctx context.Context, id kvmbackup.BackupID, found kvmbackup.Verification) error {
	if err := o.verified(ctx, id, found); !errors.Is(err, kvmbackup.ErrStatus) {
		return err
	}
	return nil
}

// verifier is one verification under way.
type verifier struct {
	*op
	report   VerifyReport
	compared map[string]bool // digests, each once
	ring     keyring
	open     bool                 // what is sealed has to be opened
	parent   *repository.Manifest // of the member before; nil: there is none that can be read
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

func (v *verifier) verify(ctx context.Context, b kvmbackup.Backup) error {
	v.step("read chain")
	chain, err := kvmbackup.ChainOf(ctx, v.e.cfg.Store, b.ID)
	if errors.Is(err, kvmbackup.ErrInvalid) {
		return v.add(ctx, ProblemChain, b, "", "", kvmbackup.ErrorText(err))
	}
	if err != nil {
		return err
	}
	v.report.NoDigests = v.report.Content && !slices.ContainsFunc(chain, hasDigests)
	if v.open {
		ring, err := v.e.verifyMembers(ctx, chain)
		switch {
		case errors.Is(err, kvmbackup.ErrKey):
			return err
		case err == nil:
			v.ring = ring
		}
	}
	for _, member := range chain {
		if member.Repository != v.e.cfg.Repository.ID() {
			return fmt.Errorf("%w: backup %s is in %q", kvmbackup.ErrOtherRepository, member.ID, member.Repository)
		}
		if err := v.folder(ctx, member); err != nil {
			return err
		}
	}
	v.step("verify volumes")
	ctx = withTally(ctx, v.tally(digestsOf(b, func(vol kvmbackup.VolumeBackup) int64 { return v.toRead(chain, vol) })))
	for _, vol := range b.Volumes {
		if err := v.volume(ctx, chain, vol); err != nil {
			return err
		}
	}
	return nil
}

func hasDigests(b kvmbackup.Backup) bool {
	return slices.ContainsFunc(b.Volumes, func(v kvmbackup.VolumeBackup) bool {
		return v.Digest != "" || v.FileDigest != ""
	})
}

// toRead is about how much is read of a volume.
func (v *verifier) toRead(chain []kvmbackup.Backup, vol kvmbackup.VolumeBackup) int64 {
	layers, err := layersOf(chain, vol.VolumeID, v.e.cfg.Repository, v.ring)
	if err != nil {
		return 0 // it is a problem, which is reported
	}
	bytes := storedIn(layers)
	for _, l := range layers {
		if l.volume.FileDigest != "" && (v.report.Content || l.volume.FileEncryption != "") {
			bytes += l.volume.StoredSize
		}
	}
	if vol.Digest != "" && v.report.Content {
		bytes += vol.VirtualSize
	}
	return bytes
}

// folder compares one member's folder with its manifest and its record.
func (v *verifier) folder(ctx context.Context, b kvmbackup.Backup) error {
	v.step("verify folder " + b.Path)
	parent := v.parent
	v.parent = nil
	m, err := v.e.cfg.Repository.ReadManifest(ctx, b.Path)
	if err != nil {
		if err = repositoryError(err); errors.Is(err, kvmbackup.ErrMissingFile) || errors.Is(err, kvmbackup.ErrDamaged) {
			return v.add(ctx, ProblemManifest, b, "", repository.ManifestName, kvmbackup.ErrorText(err))
		}
		return err
	}
	if err := ofRecord(m.Backup, b); err != nil {
		return v.add(ctx, ProblemManifest, b, "", repository.ManifestName, kvmbackup.ErrorText(err))
	}
	if v.parent = &m; parent != nil {
		if err := m.StandsOn(*parent); err != nil {
			return v.add(ctx, ProblemManifest, b, "", repository.ManifestName, kvmbackup.ErrorText(err))
		}
	}
	if err := v.unlock(ctx, m); err != nil {
		return err
	}
	files, err := v.e.cfg.Repository.Files(ctx, b.Path)
	if err != nil {
		return err
	}
	named := map[string]bool{repository.ManifestName: true}
	for _, vol := range b.Volumes {
		named[vol.File] = true
	}
	for _, f := range m.Files {
		named[f.Name] = true
		if err := v.sideFile(ctx, b, f); err != nil {
			return err
		}
	}
	for _, f := range files {
		if !named[f.Name] {
			v.report.Notes = append(v.report.Notes, Problem{Code: ProblemExtra, Backup: b.ID, File: fileOf(b, f.Name),
				Detail: kvmbackup.Printable(fmt.Sprintf("%s/%s is not in the manifest; move it away: the folder "+
					"can't be removed with it", b.Path, f.Name))})
		}
	}
	return nil
}

// unlock opens a sealed backup, if the Keys do.
func (v *verifier) unlock(ctx context.Context, m repository.Manifest) error {
	if !m.Sealed() {
		return nil
	}
	key, known := v.ring[m.ID]
	var err error
	if known {
		err = repositoryError(m.Authenticate(key))
	} else {
		key, err = v.e.unlock(ctx, m)
	}
	switch {
	case err == nil:
		v.ring[m.ID] = key
	case errors.Is(err, kvmbackup.ErrDamaged):
		return v.add(ctx, ProblemManifest, m.Backup, "", repository.ManifestName, kvmbackup.ErrorText(err))
	case errors.Is(err, kvmbackup.ErrKey):
		for _, id := range m.KeyIDs {
			if !slices.Contains(v.report.MissingKeys, id) {
				v.report.MissingKeys = append(v.report.MissingKeys, id)
			}
		}
	default:
		return err
	}
	return nil
}

// sideFile is needed by no descendant.
func (v *verifier) sideFile(ctx context.Context, b kvmbackup.Backup, f kvmbackup.SideFile) error {
	_, err := v.e.readSideFile(ctx, b.Path, f)
	switch {
	case errors.Is(err, kvmbackup.ErrMissingFile):
		v.addLocal(ProblemMissing, b, f.Name, kvmbackup.ErrorText(err))
	case errors.Is(err, kvmbackup.ErrDamaged):
		v.addLocal(ProblemSideFile, b, f.Name, kvmbackup.ErrorText(err))
	default:
		return err
	}
	return nil
}

// volume checks one volume's files from the newest down, and then its content.
func (v *verifier) volume(ctx context.Context, chain []kvmbackup.Backup, vol kvmbackup.VolumeBackup) error {
	b := chain[len(chain)-1]
	layers, err := layersOf(chain, vol.VolumeID, v.e.cfg.Repository, v.ring)
	if err != nil {
		return v.add(ctx, ProblemChain, b, vol.VolumeID, "", kvmbackup.ErrorText(err))
	}
	defer closeLayers(layers)
	errs := v.e.openErrors(ctx, layers)
	var opened, sound []layer
	for i, l := range layers {
		if errs[i] != nil {
			continue
		}
		damaged, err := v.sealed(ctx, l)
		if err != nil {
			return err
		}
		if damaged {
			errs[i] = errReported
			continue
		}
		opened = append(opened, l)
	}
	headers := v.e.headerErrors(ctx, opened)
	for i, l := range layers {
		if errs[i] != nil {
			continue
		}
		if errs[i], headers = headers[0], headers[1:]; errs[i] == nil {
			sound = append(sound, l)
		}
	}
	checked := v.e.checkErrors(ctx, sound)
	whole := true
	for i, l := range layers {
		err := errs[i]
		if err == nil {
			err, checked = checked[0], checked[1:]
		}
		if err == nil {
			continue
		}
		if whole = false; errors.Is(err, errReported) {
			continue
		}
		if err := v.layer(ctx, l, err); err != nil {
			return err
		}
	}
	v.report.Files += len(layers)
	if !whole || !v.report.Content {
		return nil
	}
	return v.content(ctx, layers)
}

// errReported is for a file whose damage is in the report.
var errReported = errors.New("reported")

// sealed compares a sealed file's bytes with their digest, which takes no key, before anything opens it.
func (v *verifier) sealed(ctx context.Context, l layer) (damaged bool, err error) {
	if l.volume.FileEncryption == "" {
		return false, nil
	}
	before := len(v.report.Problems)
	digester, err := v.e.digester()
	if err == nil {
		err = v.fileDigest(ctx, digester, l)
	}
	return len(v.report.Problems) > before, err
}

// layer reports what is wrong with one file, unless nothing is known of it.
func (v *verifier) layer(ctx context.Context, l layer, err error) error {
	code := ProblemCheck
	switch {
	case errors.Is(err, kvmbackup.ErrMissingFile):
		code = ProblemMissing
	case isAny(err, qcow2.ErrBackingMismatch, qcow2.ErrDataFile, qcow2.ErrSizeMismatch):
		code = ProblemLink
	case !errors.Is(err, kvmbackup.ErrDamaged):
		return err
	}
	return v.add(ctx, code, l.backup, l.volume.VolumeID, l.volume.File, kvmbackup.ErrorText(err))
}

// content compares the files' digests first, because they name the damaged file, and then the guest-visible content.
func (v *verifier) content(ctx context.Context, layers []layer) error {
	digester, err := v.e.digester()
	if err != nil {
		return err
	}
	for _, l := range layers {
		if err := v.fileDigest(ctx, digester, l); err != nil {
			return err
		}
	}
	top := layers[0]
	if top.volume.Digest == "" || v.named(layers) {
		return nil
	}
	has, err := digester.Digest(ctx, top.path(), backing(layers))
	counted(ctx, top.volume.VolumeID, top.volume.VirtualSize)
	problem, err := v.compare(ctx, fmt.Sprintf("volume %s as the guest sees it", top.volume.VolumeID), has,
		top.volume.Digest, err)
	if err == nil && problem != "" {
		err = v.add(ctx, ProblemContent, top.backup, top.volume.VolumeID, top.volume.File, problem)
	}
	return err
}

// fileDigest compares a file's bytes, once.
func (v *verifier) fileDigest(ctx context.Context, digester Digester, l layer) error {
	if l.volume.FileDigest == "" || v.compared["digest "+l.file] {
		return nil
	}
	v.compared["digest "+l.file] = true
	has, err := digester.FileDigest(ctx, l.path())
	counted(ctx, l.volume.VolumeID, l.volume.StoredSize)
	problem, err := v.compare(ctx, fmt.Sprintf("%s/%s: its bytes", l.backup.Path, l.volume.File), has,
		l.volume.FileDigest, err)
	if err == nil && problem != "" {
		err = v.add(ctx, ProblemContent, l.backup, l.volume.VolumeID, l.volume.File, problem)
	}
	return err
}

// compare says what is wrong with a digest. Content that can't be read is damage, too.
func (v *verifier) compare(ctx context.Context, what, has, want string, err error) (problem string, _ error) {
	if err != nil {
		if err = damage(ctx, err); errors.Is(err, kvmbackup.ErrDamaged) || errors.Is(err, kvmbackup.ErrMissingFile) {
			return fmt.Sprintf("%s can't be read: %s", what, kvmbackup.ErrorText(err)), nil
		}
		return "", err
	}
	v.report.Digests++
	if has != want {
		return fmt.Sprintf("%s: digest %s, recorded is %s", what, has, want), nil
	}
	return "", nil
}

// named says whether a file of the layers was found damaged already.
func (v *verifier) named(layers []layer) bool {
	return slices.ContainsFunc(layers, func(l layer) bool {
		return slices.ContainsFunc(v.report.Problems, func(p Problem) bool {
			return p.Code == ProblemContent && strings.HasSuffix(p.File, path.Join(l.backup.Path, l.volume.File))
		})
	})
}

// readSideFile reads a small file and compares it with its checksum in the manifest, which is that on record.
func (e *Engine) readSideFile(ctx context.Context, dir string, f kvmbackup.SideFile) ([]byte, error) {
	data, err := e.cfg.Repository.ReadSideFile(ctx, dir, f.Name, max(f.Size, 0))
	if errors.Is(err, repository.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %s/%s is larger than the %d bytes of the manifest", kvmbackup.ErrDamaged, dir,
			f.Name, f.Size)
	}
	if err != nil {
		return nil, repositoryError(err)
	}
	if has := sha256Hex(data); has != f.SHA256 || int64(len(data)) != f.Size {
		return nil, fmt.Errorf("%w: %s/%s has sha256 %s, the manifest says %s", kvmbackup.ErrDamaged, dir, f.Name, has,
			f.SHA256)
	}
	return data, nil
}
