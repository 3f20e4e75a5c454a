package sealtest

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// TestRekey: the new identity reads all, the old one none; only manifests were rewritten. Old and new mix in one chain.
func TestRekey(t *testing.T) {
	w := newWorld(t)
	first, second := w.backup(sealed), w.backup(sealed)
	mixed := w.backup(plain)
	last := w.backup(sealed)
	_, err := w.taker().Delete(t.Context(), second.ID, kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	fresh := newPair(t)
	before := w.tree()

	one, err := w.reader().Rekey(t.Context(), engine.RekeyRequest{Backup: first.ID, To: takes(t, fresh)})
	if err != nil || len(one) != 1 || !one[0].Changed || !slices.Equal(one[0].KeyIDs, []string{fresh.public}) ||
		!slices.Equal(one[0].Before, []string{w.mine.public}) {
		t.Fatalf("rekeyed %v, %v", one, err)
	}
	for _, k := range []*engine.Engine{w.reader(), w.engine(reads(t, fresh))} { // each lacks the other's half
		_, err := k.Restore(t.Context(), engine.RestoreRequest{Backup: last.ID, Dir: t.TempDir()})
		if !errors.Is(err, kvmbackup.ErrKey) {
			t.Errorf("with half of the keys: %v", err)
		}
	}
	w.restored(w.engine(reads(t, w.mine, fresh)), last)

	// This reader can't open the first any more.
	all, err := w.reader().Rekey(t.Context(), engine.RekeyRequest{To: takes(t, fresh)})
	if err != nil || len(all) != 3 || all[0].Changed || !all[1].Changed || !all[2].Changed {
		t.Fatalf("rekeyed %v, %v", all, err)
	}
	for _, b := range []kvmbackup.Backup{first, mixed, last} {
		w.restored(w.engine(reads(t, fresh)), b)
		_, err := w.reader().Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: t.TempDir()})
		if !errors.Is(err, kvmbackup.ErrKey) {
			t.Errorf("the old identity still reads %s: %v", b.Path, err)
		}
		report, err := w.engine(reads(t, fresh)).Verify(t.Context(), b.ID, engine.VerifyOptions{Open: true})
		if err != nil || !report.OK() {
			t.Errorf("verified: %+v, %v", report, err)
		}
	}
	got, err := w.reader().Get(t.Context(), last.ID)
	if err != nil || !slices.Equal(got.KeyIDs, []string{fresh.public}) {
		t.Errorf("on record is %q, %v", got.KeyIDs, err)
	}
	for path, file := range w.tree() {
		if filepath.Base(path) != repository.ManifestName && file != before[path] {
			t.Errorf("%s was changed", path)
		}
		if strings.Contains(file, w.mine.public) {
			t.Errorf("%s is still wrapped for the old recipient", path)
		}
	}
}

// TestRekeyBelievesNoManifest: key IDs that the share's server has written into a manifest don't make a backup the new
// recipients', nor do keys under the right IDs that nobody opens.
func TestRekeyBelievesNoManifest(t *testing.T) {
	w := newWorld(t)
	b := w.backup(sealed)
	fresh := newPair(t)
	m, err := w.repo.ReadManifest(t.Context(), b.Path)
	lab.OK(t, err)
	lab.OK(t, w.repo.RewriteManifest(t.Context(), m.WithKeys([]kvmbackup.WrappedKey{
		{KeyID: fresh.public, Wrapped: m.Keys[0].Wrapped},
	})))
	done, err := w.reader().Rekey(t.Context(), engine.RekeyRequest{VM: vm, To: takes(t, fresh)})
	if !errors.Is(err, kvmbackup.ErrKey) || len(done) != 1 || done[0].Err == nil || done[0].Changed {
		t.Errorf("taken for done by a manifest's word: %v, %v", done, err)
	}
	got, err := w.reader().Get(t.Context(), b.ID)
	if err != nil || !slices.Equal(got.KeyIDs, []string{w.mine.public}) {
		t.Errorf("on record is %q, %v", got.KeyIDs, err)
	}

	lab.OK(t, w.repo.RewriteManifest(t.Context(), m))
	_, err = w.reader().Rekey(t.Context(), engine.RekeyRequest{VM: vm, To: takes(t, fresh)})
	lab.OK(t, err)
	other, err := takes(t, fresh).WrapKey(t.Context(), kvmbackup.NewDataKey())
	lab.OK(t, err)
	lab.OK(t, w.repo.RewriteManifest(t.Context(), m.WithKeys(other)))
	done, err = w.engine(reads(t, fresh)).Rekey(t.Context(), engine.RekeyRequest{VM: vm, To: takes(t, fresh)})
	if !errors.Is(err, kvmbackup.ErrDamaged) || len(done) != 1 || done[0].Err == nil {
		t.Errorf("another's data key is taken for done: %v, %v", done, err)
	}
}

// TestRekeyBrokenOff: whatever step it is broken off at, every backup can be read by the old identity or the new one,
// and the next call finishes it.
func TestRekeyBrokenOff(t *testing.T) {
	broken := errors.New("broken off")
	for at := 0; ; at++ {
		w := newWorld(t)
		all := []kvmbackup.Backup{w.backup(sealed), w.backup(sealed)}
		fresh := newPair(t)
		n, stopped := 0, false
		repo, err := repository.Open(t.Context(), w.repo.Root(),
			repository.Options{NoSync: true, BeforeStep: func(string) error {
				if n++; n > at {
					stopped = true
					return broken
				}
				return nil
			}})
		lab.OK(t, err)
		whole := w.cfg.Repository
		w.cfg.Repository = repo
		_, err = w.reader().Rekey(t.Context(), engine.RekeyRequest{VM: vm, To: takes(t, fresh)})
		w.cfg.Repository = whole
		if stopped != (err != nil) {
			t.Fatalf("step %d: %v", at, err)
		}
		for _, b := range all {
			w.restored(w.engine(reads(t, w.mine, fresh)), b)
		}
		_, err = w.reader().Rekey(t.Context(), engine.RekeyRequest{VM: vm, To: takes(t, fresh)})
		lab.OK(t, err)
		for _, b := range all {
			w.restored(w.engine(reads(t, fresh)), b)
			got, err := w.reader().Get(t.Context(), b.ID)
			if err != nil || !slices.Equal(got.KeyIDs, []string{fresh.public}) {
				t.Errorf("step %d: on record is %q, %v", at, got.KeyIDs, err)
			}
		}
		if !stopped {
			if at < 4 {
				t.Errorf("only %d steps", at)
			}
			return
		}
	}
}

// TestRekeyRefusals: nobody to give them to, and what isn't sealed.
func TestRekeyRefusals(t *testing.T) {
	w := newWorld(t)
	p, s := w.backup(plain), w.backup(sealed)
	before := w.tree()
	for name, c := range map[string]struct {
		req  engine.RekeyRequest
		want error
	}{
		"nobody":         {engine.RekeyRequest{Backup: s.ID}, kvmbackup.ErrInvalid},
		"no recipient":   {engine.RekeyRequest{Backup: s.ID, To: takes(t)}, kvmbackup.ErrKey},
		"a plain backup": {engine.RekeyRequest{Backup: p.ID, To: takes(t, w.mine)}, kvmbackup.ErrInvalid},
		"an unknown one": {
			engine.RekeyRequest{Backup: kvmbackup.NewBackupID(), To: takes(t, w.mine)}, kvmbackup.ErrNotFound,
		},
		"a failing service": {
			engine.RekeyRequest{Backup: s.ID, To: service{err: errors.New("gone")}}, kvmbackup.ErrUnavailable,
		},
	} {
		if _, err := w.reader().Rekey(t.Context(), c.req); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	done, err := w.taker().Rekey(t.Context(), engine.RekeyRequest{To: takes(t, newPair(t))})
	if !errors.Is(err, kvmbackup.ErrKey) || len(done) != 1 || done[0].Err == nil {
		t.Errorf("without an identity: %v, %v", done, err)
	}
	if !maps.Equal(before, w.tree()) {
		t.Error("a refused call has changed something")
	}
}
