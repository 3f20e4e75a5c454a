package restoretest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// otherHost is an engine without a hypervisor on a repository that was brought elsewhere.
func (l *world) otherHost(nas string, store kvmbackup.Store) *engine.Engine {
	l.Helper()
	repo, err := repository.Open(l.Context(), nas, repository.Options{NoSync: true})
	l.ok(err)
	e, err := engine.New(engine.Config{Store: store, Repository: repo, Images: l.images})
	l.ok(err)
	return e
}

// restoresAll imports into an engine and restores every backup that the world knows.
func (l *world) restoresAll(e *engine.Engine) {
	l.Helper()
	for id, held := range l.held {
		r, err := e.Restore(l.Context(), engine.RestoreRequest{Backup: id, Dir: l.out()})
		l.ok(err)
		l.compare(r.Volumes, held)
	}
}

// TestTheFolderIsEnough copies, moves and renames the repository, and restores on a host with an empty store.
func TestTheFolderIsEnough(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	l.chain(3, digests)
	l.chain(2)
	copied := filepath.Join(l.dir, "copy of the share")
	run(t, "cp", "-a", l.nas, copied)
	moved := filepath.Join(l.dir, "elsewhere", "nas, renamed: 2")
	l.ok(os.Mkdir(filepath.Dir(moved), 0o755))
	l.ok(os.Rename(l.nas, moved))
	for _, nas := range []string{copied, moved} {
		e := l.otherHost(nas, memstore.New())
		done, err := e.Import(t.Context(), "")
		l.ok(err)
		if len(done) != 5 {
			t.Fatalf("imported %+v", done)
		}
		l.restoresAll(e)
		for id := range l.held {
			if r, err := e.Verify(t.Context(), id, engine.VerifyOptions{Content: true}); err != nil || !r.OK() {
				t.Errorf("verify: %v", err)
			}
		}
	}
}

// TestPartialAndNewerStores: what is on record stays, what is missing is added, in whatever part the store knows.
func TestPartialAndNewerStores(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	all := l.chain(4)
	for known := range len(all) + 1 {
		st := memstore.New()
		e := l.otherHost(l.nas, st)
		for _, b := range all[:known] {
			lease, err := st.AcquireLease(t.Context(), vm, "test", 1e9)
			l.ok(err)
			b.Pinned = true
			l.ok(st.Import(t.Context(), lease, b))
			l.ok(st.ReleaseLease(t.Context(), lease))
		}
		done, err := e.Import(t.Context(), vm)
		l.ok(err)
		for i, d := range done {
			if d.Added != (i >= known) || d.Reason != "" {
				t.Errorf("with %d known: %+v", known, d)
			}
		}
		for i, b := range all {
			got, err := e.Get(t.Context(), b.ID)
			l.ok(err)
			if got.Pinned != (i < known) {
				t.Errorf("with %d known, %d is %+v", known, i, got)
			}
		}
		l.restoresAll(e)
	}
}

// TestExport brings what was recorded later into the folder, from where another host reads it.
func TestExport(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2)[1]
	l.ok(l.engine.AddDigests(t.Context(), b.ID))
	l.verified(b, true)
	n, err := l.engine.Export(t.Context(), vm)
	l.ok(err)
	if n != 2 {
		t.Errorf("exported %d", n)
	}
	l.verified(b, true)
	e := l.otherHost(l.nas, memstore.New())
	_, err = e.Import(t.Context(), "")
	l.ok(err)
	got, err := e.Get(t.Context(), b.ID)
	l.ok(err)
	for _, v := range l.get(b.ID).Volumes {
		if o, _ := got.Volume(v.VolumeID); o.Digest != v.Digest || o.FileDigest != v.FileDigest || v.Digest == "" {
			t.Errorf("digests %q %q, want %q %q", o.Digest, o.FileDigest, v.Digest, v.FileDigest)
		}
	}
	l.restoresAll(e)
}

// TestByHand runs the commands of docs/format.md: nothing but qemu-img.
func TestByHand(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(4)[3]
	copied := filepath.Join(l.dir, "usb disk")
	run(t, "cp", "-a", l.nas, copied)
	document, err := os.ReadFile("../../docs/format.md")
	l.ok(err)
	_, text, _ := strings.Cut(string(document), "## Restoring with qemu-img alone")
	_, text, _ = strings.Cut(text, "```sh\n")
	text, _, _ = strings.Cut(text, "```")
	for _, v := range b.Volumes {
		for format, o := range map[qcow2.Format]string{qcow2.FormatQcow2: "-O qcow2", qcow2.FormatRaw: "-O raw"} {
			restored := filepath.Join(l.out(), "restored")
			commands := strings.NewReplacer("ROOT/VM/STAMP", `"$1"`, "root.VOLUMEID.qcow2", `"$2"`,
				"/var/lib/libvirt/images/restored.qcow2", `"$3"`, "-O qcow2", o).Replace(text)
			said := run(t, "sh", "-ec", commands, "sh", filepath.Join(copied, b.Path), v.File, restored)
			if n := strings.Count(said, "file format: qcow2"); n < 4 || strings.Contains(said, "data file:") {
				t.Errorf("info says:\n%s", said)
			}
			l.holds(restored, format, l.held[b.ID][v.VolumeID])
		}
	}
}

// TestOtherRepository: records of one are never served from the files of another.
func TestOtherRepository(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.chain(2)[1]
	other := filepath.Join(l.dir, "other")
	run(t, "cp", "-a", l.nas, other)
	l.ok(os.Remove(filepath.Join(other, repository.MarkerName)))
	_, err := repository.Init(t.Context(), other, repository.Options{NoSync: true})
	l.ok(err)
	e := l.otherHost(other, l.store)
	_, err = e.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: l.out()})
	l.fails(err, kvmbackup.ErrOtherRepository)
	_, err = e.Verify(t.Context(), b.ID, engine.VerifyOptions{Content: true})
	l.fails(err, kvmbackup.ErrOtherRepository)
	_, err = e.Open(t.Context(), engine.OpenRequest{Backup: b.ID, Dir: l.out()})
	l.fails(err, kvmbackup.ErrOtherRepository)
	l.fails(e.AddDigests(t.Context(), b.ID), kvmbackup.ErrOtherRepository)
}
