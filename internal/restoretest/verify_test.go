package restoretest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// verified wants a verification that finds nothing, and its record.
func (l *world) verified(b kvmbackup.Backup, content bool) engine.VerifyReport {
	l.Helper()
	before := time.Now().Add(-time.Millisecond)
	r, err := l.engine.Verify(l.Context(), b.ID, engine.VerifyOptions{Content: content})
	l.ok(err)
	v := l.get(b.ID).Verification
	if !r.OK() || r.NoDigests != (content && r.Digests == 0) || v == nil || !v.OK ||
		v.Content != (content && r.Digests > 0) || v.At.Before(before) || v.Problem != "" {
		l.Fatalf("report %+v, recorded %+v", r, v)
	}
	return r
}

// damaged wants a verification to find something, to say so in the record, and every problem's backups.
func (l *world) damaged(b kvmbackup.Backup, content bool) engine.VerifyReport {
	l.Helper()
	r, err := l.engine.Verify(l.Context(), b.ID, engine.VerifyOptions{Content: content})
	l.fails(err, kvmbackup.ErrDamaged)
	v := l.get(b.ID).Verification
	if r.OK() || r.NoDigests && r.Digests > 0 || v == nil || v.OK || v.Content != (content && r.Digests > 0) ||
		v.Problem != r.Problems[0].Detail {
		l.Fatalf("report %+v, recorded %+v", r, v)
	}
	return r
}

// finds wants a problem of that kind in a report, about that backup's file and with exactly those backups affected.
func (l *world) finds(r engine.VerifyReport, code engine.ProblemCode, b kvmbackup.Backup, file string,
	affects ...kvmbackup.Backup) {
	l.Helper()
	var want []kvmbackup.BackupID
	for _, a := range affects {
		want = append(want, a.ID)
	}
	for _, p := range r.Problems {
		if p.Code == code && p.Backup == b.ID && p.File == filepath.Join(b.Path, file) && slices.Equal(p.Affects, want) &&
			p.Detail != "" {
			return
		}
	}
	l.Fatalf("no %s problem of %s in %s that affects %v:\n%+v", code, file, b.Path, want, r.Problems)
}

func TestVerifyFindsNothing(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	chain := l.chain(3)
	for _, b := range chain {
		l.verified(b, false)
		if r := l.verified(b, true); r.Digests != 2*b.Position || r.Files != 2*(b.Position+1) {
			t.Errorf("report %+v", r)
		}
		l.ok(l.engine.AddDigests(t.Context(), b.ID))
	}
	if r := l.verified(chain[2], true); r.Digests != 6+2 {
		t.Errorf("report %+v", r)
	}
}

// TestDigestsLater are the same as those of backup time, and the manifest has them too.
func TestDigestsLater(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	l.chain(2)
	with := l.backup(digests, full)
	without := l.backup(full)
	l.ok(l.engine.AddDigests(t.Context(), without.ID))
	inc := l.backup(digests)
	again := l.backup()
	l.ok(l.engine.AddDigests(t.Context(), again.ID))
	// nothing was written in between
	for _, pair := range [][2]kvmbackup.Backup{{with, without}, {with, inc}, {with, again}} {
		for _, v := range l.get(pair[0].ID).Volumes {
			other, _ := l.get(pair[1].ID).Volume(v.VolumeID)
			if v.Digest == "" || v.Digest != other.Digest || other.FileDigest == "" {
				t.Errorf("%s: digest %q at backup time, later %q (file %q)", v.VolumeID, v.Digest, other.Digest, other.FileDigest)
			}
		}
	}
	m, err := l.repo.ReadManifest(t.Context(), again.Path)
	l.ok(err)
	for _, v := range m.Volumes {
		if v.Digest == "" || v.FileDigest == "" {
			t.Errorf("no digest in the manifest: %+v", v)
		}
	}
	raw := l.restore(engine.RestoreRequest{Backup: with.ID, Format: "raw"}).Volumes[0]
	sum, err := l.images.FileDigest(t.Context(), raw.Path)
	l.ok(err)
	if v, _ := l.get(with.ID).Volume(raw.VolumeID); v.Digest != sum {
		t.Errorf("digest %s, of the restored file %s", v.Digest, sum)
	}
}

// TestFlippedBytes flips one bit at every kind of place in the files of a chain, at many more, and in many of the
// manifests' bytes: always found, with the file's name.
func TestFlippedBytes(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	chain := l.chain(3, digests)
	rng := rand.New(rand.NewPCG(lab.Seed(t), 0)) //nolint:gosec // not for secrets
	stride := lab.Stride(len(chain))             // in the quick tier each place is tried in one of the files
	for i, b := range chain {
		path := l.file(b, "v-vda")
		info, err := os.Stat(path)
		l.ok(err)
		offsets := []int64{0, 5, 9, 15, 18, 23, 30, 35, 39, 44, 52, 58, 76, 84, 92, 99, 103, 104, 110, 400, info.Size() - 1}
		for at := int64(0); at < info.Size(); at += cluster { // the refcount table, its block, L1, L2, data
			offsets = append(offsets, at+rng.Int64N(16), at+rng.Int64N(cluster))
		}
		for n, at := range offsets {
			if n%stride != i%stride {
				continue
			}
			bit := byte(1) << rng.IntN(8)
			flip(t, path, at, bit)
			r, err := l.engine.Verify(t.Context(), chain[2].ID, engine.VerifyOptions{Content: true})
			flip(t, path, at, bit)
			if err == nil || r.OK() {
				t.Fatalf("bit %#x at %d of %s was not found", bit, at, path)
			}
			l.is(err, kvmbackup.ErrDamaged)
			p := r.Problems[0]
			var want []kvmbackup.BackupID
			for _, c := range chain[i:] {
				want = append(want, c.ID)
			}
			if p.Backup != b.ID || p.VolumeID != "v-vda" || p.File != b.Path+"/"+filepath.Base(path) ||
				!slices.Equal(p.Affects, want) {
				t.Fatalf("bit %#x at %d of %s: %+v", bit, at, path, p)
			}
		}
	}
	l.verified(chain[2], true)

	l.cfg.Images = sound{l.images} // qemu-img has nothing to say of a manifest, and thousands of runs take long
	quick, err := engine.New(l.cfg)
	l.ok(err)
	for i, b := range chain {
		path := filepath.Join(l.nas, b.Path, "backup.json")
		data, err := os.ReadFile(path)
		l.ok(err)
		// other bytes in each run: all of them take long
		for at := rng.IntN(5); at < len(data); at += 1 + rng.IntN(5*lab.Stride(4)) {
			bit := byte(1) << rng.IntN(8)
			flip(t, path, int64(at), bit)
			r, err := quick.Verify(t.Context(), chain[2].ID, engine.VerifyOptions{})
			flip(t, path, int64(at), bit)
			if err == nil || len(r.Problems) != 1 {
				t.Fatalf("bit %#x at %d of %s: %v, %+v", bit, at, path, err, r.Problems)
			}
			l.is(err, kvmbackup.ErrDamaged)
			l.finds(r, engine.ProblemManifest, b, "backup.json", chain[i:]...)
		}
	}
	l.verified(chain[2], true)
}

// sound takes the structure of every file for sound.
type sound struct{ *watched }

func (sound) Check(context.Context, string, qcow2.CheckOptions) (qcow2.CheckResult, error) {
	return qcow2.CheckResult{}, nil
}

func flip(t testing.TB, path string, at int64, bit byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= bit
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// TestDamageByHand: files that are cut, missing, swapped or too many, and what is said of them, with and without
// digests.
func TestDamageByHand(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, withDigests := range []bool{false, true} {
		l := newWorld(t)
		var opts []func(*engine.BackupRequest)
		if withDigests {
			opts = append(opts, digests)
		}
		c := l.chain(3, opts...)
		root := "root.v-vda.qcow2"
		at := func(i int, name string) string { return filepath.Join(l.nas, c[i].Path, name) }
		for name, d := range map[string]struct {
			do    func()
			check func(engine.VerifyReport)
		}{
			"cut": {
				func() { l.ok(os.Truncate(at(1, root), 3*cluster)) },
				func(r engine.VerifyReport) { l.finds(r, engine.ProblemCheck, c[1], root, c[1], c[2]) },
			},
			"emptied": {
				func() { l.ok(os.Truncate(at(0, root), 0)) },
				func(r engine.VerifyReport) { l.finds(r, engine.ProblemCheck, c[0], root, c[0], c[1], c[2]) },
			},
			"missing": {
				func() { l.ok(os.Remove(at(1, root))) },
				func(r engine.VerifyReport) { l.finds(r, engine.ProblemMissing, c[1], root, c[1], c[2]) },
			},
			"swapped between backups": {
				func() { exchange(t, at(1, root), at(2, root)) },
				func(r engine.VerifyReport) {
					l.finds(r, engine.ProblemLink, c[1], root, c[1], c[2])
					l.finds(r, engine.ProblemLink, c[2], root, c[2])
				},
			},
			"swapped between volumes": {
				func() { exchange(t, at(1, root), at(1, "datadisk.v-vdb.qcow2")) },
				func(r engine.VerifyReport) {
					l.finds(r, engine.ProblemLink, c[1], root, c[1], c[2])
					l.finds(r, engine.ProblemLink, c[1], "datadisk.v-vdb.qcow2", c[1], c[2])
				},
			},
			"swapped between full volumes": {
				func() { exchange(t, at(0, root), at(0, "datadisk.v-vdb.qcow2")) },
				func(r engine.VerifyReport) {
					l.finds(r, engine.ProblemContent, c[0], root, c[0], c[1], c[2])
					l.finds(r, engine.ProblemContent, c[0], "datadisk.v-vdb.qcow2", c[0], c[1], c[2])
				},
			},
			"side file changed": {
				func() { flip(t, at(1, "domain.xml"), 3, 1) },
				func(r engine.VerifyReport) { l.finds(r, engine.ProblemSideFile, c[1], "domain.xml", c[1]) },
			},
			"side file longer": {
				func() {
					l.ok(os.WriteFile(at(2, "domain.xml"), bytes.Repeat([]byte("x"), 1<<20), 0o600))
				},
				func(r engine.VerifyReport) { l.finds(r, engine.ProblemSideFile, c[2], "domain.xml", c[2]) },
			},
			"side file missing": {
				func() { l.ok(os.Remove(at(0, "domain.xml"))) },
				func(r engine.VerifyReport) { l.finds(r, engine.ProblemMissing, c[0], "domain.xml", c[0]) },
			},
			"manifest missing": {
				func() { l.ok(os.Remove(at(1, "backup.json"))) },
				func(r engine.VerifyReport) { l.finds(r, engine.ProblemManifest, c[1], "backup.json", c[1], c[2]) },
			},
			"manifest damaged": {
				func() { l.ok(os.Truncate(at(0, "backup.json"), 100)) },
				func(r engine.VerifyReport) {
					l.finds(r, engine.ProblemManifest, c[0], "backup.json", c[0], c[1], c[2])
				},
			},
			"manifest of another backup": {
				func() { exchange(t, at(1, "backup.json"), at(2, "backup.json")) },
				func(r engine.VerifyReport) {
					l.finds(r, engine.ProblemManifest, c[1], "backup.json", c[1], c[2])
					l.finds(r, engine.ProblemManifest, c[2], "backup.json", c[2])
				},
			},
			"manifest of a later version": {
				func() { edit(t, at(1, "backup.json"), `"version": 1`, `"version": 3`) },
				func(r engine.VerifyReport) { l.finds(r, engine.ProblemManifest, c[1], "backup.json", c[1], c[2]) },
			},
			"folder missing": {
				func() { l.ok(os.RemoveAll(at(0, ""))) },
				func(r engine.VerifyReport) {
					l.finds(r, engine.ProblemManifest, c[0], "backup.json", c[0], c[1], c[2])
					l.finds(r, engine.ProblemMissing, c[0], root, c[0], c[1], c[2])
				},
			},
		} {
			if needsDigests[name] && !withDigests {
				continue
			}
			keep := t.TempDir()
			run(t, "cp", "-a", l.nas+"/.", keep)
			d.do()
			d.check(l.damaged(c[2], withDigests))
			_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: c[2].ID, Dir: l.out()})
			if harmless := strings.HasPrefix(name, "side file"); harmless != (err == nil) {
				t.Errorf("%s: restore: %v", name, err)
			}
			l.ok(os.RemoveAll(filepath.Join(l.nas, vm)))
			run(t, "cp", "-a", keep+"/.", l.nas)
			l.verified(c[2], withDigests)
		}
	}
}

// TestExtraFiles: what is in a backup's folder and not its own is named, and is no damage: the backup restores, and
// carries the next one.
func TestExtraFiles(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	c := l.chain(2, digests)
	for name, put := range map[string]func(path string) error{
		"notes.txt": func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"folder":    func(path string) error { return os.Mkdir(path, 0o755) },
		"link":      func(path string) error { return os.Symlink("/dev/zero", path) },
	} {
		l.ok(put(filepath.Join(l.nas, c[0].Path, name)))
	}
	r := l.verified(c[1], true)
	if len(r.Notes) != 3 {
		t.Fatalf("notes %+v", r.Notes)
	}
	for i, name := range []string{"folder", "link", "notes.txt"} {
		n := r.Notes[i]
		if n.Code != engine.ProblemExtra || n.Backup != c[0].ID || n.File != c[0].Path+"/"+name || n.Detail == "" ||
			len(n.Affects) > 0 {
			t.Errorf("note on %s: %+v", name, n)
		}
	}
	l.restore(engine.RestoreRequest{Backup: c[1].ID})
	l.write("vda", 3, 1)
	if next := l.backup(); next.Kind != kvmbackup.KindIncremental {
		t.Errorf("the next backup is %v: %v", next.Kind, next.Reasons)
	}
}

// needsDigests is damage that leaves every file whole in itself, with the links that it should have.
var needsDigests = map[string]bool{"swapped between full volumes": true}

// TestManifestFields changes one field of a manifest at a time, and its checksum with it: a verification finds each
// that the record has too.
func TestManifestFields(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2, digests)[1]
	path := filepath.Join(l.nas, b.Path, "backup.json")
	v := b.Volumes[0]
	for _, change := range [][2]string{
		{string(b.ID), string(kvmbackup.NewBackupID())},
		{string(b.ChainID), string(kvmbackup.NewBackupID())},
		{`"position": 1`, `"position": 2`},
		{`"virtual_size": 1048576`, `"virtual_size": 1048577`},
		{v.Digest[len("sha256-4m:"):], strings.Repeat("0", 64)},
		{v.FileDigest[len("sha256-4m:"):], strings.Repeat("0", 64)},
		{string(b.Checkpoint), "kvmbackup-other"},
		{`"device": "vda"`, `"device": "vdz"`},
	} {
		data, err := os.ReadFile(path)
		l.ok(err)
		edit(t, path, change[0], change[1])
		l.finds(l.damaged(b, false), engine.ProblemManifest, b, "backup.json", b)
		l.ok(os.WriteFile(path, data, 0o600))
	}
	l.verified(b, true)
}

func exchange(t testing.TB, a, b string) {
	t.Helper()
	for _, mv := range [][2]string{{a, a + ".x"}, {b, a}, {a + ".x", b}} {
		if err := os.Rename(mv[0], mv[1]); err != nil {
			t.Fatal(err)
		}
	}
}

// edit changes a text in a manifest, once, and gives it the checksum that belongs to it then.
func edit(t testing.TB, path, from, to string) {
	t.Helper()
	replace(t, path, from, to)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(data, []byte(`"checksum": "`)) + len(`"checksum": "`)
	digits := data[at : at+64]
	copy(digits, strings.Repeat("0", 64))
	sum := sha256.Sum256(data)
	hex.Encode(digits, sum[:])
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace changes a text in a file, once.
func replace(t testing.TB, path, from, to string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(data, []byte(from)) {
		t.Fatalf("%q is not in %s:\n%s", from, path, data)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte(from), []byte(to), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDigestsNeedWhatComputesThem: without, it is an error and no crash; and nothing is recorded of another folder's
// files.
func TestDigestsNeedWhatComputesThem(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.backup()
	e, err := engine.New(engine.Config{Store: l.store, Repository: l.repo})
	l.ok(err)
	l.fails(e.AddDigests(t.Context(), b.ID), kvmbackup.ErrUnsupported)
	l.ok(os.Remove(filepath.Join(l.nas, b.Path, "backup.json")))
	l.fails(l.engine.AddDigests(t.Context(), b.ID), kvmbackup.ErrMissingFile)
}
