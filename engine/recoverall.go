package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// RecoveredVM says what RecoverAll did about one VM.
type RecoveredVM struct {
	VM    kvmbackup.VMID `json:"vm"`
	Found []Recovery     `json:"found"`
	// Err says why not all of it could be settled, within an *OpError; errors.Is(Err, ErrBusy) where another operation
	// works on the VM, which settles it itself. JSON has its text, as "error".
	Err error `json:"-"`
}

// MarshalJSON writes the fields, with the text of Err.
func (r RecoveredVM) MarshalJSON() ([]byte, error) {
	type fields RecoveredVM
	return json.Marshal(struct {
		fields
		errorJSON
	}{fields(r), errorJSON{textError{r.Err}}})
}

// UnmarshalJSON reads what MarshalJSON writes. Err has the text alone then: it matches no sentinel.
func (r *RecoveredVM) UnmarshalJSON(b []byte) error {
	type fields RecoveredVM
	return unmarshalWithError(b, (*fields)(r), &r.Err)
}

// String returns what was done and what could not be, as lines for people.
func (r RecoveredVM) String() string {
	var s strings.Builder
	for _, f := range r.Found {
		fmt.Fprintln(&s, f)
	}
	if r.Err != nil {
		fmt.Fprintf(&s, "%s: %v\n", r.VM, r.Err)
	}
	return s.String()
}

// recoverAtOnce bounds how many VMs are recovered at once. To follow a job costs next to nothing, and what isn't
// followed ends unseen.
const recoverAtOnce = 64

// RecoverAll calls Recover for every VM that has something to settle, all at once, and goes on whatever one of them has
// for a result. That is a backup that is recorded as running, or one that is delete-pending although nothing needs it
// any more: no other record is read, and no lease of another VM taken.
// The results are sorted by VM. The error is the store's, which could not be asked what there is.
//
// Where a backup is recorded as running on another host (see Config.Host) the VM is left to that: its outcome is
// RecoveryPending, and neither its lease nor its domain is touched. A lease of a process that has died is waited for,
// for Config.LeaseTTL at most: one that is in force after that is kept by a process that lives, and the VM is ErrBusy.
func (e *Engine) RecoverAll(ctx context.Context) ([]RecoveredVM, error) {
	o := e.query("recover", "", "read records")
	left, err := o.left(ctx, "")
	if err != nil {
		return nil, o.wrap(ctx, err)
	}
	byVM := map[kvmbackup.VMID][]kvmbackup.Backup{}
	var all []RecoveredVM
	for _, b := range left {
		if byVM[b.VM] == nil {
			all = append(all, RecoveredVM{VM: b.VM})
		}
		byVM[b.VM] = append(byVM[b.VM], b)
	}
	slices.SortFunc(all, func(a, b RecoveredVM) int { return strings.Compare(string(a.VM), string(b.VM)) })
	errs := each(ctx, recoverAtOnce, all, func(i int, r RecoveredVM) error {
		all[i].Found, all[i].Err = e.recoverLeft(ctx, r.VM, byVM[r.VM])
		return nil
	})
	for i, err := range errs {
		if err != nil {
			all[i].Err = e.query("recover", all[i].VM, "wait").wrap(ctx, err)
		}
	}
	return all, nil
}

// recoverLeft leaves a VM alone that another host works for, or did.
func (e *Engine) recoverLeft(ctx context.Context, vm kvmbackup.VMID, left []kvmbackup.Backup) ([]Recovery, error) {
	var elsewhere []Recovery
	for _, b := range left {
		if b.Status == kvmbackup.StatusRunning && b.Host != "" && b.Host != e.cfg.Host {
			elsewhere = append(elsewhere, Recovery{b.VM, b.ID, RecoveryPending,
				fmt.Sprintf("it was begun on host %q; recover it there, or the VM by its name where that has come "+
					"from there", b.Host)})
		}
	}
	if elsewhere != nil {
		return elsewhere, nil
	}
	return e.recover(ctx, Target{VM: vm}, e.leaseOfTheDead())
}

// leaseOfTheDead is how long to wait for a lease that nobody renews any more.
func (e *Engine) leaseOfTheDead() time.Duration {
	return min(e.cfg.LeaseTTL+longestPause, e.cfg.LeaseWait)
}
