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

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestEveryBackupOfSeveralChains restores first, middle and last ones of three chains, in mixed order.
func TestEveryBackupOfSeveralChains(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	all := slices.Concat(l.chain(3), l.chain(4), l.chain(1))
	for _, i := range []int{5, 0, 7, 2, 3, 1, 6, 4} {
		l.restore(engine.RestoreRequest{Backup: all[i].ID, Format: []qcow2.Format{qcow2.FormatRaw, qcow2.FormatQcow2}[i%2]})
	}
}

// TestDeletePendingParents: what is deleted can't be restored, what stands on it can.
func TestDeletePendingParents(t *testing.T) {
	t.Parallel()
	l := newLab(t)
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
	l := newLab(t, "vda", "vdb", "vdc")
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
			l.restore(engine.RestoreRequest{Backup: b.ID, Format: qcow2.FormatRaw, Volumes: []engine.RestoreVolume{{ID: v.VolumeID}}})
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
	l := newLab(t, "vda", "vdb", "vdc")
	empty := l.backup(full)
	written := l.chain(2)[1]
	for _, b := range []kvmbackup.Backup{empty, written} {
		var last, total, calls int64
		l.restore(engine.RestoreRequest{Backup: b.ID, Format: qcow2.FormatRaw, OnProgress: func(done, of int64) {
			if done < last || done > of || total != 0 && of != total {
				t.Errorf("progress %d of %d after %d of %d", done, of, last, total)
			}
			last, total = done, of
			calls++
		}})
		if last != total || total != 3*disk || calls == 0 {
			t.Errorf("%d calls, the last with %d of %d", calls, last, total)
		}
	}
}

// TestCancel ends the context at every call of the tools, and in mid-copy: nothing is left and nothing is called damaged.
func TestCancel(t *testing.T) {
	t.Parallel()
	l := newLab(t)
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
	_, err := l.engine.Restore(ctx, engine.RestoreRequest{ // so slow that it would take minutes
		Backup: b.ID, Dir: dir, BandwidthBytes: 4096, OnProgress: func(int64, int64) { cancel() },
	})
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
	l := newLab(t)
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
	l := newLab(t)
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
	l := newLab(t)
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
