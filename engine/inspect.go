package engine

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
)

// Inspect compares the four truths about a VM: store, libvirt's checkpoints, bitmaps in QEMU or in the image files, and
// files in the repository. It changes nothing and takes no lease, so an operation under way shows up as findings. Where
// scratches are configured it writes into them and into the repository what it removes again at once, as nothing else
// says that this can be done.
func (e *Engine) Inspect(ctx context.Context, t Target) (Diagnosis, error) {
	o := e.open("inspect", t.VM)
	o.dom = t.ref()
	kept, release := e.cfg.Repository.Keep(ctx)
	defer release()
	d, err := o.diagnose(kept, t.request())
	return d, o.fail(ctx, err)
}

func (o *op) diagnose(ctx context.Context, req BackupRequest) (Diagnosis, error) {
	d := Diagnosis{VM: req.VM}
	if err := firstError(o.e.needHypervisor(), req.validate()); err != nil {
		return d, err
	}
	o.step("read records")
	var err error
	if d.Record, err = o.e.cfg.Store.VM(ctx, req.VM); err != nil {
		return d, err
	}
	records, err := o.e.cfg.Store.List(ctx, kvmbackup.Query{VM: req.VM})
	if err != nil {
		return d, err
	}
	d.addRecords(records)
	d.addStamps(records, o.e.now())
	o.step("inspect domain")
	if err = o.look(ctx); err == nil {
		st := o.seen
		d.Domain = &st
	} else if !errors.Is(err, kvmbackup.ErrNoDomain) {
		return d, err
	}
	o.step("list folders")
	entries, err := o.e.cfg.Repository.List(ctx, req.VM)
	if err != nil {
		return d, err
	}
	d.addOtherDomain(records)
	if d.Domain != nil {
		owned := Ownership{Prefix: o.e.prefix(), VM: req.VM, Known: checkpointsOf(records),
			Others: othersOf(entries, records)}
		d.addDomain(owned, *d.Domain, records, req)
	}
	d.addFolders(entries, records)
	o.step("look at the scratch")
	if err := o.addScratches(ctx, &d, records); err != nil {
		return d, err
	}
	o.step("look for files")
	err = o.addFiles(ctx, &d, records)
	d.Complete = err == nil
	return d, err
}
