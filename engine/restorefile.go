package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
	"github.com/kvmbackup/kvmbackup/internal/mark"
	"github.com/kvmbackup/kvmbackup/internal/swap"
)

// owner names what waits beside a restore's targets: the consumer and the VM whose lease the restore has.
func (e *Engine) owner(vm kvmbackup.VMID) swap.Owner { return swap.Owner(e.prefix() + "-" + vm.Tag()) }

// changing changes files for a restore: it is finished or taken back although ctx may have ended.
func (e *Engine) changing(ctx context.Context, places []string, f func(*swap.Work) error) error {
	_, err := swap.Do(ctx, e.cfg.CleanupLimit, places, func(w *swap.Work) (struct{}, error) { return struct{}{}, f(w) },
		nil)
	return err
}

// discard removes what a restore has written aside, or one that was killed.
func (e *Engine) discard(ctx context.Context, places []string, jobs []copyJob) error {
	return e.changing(ctx, places, func(w *swap.Work) error { return setOf(w, jobs).Discard() })
}

// setOf is the work on a restore's files, which all have one owner.
func setOf(w *swap.Work, jobs []copyJob) swap.Set {
	set := w.Set("", filesOf(jobs))
	set.Written = map[string]*os.File{}
	for _, j := range jobs {
		set.Owner = j.owner
		if j.file.File != nil {
			set.Written[j.out.Path] = j.file.File
		}
	}
	return set
}

// writtenFile is the new file of a job, when it was made.
type writtenFile struct{ *os.File }

// makeAside makes the file that the job writes, which must not be there, and leaves it open.
func (j copyJob) makeAside(ctx context.Context) (err error) {
	j.file.File, err = swap.Look(ctx, func() (*os.File, error) {
		return os.OpenFile(j.aside(), os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	})
	if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%w: %s", kvmbackup.ErrTargetExists, j.aside())
	}
	return err
}

// publish gives the new files their names: after an error none has one, also when the storage answers too late.
func (e *Engine) publish(ctx context.Context, places []string, jobs []copyJob) error {
	_, err := swap.Do(ctx, e.cfg.CleanupLimit, places,
		func(w *swap.Work) (struct{}, error) { return struct{}{}, setOf(w, jobs).Publish() },
		func(left *swap.Work) {
			if err := setOf(left, jobs).TakeBack(); err != nil {
				logctx.Logger(ctx, e.cfg.Logger).Warn("take back a restore whose target hung", "error", err)
			}
		})
	return err
}

// targetError says of a refusal that it is the target's: the layers were read before.
func targetError(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return mark.As(kvmbackup.ErrTargetAccess, err)
	}
	return err
}
