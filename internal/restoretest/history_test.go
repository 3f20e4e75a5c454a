package restoretest_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestEveryBackupOfSeveralChains restores first, middle and last ones of three chains, in mixed order.
func TestEveryBackupOfSeveralChains(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	all := slices.Concat(l.chain(3), l.chain(4), l.chain(1))
	for _, i := range []int{5, 0, 7, 2, 3, 1, 6, 4} {
		l.restore(engine.RestoreRequest{Backup: all[i].ID, Format: []qcow2.Format{qcow2.FormatRaw, qcow2.FormatQcow2}[i%2]})
	}
}

// TestDeletePendingParents: what is deleted can't be restored, what stands on it can.
func TestDeletePendingParents(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	chain := l.chain(4)
	for _, b := range []kvmbackup.Backup{chain[1], chain[0], chain[2]} {
		_, err := l.engine.Delete(t.Context(), b.ID, kvmbackup.DeleteOptions{})
		l.ok(err)
		dir := l.out()
		_, err = l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
		l.fails(err, kvmbackup.ErrStatus)
		l.empty(dir)
		_, err = l.engine.Verify(t.Context(), b.ID, engine.VerifyOptions{})
		l.fails(err, kvmbackup.ErrStatus)
		l.restore(engine.RestoreRequest{Backup: chain[3].ID})
		l.verified(chain[3], true)
	}
	_, err := l.engine.Delete(t.Context(), chain[3].ID, kvmbackup.DeleteOptions{})
	l.ok(err)
	_, err = l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: chain[3].ID, Dir: l.out()})
	l.fails(err, kvmbackup.ErrNotFound)
}

// TestMixedChain restores a chain in whose middle volumes are added, grown, without their bitmap, and gone.
func TestMixedChain(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda", "vdb", "vdc")
	all := l.chain(2)
	grow := func(device string) {
		l.ok(l.h.Resize(vm, device, 20*cluster))
		l.write(device, 17, 2)
	}
	l.ok(l.h.Attach(vm, l.disk("vdd", disk)))
	l.volumes = append(l.volumes, volume("vdd"))
	l.write("vdd", 2, 3)
	all = append(all, l.backup())
	grow("vdb")
	all = append(all, l.backup())
	l.ok(l.h.RemoveBitmap(vm, "vdc", string(l.active())))
	l.write("vdc", 7, 1)
	all = append(all, l.backup())
	l.ok(l.h.Detach(vm, "vdb"))
	l.volumes = slices.DeleteFunc(l.volumes, func(v engine.Volume) bool { return v.Device == "vdb" })
	l.write("vdd", 3, 1)
	all = append(all, l.backup(), l.backup())
	kinds := map[kvmbackup.Kind]int{}
	for _, b := range all {
		for _, v := range b.Volumes {
			kinds[v.Kind]++
		}
		if r := l.restore(engine.RestoreRequest{Backup: b.ID}); len(r.Volumes) != len(b.Volumes) {
			t.Errorf("%s: restored %v", b.Path, r.Volumes)
		}
		for _, v := range b.Volumes {
			l.restore(engine.RestoreRequest{
				Backup: b.ID, Format: qcow2.FormatRaw, Volumes: []engine.RestoreVolume{{ID: v.VolumeID}},
			})
		}
		l.verified(b, true)
	}
	t.Logf("volumes by kind: %v, backups: %v", kinds, kindsOf(all))
	if _, err := l.engine.Restore(t.Context(), engine.RestoreRequest{
		Backup: all[6].ID, Dir: l.out(), Volumes: []engine.RestoreVolume{{ID: "v-vdb"}},
	}); !errors.Is(err, kvmbackup.ErrNoVolume) {
		t.Errorf("the volume that was gone: %v", err)
	}
}

func kindsOf(all []kvmbackup.Backup) (kinds []string) {
	for _, b := range all {
		s := b.Kind.String()[:1]
		for _, v := range b.Volumes {
			s += " " + v.Device + v.Kind.String()[:1]
		}
		kinds = append(kinds, s)
	}
	return kinds
}

func TestProgress(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda", "vdb", "vdc")
	empty := l.backup(full)
	written := l.chain(2)[1]
	for _, b := range []kvmbackup.Backup{empty, written} {
		all := l.following(func() { l.restore(engine.RestoreRequest{Backup: b.ID, Format: qcow2.FormatRaw}) })
		if last := all["copy"]; last.DoneBytes != 3*disk || last.TotalBytes != 3*disk || len(last.Volumes) != 3 {
			t.Errorf("the copy ended with %+v", last)
		}
		if last := all["verify chain"]; last.DoneBytes != last.TotalBytes || last.TotalBytes < b.StoredBytes() {
			t.Errorf("the verification before ended with %+v", last)
		}
	}
}

// following returns the last progress in each step of what is done, and wants it to go on from 0 to its end.
func (l *world) following(do func()) map[string]kvmbackup.JobProgress {
	l.Helper()
	last := map[string]kvmbackup.JobProgress{}
	l.onEvent(func(e engine.Event) {
		if e.Type != engine.EventProgress {
			return
		}
		p, before := *e.Progress, last[e.Step]
		var done, total int64
		for _, v := range p.Volumes {
			done, total = done+v.DoneBytes, total+v.TotalBytes
		}
		if p.DoneBytes < before.DoneBytes || p.DoneBytes > p.TotalBytes ||
			before.TotalBytes != 0 && p.TotalBytes != before.TotalBytes ||
			done != p.DoneBytes || total != p.TotalBytes {
			l.Errorf("progress %+v in step %q after %+v", p, e.Step, before)
		}
		last[e.Step] = p
	})
	do()
	l.onEvent(nil)
	return last
}

// onEvent gives the engine another subscriber.
func (l *world) onEvent(f func(engine.Event)) {
	l.Helper()
	l.cfg.OnEvent = f
	var err error
	l.engine, err = engine.New(l.cfg)
	l.ok(err)
}

// TestOtherProgress: a verification and the digests that come later are told of like a copy.
func TestOtherProgress(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda", "vdb")
	b := l.chain(2)[1]
	quick := l.following(func() { l.verified(b, false) })["verify volumes"]
	if quick.DoneBytes != quick.TotalBytes || quick.TotalBytes <= b.StoredBytes() {
		t.Errorf("a verification of two backups ended with %+v", quick)
	}
	late := l.following(func() { l.ok(l.engine.AddDigests(t.Context(), b.ID)) })["digest"]
	if late.DoneBytes != late.TotalBytes || late.TotalBytes != quick.TotalBytes+b.StoredBytes()+2*disk {
		t.Errorf("the digests ended with %+v", late)
	}
	whole := l.following(func() { l.verified(b, true) })["verify volumes"]
	if whole.DoneBytes != whole.TotalBytes || whole.TotalBytes != late.TotalBytes {
		t.Errorf("a verification of the content ended with %+v", whole)
	}
}

// TestProgressOfOneDigest: where the content's digest is on record already, as a pull leaves it, only the file is read
// for its own; where both are, nothing is.
func TestProgressOfOneDigest(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda", "vdb")
	b := l.chain(2)[1]
	content := map[kvmbackup.VolumeID]kvmbackup.Digests{}
	for _, v := range b.Volumes {
		parent := l.get(b.ParentID)
		below, _ := parent.Volume(v.VolumeID)
		digest, err := l.images.Digest(t.Context(), l.repo.FilePath(b.Path, v.File),
			[]qcow2.Layer{{Path: l.repo.FilePath(parent.Path, below.File)}})
		l.ok(err)
		content[v.VolumeID] = kvmbackup.Digests{Content: digest}
	}
	lease, err := l.store.AcquireLease(t.Context(), vm, "test", time.Minute)
	l.ok(err)
	l.ok(l.store.Annotate(t.Context(), lease, b.ID, kvmbackup.Annotation{Digests: content}))
	l.ok(l.store.ReleaseLease(t.Context(), lease))
	checked := l.following(func() { l.verified(b, false) })["verify volumes"]
	digest := func() kvmbackup.JobProgress {
		return l.following(func() { l.ok(l.engine.AddDigests(t.Context(), b.ID)) })["digest"]
	}
	if late := digest(); late.DoneBytes != late.TotalBytes || late.TotalBytes != checked.TotalBytes+b.StoredBytes() {
		t.Errorf("the files' digests ended with %+v, of %d bytes checked", late, checked.TotalBytes)
	}
	for _, v := range l.get(b.ID).Volumes {
		if v.Digest != content[v.VolumeID].Content || v.FileDigest == "" {
			t.Errorf("%s has the digests %q and %q", v.VolumeID, v.Digest, v.FileDigest)
		}
	}
	if again := digest(); again.TotalBytes != 0 {
		t.Errorf("with all on record it is %+v", again)
	}
}

// TestCancel ends the context at every call of the tools, and in mid-copy: nothing is left and nothing is called
// damaged.
func TestCancel(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(3)[2]
	for nth, done := 1, false; !done; nth++ {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		seen := 0
		l.images.before = func(string, string) error {
			mu.Lock()
			defer mu.Unlock()
			if seen++; seen == nth {
				cancel()
			}
			return nil
		}
		dir := l.out()
		_, err := l.engine.Restore(ctx, engine.RestoreRequest{Backup: b.ID, Dir: dir, Parallel: 1})
		done = seen < nth
		cancel()
		if done {
			l.ok(err)
			break
		}
		l.fails(err, context.Canceled)
		if errors.Is(err, kvmbackup.ErrDamaged) {
			t.Fatalf("cancelled and called damaged: %v", err)
		}
		l.empty(dir)
	}
	l.images.before = nil
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := l.out()
	told := 0
	l.onEvent(func(e engine.Event) {
		if e.Type != engine.EventProgress || e.Step != "copy" {
			return
		}
		if told++; told > 1 { // the first one is from before qemu-img
			cancel()
		}
	})
	// so slow that it would take minutes
	_, err := l.engine.Restore(ctx, engine.RestoreRequest{Backup: b.ID, Dir: dir, BandwidthBytes: 4096})
	l.fails(err, context.Canceled)
	l.empty(dir)

	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	cfg := l.cfg
	cfg.OnEvent = func(e engine.Event) {
		if e.Step == "check targets" {
			cancel()
		}
	}
	e, err := engine.New(cfg)
	l.ok(err)
	_, err = e.Restore(ctx, engine.RestoreRequest{Backup: b.ID, Dir: dir})
	if l.fails(err, context.Canceled); errors.Is(err, kvmbackup.ErrUnavailable) {
		t.Errorf("cancelled and called unavailable: %v", err)
	}
}

// TestCancelledVerificationSaysNothing: it doesn't call the backup damaged, nor record anything.
func TestCancelledVerificationSaysNothing(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2, digests)[1]
	for nth, done := 1, false; !done; nth++ {
		ctx, cancel := context.WithCancel(t.Context())
		seen := 0
		var mu sync.Mutex
		l.images.before = func(string, string) error {
			mu.Lock()
			defer mu.Unlock()
			if seen++; seen == nth {
				cancel()
			}
			return nil
		}
		_, err := l.engine.Verify(ctx, b.ID, engine.VerifyOptions{Content: true})
		done = seen < nth
		cancel()
		if done {
			l.ok(err)
			break
		}
		l.fails(err, context.Canceled)
		if errors.Is(err, kvmbackup.ErrDamaged) || l.get(b.ID).Verification != nil {
			t.Fatalf("call %d: %v; recorded %+v", nth, err, l.get(b.ID).Verification)
		}
	}
}

// TestHolesStayHoles restores a large, almost empty disk.
func TestHolesStayHoles(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	const large = 4 << 30
	l.ok(l.h.Attach(vm, l.disk("vdc", large)))
	l.volumes = append(l.volumes, volume("vdc"))
	l.backup(full)
	l.write("vdc", 40000, 2)
	b := l.backup()
	for format, limit := range map[qcow2.Format]int64{qcow2.FormatQcow2: 8 * cluster, qcow2.FormatRaw: 3 * cluster} {
		r, err := l.engine.Restore(t.Context(), engine.RestoreRequest{
			Backup: b.ID, Dir: l.out(), Format: format, Volumes: []engine.RestoreVolume{{ID: "v-vdc"}},
		})
		l.ok(err)
		var st syscall.Stat_t
		l.ok(syscall.Stat(r.Volumes[0].Path, &st))
		if got := st.Blocks * 512; got > limit {
			t.Errorf("%s: %d bytes allocated, want at most %d", format, got, limit)
		}
		if format == qcow2.FormatQcow2 {
			l.holds(r.Volumes[0].Path, format, l.held[b.ID]["v-vdc"])
		} else if info, err := os.Stat(r.Volumes[0].Path); err != nil || info.Size() != large {
			t.Errorf("raw file: %v, %v", info.Size(), err)
		}
	}
}

// TestLeftFilesOfAKilledRestore: a file that a killed restore left aside doesn't stand in the way.
func TestLeftFilesOfAKilledRestore(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.backup()
	dir := l.out()
	l.ok(os.WriteFile(waiting(filepath.Join(dir, "vda.v-vda.qcow2"), vm, "new"), []byte("half"), 0o600))
	l.restore(engine.RestoreRequest{Backup: b.ID, Dir: dir})
	entries, err := os.ReadDir(dir)
	l.ok(err)
	if len(entries) != 2 {
		t.Errorf("there: %v", entries)
	}
}
