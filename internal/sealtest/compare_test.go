package sealtest

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// compares is a policy that compares everything.
func compares() kvmbackup.Policy {
	p := sealed
	p.ForceCompare = true
	return p
}

func because(reasons []kvmbackup.Reason, code kvmbackup.ReasonCode) bool {
	return slices.ContainsFunc(reasons, func(r kvmbackup.Reason) bool { return r.Code == code })
}

// TestCompare: a host without a key can't compare with sealed backups, and says so. One with an identity reads them.
// One with an index key stores whole pieces: the disk is smaller than one.
func TestCompare(t *testing.T) {
	const cluster = kvmbackuptest.ClusterBytes
	w := newWorld(t)
	take := func(e *engine.Engine, p kvmbackup.Policy) kvmbackup.Backup {
		t.Helper()
		b, err := e.Backup(t.Context(), w.request(p))
		lab.OK(t, err)
		w.contents[b.ID], err = w.h.Content(string(vm), "vda")
		lab.OK(t, err)
		w.restored(w.reader(), b)
		return b
	}
	w.change()
	take(w.taker(), sealed)
	_, err := w.taker().Backup(t.Context(), w.request(compares()))
	lab.Fails(t, err, kvmbackup.ErrUnsupported)
	broken := sealed
	broken.Compare, broken.OfflineIncremental = true, false
	w.change()
	if b := take(w.taker(), broken); b.Kind != kvmbackup.KindFull || !because(b.Reasons, engine.ReasonCannotCompare) {
		t.Errorf("without a key it is %v: %v", b.Kind, b.Reasons)
	}
	w.change()
	if b := take(w.reader(), broken); b.Kind != kvmbackup.KindIncremental || b.Volumes[0].DirtyBytes != cluster {
		t.Errorf("with an identity it is %v with %d bytes: %v", b.Kind, b.Volumes[0].DirtyBytes, b.Reasons)
	}

	w.cfg.IndexKey = kvmbackup.NewDataKey()
	full := compares()
	full.ForceFull = true
	take(w.taker(), full)
	if b := take(w.taker(), compares()); b.Kind != kvmbackup.KindIncremental || b.Volumes[0].DirtyBytes != 0 {
		t.Errorf("nothing has changed, and it is %v with %d bytes: %v", b.Kind, b.Volumes[0].DirtyBytes, b.Reasons)
	}
	w.change()
	b := take(w.taker(), compares())
	if b.Volumes[0].DirtyBytes != 8*cluster || !because(b.Reasons, engine.ReasonComparedByIndex) ||
		because(b.Reasons, engine.ReasonBitmapMissed) {
		t.Errorf("%d bytes are stored: %v", b.Volumes[0].DirtyBytes, b.Reasons)
	}
	lab.OK(t, w.h.WriteBehind(string(vm), "vda", 0, kvmbackuptest.Pattern(99, 100)))
	if b = take(w.taker(), compares()); !because(b.Reasons, engine.ReasonBitmapMissed) {
		t.Errorf("what was written behind isn't told: %v", b.Reasons)
	}
	file := w.repo.FilePath(b.Path, b.Volumes[0].File) + ".index"
	data, err := os.ReadFile(file)
	lab.OK(t, err)
	data[len(data)/2] ^= 1
	lab.OK(t, os.WriteFile(file, data, 0o600))
	p, err := w.taker().Plan(t.Context(), w.request(broken))
	lab.OK(t, err)
	if p.Kind != kvmbackup.KindFull || !because(p.Reasons, engine.ReasonCannotCompare) {
		t.Errorf("with a damaged index the plan is %v", p)
	}
	if _, err := w.reader().Verify(t.Context(), b.ID, engine.VerifyOptions{}); !errors.Is(err, kvmbackup.ErrDamaged) {
		t.Errorf("a verification says %v of the index", err)
	}
}
