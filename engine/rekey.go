package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// RekeyRequest says whose backups are given to other recipients.
type RekeyRequest struct {
	VM     kvmbackup.VMID     // all of its sealed backups; empty: those of all VMs, unless Backup is set
	Backup kvmbackup.BackupID // this one alone; empty: all
	// To are the recipients that the backups have afterwards, in place of those they have: only its WrapKey is called.
	// Required.
	To Keys
}

// Rekeyed says what Rekey did with one backup.
type Rekeyed struct {
	VM      kvmbackup.VMID     `json:"vm"`
	Backup  kvmbackup.BackupID `json:"backup"`
	Before  []string           `json:"before"`  // the key IDs that it had
	KeyIDs  []string           `json:"key_ids"` // those it has
	Changed bool               `json:"changed"` // its manifest was rewritten; false where it had those key IDs already
	// Err says why it wasn't given to the new recipients, within an *OpError; its manifest is as it was, or has them and
	// may not be durable. JSON has its text, as "error".
	Err error `json:"-"`
}

// MarshalJSON writes the fields, with the text of Err.
func (r Rekeyed) MarshalJSON() ([]byte, error) {
	type fields Rekeyed
	return json.Marshal(struct {
		fields
		errorJSON
	}{fields(r), errorJSON{textError{r.Err}}})
}

// UnmarshalJSON reads what MarshalJSON writes. Err has the text alone then: it matches no sentinel.
func (r *Rekeyed) UnmarshalJSON(b []byte) error {
	type fields Rekeyed
	return unmarshalWithError(b, (*fields)(r), &r.Err)
}

// String returns the outcome as one line.
func (r Rekeyed) String() string {
	switch {
	case r.Err != nil:
		return fmt.Sprintf("%s %s: not rekeyed: %s", r.VM, r.Backup, kvmbackup.ErrorText(r.Err))
	case r.Changed:
		return fmt.Sprintf("%s %s: for %s now", r.VM, r.Backup, strings.Join(r.KeyIDs, ", "))
	}
	return fmt.Sprintf("%s %s: was for %s already", r.VM, r.Backup, strings.Join(r.KeyIDs, ", "))
}

// Rekey gives sealed backups to other recipients and takes them from those they had, by rewriting their manifests
// alone. The data keys stay, so somebody who has unwrapped one before, or has a copy of the old manifest and its
// identity, can still read that backup: see docs/operations.md. Config.Keys open the backups.
//
// It goes on where one backup fails, and tells of each; the error joins them. It can be broken off anywhere and called
// again: each manifest is replaced whole, and those that have the new recipients, by their records too, are left as
// they are, whether or not Config.Keys open them. It takes the lease of one VM after the other.
//
// Returns ErrKey if Config.Keys don't open a backup, or To has no recipient; ErrDamaged if a manifest isn't its data
// key's; ErrInvalid, ErrNotFound, those of the store and of the repository.
func (e *Engine) Rekey(ctx context.Context, req RekeyRequest) ([]Rekeyed, error) {
	all := e.query("rekey", req.VM, "check request")
	all.backup = req.Backup
	if req.To == nil {
		return nil, all.wrap(ctx, fmt.Errorf("%w request: nobody to give the backups to (To)", kvmbackup.ErrInvalid))
	}
	all.at = "ask for recipients"
	probe, err := e.wrapKey(ctx, req.To, kvmbackup.NewDataKey()) // says the key IDs, and that there are recipients
	if err != nil {
		return nil, all.wrap(ctx, err)
	}
	all.at = "read records"
	byVM, order, err := e.sealedBackups(ctx, req)
	if err != nil {
		return nil, all.wrap(ctx, err)
	}
	var done []Rekeyed
	var errs []error
	for _, vm := range order {
		o := e.open("rekey", vm)
		err := o.do(ctx, nil, func(ctx context.Context) error {
			var failed []error
			for _, id := range byVM[vm] {
				s, sctx := o.on(ctx, o.name, id)
				one, err := s.rekey(sctx, req.To, idsOf(probe))
				if errors.Is(err, kvmbackup.ErrNotFound) {
					continue // deleted meanwhile
				}
				if err != nil {
					one.Err = s.wrap(ctx, err)
					failed = append(failed, one.Err)
				}
				done = append(done, one)
				if ctx.Err() != nil {
					return errors.Join(append(failed, context.Cause(ctx))...)
				}
			}
			return errors.Join(failed...)
		})
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return done, all.joined(ctx, errs)
}

func idsOf(keys []kvmbackup.WrappedKey) (ids []string) {
	for _, k := range keys {
		ids = append(ids, k.KeyID)
	}
	return ids
}

// sealedBackups are those that the request is about, by VM in the order of the records. One that is deleted stays
// readable as long as others stand on it.
func (e *Engine) sealedBackups(
	ctx context.Context, req RekeyRequest,
) (map[kvmbackup.VMID][]kvmbackup.BackupID, []kvmbackup.VMID, error) {
	records, err := e.cfg.Store.List(ctx, kvmbackup.Query{
		VM: req.VM, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted, kvmbackup.StatusDeletePending},
	})
	if req.Backup != "" {
		var b kvmbackup.Backup
		b, err = e.cfg.Store.Backup(ctx, req.Backup)
		records = []kvmbackup.Backup{b}
		switch {
		case err != nil:
		case b.Status != kvmbackup.StatusCompleted && b.Status != kvmbackup.StatusDeletePending:
			err = fmt.Errorf("%w: backup %s is %v", kvmbackup.ErrStatus, b.ID, b.Status)
		case !b.Sealed():
			err = fmt.Errorf("%w: backup %s isn't sealed", kvmbackup.ErrInvalid, b.ID)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	byVM, order := map[kvmbackup.VMID][]kvmbackup.BackupID{}, []kvmbackup.VMID(nil)
	for _, b := range records {
		if !b.Sealed() || b.Repository != e.cfg.Repository.ID() {
			continue
		}
		if byVM[b.VM] == nil {
			order = append(order, b.VM)
		}
		byVM[b.VM] = append(byVM[b.VM], b.ID)
	}
	return byVM, order, nil
}

// rekey says in a backup's record whom it is given to, and then rewrites its manifest: a crash in between leaves a
// manifest with other key IDs than the record, which the next call mends. What has been given to the recipients already
// is for the record to say, and the manifest to agree: somebody who can write to the share can put their IDs beside
// other keys. Where the keys can be opened they also have to be the backup's.
func (o *op) rekey(ctx context.Context, to Keys, ids []string) (Rekeyed, error) {
	out := Rekeyed{VM: o.vm, Backup: o.backup}
	b, err := o.e.cfg.Store.Backup(ctx, o.backup)
	if err != nil {
		return out, err
	}
	out.Before, out.KeyIDs = b.KeyIDs, b.KeyIDs
	o.step("read manifest")
	m, err := o.e.cfg.Repository.ReadManifest(ctx, b.Path)
	if err != nil {
		return out, repositoryError(err)
	}
	if err := ofRecord(m.Backup, b); err != nil {
		return out, err
	}
	out.Before, out.KeyIDs = m.KeyIDs, m.KeyIDs
	o.step("unwrap data key")
	key, err := o.e.unlock(ctx, m)
	if done := sameIDs(m.KeyIDs, ids) && sameIDs(b.KeyIDs, ids); done && (err == nil || errors.Is(err, kvmbackup.ErrKey)) {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	o.step("wrap data key")
	wrapped, err := o.e.wrapKey(ctx, to, key)
	if err != nil {
		return out, err
	}
	m = m.WithKeys(wrapped)
	o.step("record")
	if err := o.e.cfg.Store.Annotate(ctx, o.lease(), b.ID, kvmbackup.Annotation{KeyIDs: m.KeyIDs}); err != nil {
		return out, err
	}
	o.step("rewrite manifest")
	if err := o.e.cfg.Repository.RewriteManifest(ctx, m); err != nil {
		return out, err
	}
	out.KeyIDs, out.Changed = m.KeyIDs, true
	return out, nil
}

// sameIDs says whether two backups have the same recipients.
func sameIDs(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
