package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

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
// Of sealed backups the files' bytes are always compared with their digests. An engine that has their keys also finds
// every change to their manifests.
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
	parent   *repository.Manifest // of the member before; nil: it has no readable one
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
	ctx, stop := v.paced(ctx)
	defer stop()
	ctx = withTally(ctx, v.tally(digestsOf(b, func(vol kvmbackup.VolumeBackup) int64 { return v.toRead(chain, vol) })))
	for _, vol := range b.Volumes {
		if err := v.volume(ctx, chain, vol); err != nil {
			return err
		}
	}
	return nil
}
