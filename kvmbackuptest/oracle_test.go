package kvmbackuptest_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// errEndless is the cause of the end of operations that would go on for ever.
var errEndless = errors.New("the operation does not end")

// patience is far more than any operation may take. In a bubble it takes no time.
func patience() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.Background(), 6*time.Hour, errEndless)
}

// backup takes a backup, which must succeed unless the scenario has broken something.
func (p *play) backup(words []string) error {
	has := func(w string) bool { return slices.Contains(words, w) }
	req := p.request(kvmbackup.Policy{FullEvery: 4, DisableIncremental: has("off"), ForceFull: has("full"),
		OfflineIncremental: has("offline"), Compare: p.compare, ForceCompare: has("compare")})
	req.Digests = p.digests
	if p.keys != nil && !has("plain") {
		req.Policy.Encryption = kvmbackup.EncryptionLUKS
	}
	if has("quiesce") {
		req.Quiesce = engine.QuiesceTry
	}
	before, thawed := p.foreign(), p.checkThawed() == nil
	ctx, cancel := patience()
	defer cancel()
	b, err := p.engine.Backup(ctx, req)
	if after := p.foreign(); !slices.Equal(before, after) {
		return fmt.Errorf("what belongs to others was touched: %v became %v", before, after)
	}
	if p.frozenAndPaused(err) {
		return nil
	}
	// A failed one may not have come to thaw what it found frozen.
	if !p.gate.isDead() && (thawed || err == nil && !p.noThaw) {
		if err := p.checkThawed(); err != nil {
			return err
		}
	}
	if err != nil {
		if has("compare") && errors.Is(err, kvmbackup.ErrUnsupported) && (len(p.cfg.Scratch) == 0 || p.locked()) {
			return nil
		}
		if p.room > 0 && p.busy && errors.Is(err, kvmbackup.ErrScratchFull) {
			p.taken["scratch full"]++
			return nil
		}
		if p.target != kvmbackuptest.TargetGood && !errors.Is(err, errEndless) {
			return nil
		}
		return err
	}
	p.done.backups++
	p.taken["backup "+b.Transfer.Phrase()]++
	for _, w := range append([]string{""}, words...) {
		p.taken[strings.TrimSpace("backup "+w)]++
	}
	if b.Kind == kvmbackup.KindIncremental {
		p.done.incrementals++
	}
	for code, verb := range map[kvmbackup.ReasonCode]string{kvmbackup.ReasonVolumeCompared: "backup compared",
		engine.ReasonComparedByIndex: "backup compared by index", engine.ReasonCannotCompare: "backup not compared"} {
		if hasReason(b, code) {
			p.taken[verb]++
		}
	}
	if hasReason(b, engine.ReasonBitmapMissed) || hasReason(b, engine.ReasonParentUnreadable) {
		return fmt.Errorf("a bitmap has missed what the guest wrote, or a parent is damaged: %v", b.Reasons)
	}
	if err := errors.Join(p.checkStored(b), p.verify(b)); err != nil {
		return err
	}
	if p.gate.hit != "" {
		return nil // what could not be dropped goes next time
	}
	return p.checkClean()
}

// locked says whether the host can't open its sealed backups.
func (p *play) locked() bool { return p.keys != nil && p.keys.gone.Load() }

// foreign lists the checkpoints and bitmaps that are not ours.
func (p *play) foreign() []string {
	var all []string
	for _, v := range p.volumes {
		_, others, err := p.names(v.Device)
		if err != nil {
			panic(err)
		}
		for _, o := range others {
			all = append(all, v.Device+":"+o)
		}
	}
	return all
}

// pick returns one of the backups that are offered.
func (p *play) pick(n int) (kvmbackup.Backup, bool) {
	list, err := p.store.List(context.Background(), kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted},
	})
	if err != nil || len(list) == 0 {
		return kvmbackup.Backup{}, false
	}
	return list[n%len(list)], true
}

func (p *play) delete(n int, force bool) error {
	b, ok := p.pick(n)
	if !ok {
		return nil
	}
	before, records := p.foreign(), p.records()
	ctx, cancel := patience()
	defer cancel()
	_, err := p.engine.Delete(ctx, b.ID, kvmbackup.DeleteOptions{Subtree: force})
	if lost := p.checkOthersKept(records, b, force); lost != nil {
		return lost
	}
	if after := p.foreign(); !slices.Equal(before, after) {
		return fmt.Errorf("what belongs to others was touched: %v became %v", before, after)
	}
	switch {
	case p.target == kvmbackuptest.TargetHung && errors.Is(err, kvmbackup.ErrJobStuck), p.frozenAndPaused(err):
		return nil // a job below it can't be settled now
	case err != nil:
		return err
	}
	if b, err = p.store.Backup(context.Background(), b.ID); err == nil && b.Status == kvmbackup.StatusCompleted {
		return fmt.Errorf("backup %s is still offered", b.Path)
	}
	p.taken[map[bool]string{false: "delete", true: "delete!"}[force]]++
	return nil
}

// checkOthersKept: a deletion takes no restore point but its own and, with force, those that stand on it.
func (p *play) checkOthersKept(before []kvmbackup.Backup, deleted kvmbackup.Backup, force bool) error {
	after, goes := map[kvmbackup.BackupID]kvmbackup.Status{}, map[kvmbackup.BackupID]bool{deleted.ID: true}
	for _, b := range p.records() {
		after[b.ID] = b.Status
	}
	// parents before children
	slices.SortFunc(before, func(a, b kvmbackup.Backup) int { return cmp.Compare(a.Sequence, b.Sequence) })
	for _, b := range before {
		goes[b.ID] = goes[b.ID] || force && goes[b.ParentID]
		if b.Status == kvmbackup.StatusCompleted && !goes[b.ID] && after[b.ID] != kvmbackup.StatusCompleted {
			return fmt.Errorf("deleting %s has taken %s along", deleted.Path, b.Path)
		}
	}
	return nil
}

// restoreInPlace restores what the VM still has of a backup's volumes. A VM that is not off must refuse.
func (p *play) restoreInPlace(n int) error {
	b, ok := p.pick(n)
	if !ok {
		return nil
	}
	req := engine.RestoreRequest{Backup: b.ID, InPlace: &engine.InPlace{Volumes: p.volumes, Disks: p.disks}}
	for _, v := range b.Volumes {
		if slices.ContainsFunc(p.volumes, func(has engine.Volume) bool { return has.ID == v.VolumeID }) {
			req.Volumes = append(req.Volumes, engine.RestoreVolume{ID: v.VolumeID})
		}
	}
	if len(req.Volumes) == 0 {
		return nil
	}
	state, _, err := p.h.State(vm)
	if err != nil {
		return err
	}
	ctx, cancel := patience()
	defer cancel()
	stacked, err := p.stacked(ctx, req)
	if err != nil {
		return err
	}
	r, err := p.engine.Restore(ctx, req)
	switch {
	case stacked && errors.Is(err, kvmbackup.ErrUnsupported), p.locked() && errors.Is(err, kvmbackup.ErrKey):
		return nil
	case state != kvmbackup.DomainStopped && errors.Is(err, kvmbackup.ErrDomainRunning):
		return nil
	case p.frozenAndPaused(err):
		return nil
	case state != kvmbackup.DomainStopped && err == nil:
		return fmt.Errorf("a VM that is %v was restored over", state)
	case stacked && err == nil:
		return errors.New("a disk was restored over that libvirt puts over another file")
	case p.target == kvmbackuptest.TargetHung && errors.Is(err, kvmbackup.ErrJobStuck):
		return nil
	case err != nil:
		return err
	}
	p.taken["restore"]++
	return p.checkRestored(r)
}

// stacked says whether one of the disks would be started over a file that its definition names.
func (p *play) stacked(ctx context.Context, req engine.RestoreRequest) (bool, error) {
	st, err := p.h.Executor().Inspect(ctx, kvmbackup.DomainRef{Name: vm, Disks: p.disks})
	for _, v := range req.Volumes {
		at := slices.IndexFunc(p.volumes, func(has engine.Volume) bool { return has.ID == v.ID })
		for _, d := range st.Disks {
			if d.Device == p.volumes[at].Device && d.StackedOn != "" {
				return true, nil
			}
		}
	}
	return false, err
}

func (p *play) checkRestored(r engine.Restored) error {
	for _, v := range r.Volumes {
		at := slices.IndexFunc(p.volumes, func(has engine.Volume) bool { return has.ID == v.VolumeID })
		got, err := p.h.Content(vm, p.volumes[at].Device)
		if err != nil {
			return err
		}
		if diff := got.Diff(p.contents[r.Backup.ID][v.VolumeID]); diff != "" {
			return fmt.Errorf("restored %s: %s", v.VolumeID, diff)
		}
	}
	rec, err := p.store.VM(context.Background(), vm)
	if err == nil && rec.ActiveCheckpoint != "" {
		err = fmt.Errorf("active checkpoint is %s after a restore in place", rec.ActiveCheckpoint)
	}
	return err
}

func (p *play) recover() error {
	ctx, cancel := patience()
	defer cancel()
	_, err := p.engine.Recover(ctx, engine.Target{VM: vm, Domain: vm, Disks: p.disks})
	if p.target == kvmbackuptest.TargetHung && err != nil && !errors.Is(err, errEndless) || p.frozenAndPaused(err) {
		return nil
	}
	p.took("recover", err)
	return err
}

// frozenAndPaused is the one thing that only a person can settle: an interrupted backup has left the guest frozen, and
// then somebody or something has paused it, so that it can't be thawed.
func (p *play) frozenAndPaused(err error) bool {
	state, _, _ := p.h.State(vm)
	return errors.Is(err, kvmbackup.ErrDomainStopped) && state == kvmbackup.DomainPaused
}

// finish is what holds after every history.
func (p *play) finish() error {
	p.busy, p.target = false, kvmbackuptest.TargetGood
	if p.keys != nil {
		p.keys.gone.Store(false)
	}
	err := errors.Join(p.h.SetTarget(vm, kvmbackuptest.Target{}), p.h.SetAgent(vm, kvmbackuptest.AgentPresent))
	if err != nil {
		return err
	}
	p.describe()
	_ = p.h.Resume(vm) // not possible when it is off
	if p.noThaw {
		_ = p.h.Executor().Thaw(context.Background(), p.ref) // by hand
	}
	if err := p.recover(); err != nil {
		return err
	}
	if err := p.checkClean(); err != nil {
		return err
	}
	if err := p.restoreAll(); err != nil {
		return err
	}
	if err := p.h.Start(vm); err != nil && !errors.Is(err, kvmbackup.ErrDomainRunning) {
		return err
	}
	for range 2 { // the second one has a bitmap that must be right
		if err := errors.Join(p.write(p.volumes[0].Device, 3, 2), p.backup(nil)); err != nil {
			return err
		}
	}
	return p.restoreAll()
}
