package kvmbackuptest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// faultCase is an operation whose every call is made to fail in turn.
type faultCase struct {
	name      string
	transient bool
	prepare   func(l *world) error
	act       func(l *world) error
	// next is the kind that the backup after the accident must have; unknown: any.
	next kvmbackup.Kind
}

var everyday = kvmbackup.Policy{FullEvery: 100}

func act(p kvmbackup.Policy, q engine.Quiesce) func(l *world) error {
	return func(l *world) error {
		req := l.request(p)
		req.Quiesce = q
		_, err := l.engine.Backup(context.Background(), req)
		return err
	}
}

// taken takes n backups with a write before each.
func taken(n int) func(l *world) error {
	return func(l *world) error {
		for i := range n {
			if err := errors.Join(l.write("vda", int64(i), 2), act(everyday, engine.QuiesceNo)(l)); err != nil {
				return err
			}
		}
		return l.write("vdb", 5, 2)
	}
}

func inOrder(steps ...func(l *world) error) func(l *world) error {
	return func(l *world) error {
		for _, f := range steps {
			if err := f(l); err != nil {
				return err
			}
		}
		return nil
	}
}

func pulls(l *world) error { return l.withScratch() }

// compared takes a backup with digests that compares everything, although the bitmaps may be fine.
func compared(l *world) error {
	req := l.request(kvmbackup.Policy{FullEvery: 100, Compare: true, ForceCompare: true})
	req.Digests = true
	b, err := l.engine.Backup(context.Background(), req)
	if err == nil && reasonOf(b, "vol-vda") != kvmbackup.ReasonVolumeCompared {
		err = fmt.Errorf("it was not compared: %v", b.Reasons)
	}
	return err
}

func crashed(l *world) error { return errors.Join(l.h.Crash(vm), l.h.Start(vm)) }

func shutdown(l *world) error { return l.h.Shutdown(vm) }

// deleted deletes the backup at that place in the list.
func deleted(at int, force bool) func(l *world) error {
	return func(l *world) error {
		list, err := l.store.List(context.Background(), kvmbackup.Query{VM: vm})
		if err != nil {
			return err
		}
		_, err = l.engine.Delete(context.Background(), list[at].ID, kvmbackup.DeleteOptions{Subtree: force})
		return err
	}
}

func restoredInPlace(at int) func(l *world) error {
	return func(l *world) error {
		list, err := l.store.List(context.Background(), kvmbackup.Query{VM: vm})
		if err != nil {
			return err
		}
		_, err = l.engine.Restore(context.Background(), engine.RestoreRequest{
			Backup: list[at].ID, InPlace: &engine.InPlace{Volumes: l.volumes, Disks: l.disks},
		})
		return err
	}
}

// killedAt takes a backup whose process dies just before the first call of that name.
func killedAt(op string) func(l *world) error {
	return func(l *world) error {
		if err := l.open(plan{op: op, mode: killBefore}); err != nil {
			return err
		}
		if _, err := l.engine.Backup(context.Background(), l.request(everyday)); !errors.Is(err, errKilled) {
			return fmt.Errorf("the process was not killed at %s: %w", op, err)
		}
		return nil
	}
}

var faultCases = []faultCase{
	{name: "first", act: act(everyday, engine.QuiesceNo)},
	{name: "incremental", prepare: taken(2), act: act(everyday, engine.QuiesceNo), next: kvmbackup.KindIncremental},
	{name: "quiesced", prepare: taken(1), act: act(everyday, engine.QuiesceRequire), next: kvmbackup.KindIncremental},
	{name: "restarted transient", transient: true, prepare: inOrder(taken(2), func(l *world) error {
		return l.h.Restart(vm)
	}),
		act: act(everyday, engine.QuiesceTry), next: kvmbackup.KindIncremental},
	{name: "crashed", prepare: inOrder(taken(2), crashed), act: act(everyday, engine.QuiesceNo)},
	{name: "stopped full", prepare: inOrder(taken(1), shutdown), act: act(everyday, engine.QuiesceNo)},
	{name: "stopped incremental", prepare: inOrder(taken(2), shutdown),
		act: act(kvmbackup.Policy{FullEvery: 100, OfflineIncremental: true}, engine.QuiesceNo)},
	{name: "untracked", prepare: taken(1), act: act(kvmbackup.Policy{DisableIncremental: true}, engine.QuiesceNo)},
	{name: "recovering a job", prepare: inOrder(taken(1), killedAt("Wait")), act: act(everyday, engine.QuiesceNo)},
	{name: "recovering a folder", prepare: inOrder(taken(1), killedAt("Complete")), act: act(everyday, engine.QuiesceNo)},
	{name: "pull first", prepare: pulls, act: act(everyday, engine.QuiesceNo)},
	{
		name: "pull incremental", prepare: inOrder(pulls, taken(2)), act: act(everyday, engine.QuiesceNo),
		next: kvmbackup.KindIncremental,
	},
	{
		name: "pull quiesced", prepare: inOrder(taken(1), pulls), act: act(everyday, engine.QuiesceRequire),
		next: kvmbackup.KindIncremental,
	},
	{name: "pull transient", transient: true, prepare: inOrder(pulls, taken(1)), act: act(everyday, engine.QuiesceTry),
		next: kvmbackup.KindIncremental},
	{name: "recovering a pull job", prepare: inOrder(pulls, taken(1), killedAt("Wait")),
		act: act(everyday, engine.QuiesceNo), next: kvmbackup.KindIncremental},
	{
		name: "compared", prepare: inOrder(pulls, taken(1), compared, taken(0)), act: compared,
		next: kvmbackup.KindIncremental,
	},
	{name: "compared after a crash", prepare: inOrder(pulls, taken(1), compared, taken(0), crashed), act: compared},
	{name: "stopped compared", prepare: inOrder(taken(1), shutdown, compared), act: compared},
	{name: "delete newest", prepare: taken(3), act: deleted(2, false)},
	{name: "delete middle", prepare: taken(3), act: deleted(1, false), next: kvmbackup.KindIncremental},
	{name: "delete cascade", prepare: inOrder(taken(3), deleted(0, false), deleted(1, false)), act: deleted(2, false)},
	{name: "delete forced", prepare: taken(3), act: deleted(0, true)},
	{name: "restore in place", prepare: inOrder(taken(3), shutdown), act: restoredInPlace(1)},
}

// TestFaults makes every call of every case fail in every mode, one at a time, until a run gets through.
func TestFaults(t *testing.T) {
	half, modes := lab.Every(t, 2*lab.Sparse(2)) // in the quick tier a case has one of the four modes
	for i, c := range faultCases {
		for m := failBefore; m <= killAfter; m++ {
			if (i+int(m)+half)%modes != 0 {
				continue
			}
			t.Run(c.name+"/"+m.String(), func(t *testing.T) {
				t.Parallel()
				first, stride := lab.Every(t, 8*lab.Sparse(3))
				n := 1 + first
				for ; t.Context().Err() == nil; n += stride {
					hit, err := runFault(t, c, plan{n: n, mode: m})
					if err != nil {
						t.Errorf("call %d (%s): %v", n, hit, err)
					}
					if hit == "" {
						break
					}
				}
				t.Logf("%d calls", n-stride)
			})
		}
	}
}

// runFault returns the call that was hit, which is empty when the operation has fewer.
func runFault(t *testing.T, c faultCase, p plan) (hit string, err error) {
	dir := memoryDir(t)
	defer func() { _ = os.RemoveAll(dir) }()
	synctest.Test(t, func(*testing.T) {
		hit, err = c.run(dir, p)
	})
	return hit, err
}

func (c faultCase) run(dir string, p plan) (hit string, err error) {
	l, err := newWorld(dir, c.transient, kvmbackuptest.AgentPresent)
	if err != nil {
		return "", err
	}
	if err := errors.Join(l.h.Start(vm), l.write("vda", 0, 3), l.write("vdb", 1, 2)); err != nil {
		return "", err
	}
	if c.prepare != nil {
		if err := c.prepare(l); err != nil {
			return "", fmt.Errorf("prepare: %w", err)
		}
	}
	if err := l.open(p); err != nil {
		return "", err
	}
	err = c.act(l)
	hit = l.gate.disarm()
	switch {
	case hit == "" && err != nil:
		return hit, fmt.Errorf("without a fault: %w", err)
	case err != nil && !errors.Is(err, errInjected) && !errors.Is(err, errKilled):
		return hit, fmt.Errorf("another error than the injected one came out: %w", err)
	}
	if err := c.after(l, p); err != nil {
		return hit, err
	}
	return hit, nil
}

// after goes on as a host does.
func (c faultCase) after(l *world, p plan) error {
	ctx := context.Background()
	if !p.mode.kills() {
		if err := l.checkFailed(); err != nil {
			return err
		}
	} else if err := l.open(plan{}); err != nil {
		return err
	}
	if _, err := l.engine.Recover(ctx, engine.Target{VM: vm, Domain: vm, Disks: l.disks}); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if err := l.checkThawed(); err != nil {
		return fmt.Errorf("after recovery: %w", err)
	}
	if err := l.checkClean(); err != nil {
		return fmt.Errorf("after recovery: %w", err)
	}
	if err := c.carryOn(l); err != nil {
		return err
	}
	return leftFiles(l)
}

// checkFailed says what a failed operation has left in spite of its process being alive.
func (l *world) checkFailed() error {
	if err := l.checkThawed(); err != nil {
		return err
	}
	running, err := l.store.List(context.Background(), kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusRunning},
	})
	if err != nil || len(running) > 0 {
		return err // said to be left to the next operation
	}
	failed, err := l.store.List(context.Background(), kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusFailed},
	})
	for _, b := range failed {
		for _, v := range l.volumes {
			if ours, _, _ := l.names(v.Device); slices.Contains(ours, string(b.Checkpoint)) {
				return fmt.Errorf("the failed backup's checkpoint %s is left on %s", b.Checkpoint, v.Device)
			}
		}
	}
	return err
}

// carryOn takes two more backups and restores everything.
func (c faultCase) carryOn(l *world) error {
	if st, _, err := l.h.State(vm); err != nil || st == kvmbackup.DomainStopped {
		if err := errors.Join(err, restoreAgain(c, l), l.h.Start(vm)); err != nil {
			return err
		}
	}
	for i := range 2 {
		if err := l.write("vda", int64(6+i), 1); err != nil {
			return err
		}
		b, err := l.engine.Backup(context.Background(), l.request(everyday))
		if err != nil {
			return fmt.Errorf("next backup: %w", err)
		}
		if i == 0 && c.next != 0 && b.Kind != c.next {
			return fmt.Errorf("next backup is %v: %v", b.Kind, b.Reasons)
		}
		if i == 1 && b.Kind != kvmbackup.KindIncremental {
			return fmt.Errorf("the backup after the next is %v: %v", b.Kind, b.Reasons)
		}
		if err := errors.Join(l.verify(b), l.checkClean()); err != nil {
			return fmt.Errorf("after the next backup: %w", err)
		}
	}
	return l.restoreAll()
}

// restoreAgain repeats a restore in place and checks what it has written.
func restoreAgain(c faultCase, l *world) error {
	if c.name != "restore in place" {
		return nil
	}
	if err := c.act(l); err != nil {
		return fmt.Errorf("restore again: %w", err)
	}
	list, err := l.store.List(context.Background(), kvmbackup.Query{VM: vm})
	if err != nil {
		return err
	}
	for _, v := range list[1].Volumes {
		got, err := l.h.Content(vm, v.Device)
		if err != nil {
			return err
		}
		if diff := got.Diff(l.contents[list[1].ID][v.VolumeID]); diff != "" {
			return fmt.Errorf("restored %s: %s", v.Device, diff)
		}
	}
	return nil
}

// leftFiles looks for files beside the images.
func leftFiles(l *world) error {
	list, err := os.ReadDir(filepath.Join(l.dir, "images"))
	for _, e := range list {
		if strings.Contains(e.Name(), "kvmbackup-") {
			return fmt.Errorf("file %s is left over", e.Name())
		}
	}
	return err
}
