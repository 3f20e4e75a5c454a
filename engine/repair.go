package engine

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup"
)

// Repair mends what is safe to mend, under the VM's lease, and returns what Inspect finds afterwards. It never touches
// what isn't ours.
func (e *Engine) Repair(ctx context.Context, t Target) (Diagnosis, error) {
	o, req := e.open("repair", t.VM), t.request()
	o.dom = t.ref()
	var after Diagnosis
	err := o.do(ctx, firstError(e.needHypervisor(), req.validate()), func(ctx context.Context) error {
		before, err := o.diagnose(ctx, req)
		if err != nil {
			return err
		}
		if err := o.repair(ctx, before); err != nil {
			return err
		}
		after, err = o.diagnose(ctx, req)
		return err
	})
	return after, err
}

func (o *op) repair(ctx context.Context, d Diagnosis) error {
	stages := []stage{
		{"settle", func() error { _, err := o.settleRunning(ctx); return err }},
		{"mend findings", func() error { return o.mend(ctx, d.Findings) }},
		{"finish deletions", func() error { _, err := o.settleDeletes(ctx); return err }},
	}
	return o.tryAll(append(stages, o.onDomain(ctx)...)...)
}

// mend does what a finding alone tells how to.
func (o *op) mend(ctx context.Context, findings []Finding) error {
	var errs []error
	for _, f := range findings {
		switch f.Code {
		case FindingLeftPartial, FindingLeftDeleting:
			b, err := o.e.cfg.Store.Backup(ctx, f.Backup)
			if err == nil {
				err = o.removeLeft(ctx, f, b)
			}
			errs = append(errs, err)
		case FindingLeftScratch:
			errs = append(errs, o.e.removeScratchFolder(ctx, filepath.Dir(f.Path), f.Backup))
		case FindingActiveNotNewest:
			errs = append(errs, o.e.cfg.Store.SetActive(ctx, o.lease(), ""))
		}
	}
	return errors.Join(errs...)
}

func (o *op) removeLeft(ctx context.Context, f Finding, b kvmbackup.Backup) error {
	if f.Code == FindingLeftPartial {
		return o.tellForeign(o.e.cfg.Repository.RemovePartial(ctx, b))
	}
	_, err := o.e.cfg.Repository.Remove(ctx, b)
	return o.tellForeign(err)
}
