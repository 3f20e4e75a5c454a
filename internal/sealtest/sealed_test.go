package sealtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/seal"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// TestRecipientAlone: a host that has the public recipient alone takes fulls and incrementals for ever and can read
// none of them, its own of yesterday included. A host that has the identity reads all.
func TestRecipientAlone(t *testing.T) {
	w := newWorld(t)
	var all []kvmbackup.Backup
	for range 7 {
		all = append(all, w.backup(sealed))
	}
	if all[1].Kind != kvmbackup.KindIncremental || all[5].Kind != kvmbackup.KindFull ||
		all[6].Kind != kvmbackup.KindIncremental {
		t.Errorf("the kinds are %v, %v and %v", all[1].Kind, all[5].Kind, all[6].Kind)
	}
	taker, reader := w.taker(), w.reader()
	before := w.tree()
	for _, b := range all {
		dir := t.TempDir()
		_, restore := taker.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
		_, open := taker.Open(t.Context(), engine.OpenRequest{Backup: b.ID, Dir: dir})
		_, browse := taker.Browse(t.Context(), b.ID, "v1", filepath.Join(dir, "s"))
		_, definition := taker.Definition(t.Context(), b.ID)
		_, verify := taker.Verify(t.Context(), b.ID, engine.VerifyOptions{Open: true})
		_, inPlace := taker.Restore(t.Context(), engine.RestoreRequest{
			Backup: b.ID, InPlace: &engine.InPlace{Volumes: w.request(sealed).Volumes},
		})
		_, rekey := taker.Rekey(t.Context(), engine.RekeyRequest{Backup: b.ID, To: takes(t, newPair(t))})
		for what, err := range map[string]error{"restore": restore, "open": open, "browse": browse, "definition": definition,
			"verify": verify, "in place": inPlace, "rekey": rekey} {
			if !errors.Is(err, kvmbackup.ErrKey) || !strings.Contains(err.Error(), w.mine.public) {
				t.Errorf("%s of %s without an identity: %v", what, b.Path, err)
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		w.restored(reader, b)
		def, err := reader.Definition(t.Context(), b.ID)
		if err != nil || !bytes.Contains(def.XML, []byte("<name>vm1</name>")) {
			t.Errorf("the definition is %q, %v", def.XML, err)
		}
		report, err := reader.Verify(t.Context(), b.ID, engine.VerifyOptions{Open: true, Content: true})
		if err != nil || !report.OK() || len(report.MissingKeys) > 0 || report.Digests == 0 {
			t.Errorf("verified: %+v, %v", report, err)
		}
	}
	if !maps.Equal(before, w.tree()) {
		t.Error("the repository was changed")
	}
}

// TestNothingInTheClear: neither what the guest wrote nor its definition nor a digest of its content is in the
// repository, in records, events or logs, and no data key is anywhere.
func TestNothingInTheClear(t *testing.T) {
	w := newWorld(t)
	var said bytes.Buffer
	w.cfg.OnEvent = func(ev engine.Event) {
		b, err := json.Marshal(ev)
		lab.OK(t, err)
		fmt.Fprintf(&said, "%s %+v %v\n", b, ev, ev)
	}
	w.cfg.Logger = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	digests := w.request(sealed)
	digests.Digests = true
	w.change()
	_, err := w.taker().Backup(t.Context(), digests)
	lab.OK(t, err)
	b := w.backup(sealed)
	m, err := w.repo.ReadManifest(t.Context(), b.Path)
	lab.OK(t, err)
	key, err := reads(t, w.mine).UnwrapKey(t.Context(), m.Keys)
	lab.OK(t, err)
	raw, err := key.MarshalBinary()
	lab.OK(t, err)
	content := string(kvmbackuptest.Pattern(w.writes, 100))
	text := fmt.Sprintf("%+v", b)
	for path, file := range w.tree() {
		text += path + file
	}
	text += said.String()
	for what, secret := range map[string]string{
		"the data key": string(raw), "the data key in hexadecimal": fmt.Sprintf("%x", raw),
		"the images' secret": key.ImagesSecret(),
		"an image's secret":  key.ImageSecret(b.Volumes[0].File),
		"an identity":        "AGE-SECRET-KEY", "what the guest wrote": content, "the definition": "<domain",
		"a digest of content": `"digest":`,
	} {
		if strings.Contains(text, secret) {
			t.Errorf("%s is in the clear", what)
		}
	}
	if !strings.Contains(text, "file_digest") || said.Len() == 0 {
		t.Error("what is looked through lacks what is in the clear")
	}
}

// TestTransitions: plain and sealed backups mix in one chain, whose count of backups goes on, and a policy may ask for
// a full.
func TestTransitions(t *testing.T) {
	w := newWorld(t)
	forced := sealed
	forced.ForceFull = true
	var all []kvmbackup.Backup
	kinds := ""
	for _, p := range []kvmbackup.Policy{plain, sealed, plain, sealed, sealed, sealed, plain, forced} {
		b := w.backup(p)
		all, kinds = append(all, b), kinds+strings.ToUpper(b.Kind.String()[:1])
	}
	if kinds != "FIIIIFIF" {
		t.Errorf("the kinds are %s", kinds)
	}
	for i, b := range all {
		w.restored(w.reader(), b)
		_, err := w.taker().Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: t.TempDir()})
		if errors.Is(err, kvmbackup.ErrKey) == (i == 0) {
			t.Errorf("%s, which stands on sealed ones or is: %v", b.Path, err)
		}
	}
}

// TestWithoutKeys: lists, deletion with its cascade, retention, export, import, doctor and verification of digests need
// no key.
func TestWithoutKeys(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.backup(sealed), w.backup(sealed), w.backup(sealed)
	none := w.engine(nil)
	report, err := none.Verify(t.Context(), c.ID, engine.VerifyOptions{})
	if err != nil || !report.OK() || !slices.Equal(report.MissingKeys, []string{w.mine.public}) || report.Digests != 3 {
		t.Errorf("verified: %+v, %v", report, err)
	}
	n, err := none.Export(t.Context(), vm)
	if err != nil || n != 3 {
		t.Errorf("exported %d: %v", n, err)
	}
	w.restored(w.reader(), c)
	_, err = none.Inspect(t.Context(), engine.Target{VM: vm})
	lab.OK(t, err)
	_, err = none.Delete(t.Context(), b.ID, kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	w.restored(w.reader(), c) // by way of what is deleted
	before := w.cfg.Store
	w.cfg.Store = memstore.New()
	for _, k := range []engine.Keys{nil, takes(t, w.mine), reads(t, w.mine)} {
		w.cfg.Store = memstore.New()
		done, err := w.engine(k).Import(t.Context(), "")
		if err != nil || len(done) != 3 || !done[0].Added || !done[2].Added {
			t.Fatalf("imported %v, %v", done, err)
		}
		got, err := w.engine(k).Get(t.Context(), a.ID)
		if err != nil || !slices.Equal(got.KeyIDs, a.KeyIDs) || got.Volumes[0].FileEncryption != kvmbackup.EncryptionLUKS {
			t.Errorf("imported %+v, %v", got, err)
		}
		w.restored(w.reader(), c)
	}
	w.cfg.Store = before
	for _, id := range []kvmbackup.BackupID{c.ID, a.ID} {
		_, err = w.engine(nil).Delete(t.Context(), id, kvmbackup.DeleteOptions{})
		lab.OK(t, err)
	}
	for path := range w.tree() {
		if filepath.Base(path) != "kvmbackup-repository.json" {
			t.Errorf("%s is left", path)
		}
	}
}

// TestEveryByte: a changed byte anywhere in a sealed folder is found, and the file is named, with and without the key.
func TestEveryByte(t *testing.T) {
	w := newWorld(t)
	b := w.backup(sealed)
	folder := filepath.Join(w.repo.Root(), filepath.FromSlash(b.Path))
	first := int(lab.Seed(t) % (1 << 30))
	for path, file := range w.tree() {
		if filepath.Dir(path) != folder {
			continue
		}
		step := max(len(file)/lab.Rounds(30, 150), 1)
		for i := first % step; i < len(file); i += step {
			bad := []byte(file)
			bad[i] ^= 1 << (i % 8)
			lab.OK(t, os.WriteFile(path, bad, 0o600))
			for _, e := range []*engine.Engine{w.engine(nil), w.reader()} {
				report, err := e.Verify(t.Context(), b.ID, engine.VerifyOptions{})
				if !errors.Is(err, kvmbackup.ErrDamaged) || len(report.Problems) == 0 ||
					filepath.Base(report.Problems[0].File) != filepath.Base(path) {
					t.Fatalf("byte %d of %s: %+v, %v", i, path, report, err)
				}
			}
		}
		lab.OK(t, os.WriteFile(path, []byte(file), 0o600))
	}
	report, err := w.reader().Verify(t.Context(), b.ID, engine.VerifyOptions{Content: true})
	if err != nil || !report.OK() {
		t.Errorf("put back: %+v, %v", report, err)
	}
}

// TestOpened: a sealed volume is served for browsing, and below an overlay, until it is closed.
func TestOpened(t *testing.T) {
	w := newWorld(t)
	w.backup(sealed)
	b := w.backup(sealed)
	dir := t.TempDir()
	opened, err := w.reader().Open(t.Context(), engine.OpenRequest{Backup: b.ID, Dir: dir})
	lab.OK(t, err)
	sockets, err := filepath.Glob(filepath.Join(dir, "*.socket"))
	if err != nil || len(sockets) != len(b.Volumes) || len(opened.Volumes) != len(b.Volumes) {
		t.Errorf("served on %q below %v, %v", sockets, opened.Volumes, err)
	}
	lab.OK(t, opened.Close(t.Context()))
	if left, err := filepath.Glob(filepath.Join(dir, "*.socket")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 120))
	lab.OK(t, os.Mkdir(long, 0o755))
	if _, err := w.reader().Open(t.Context(), engine.OpenRequest{Backup: b.ID, Dir: long}); err == nil {
		t.Error("a socket's path has no limit")
	}
	if left, err := os.ReadDir(long); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	served, err := w.reader().Browse(t.Context(), b.ID, "v1", filepath.Join(dir, "s"))
	lab.OK(t, err)
	lab.OK(t, served.Close(t.Context()))
	got, err := w.reader().Get(t.Context(), b.ID)
	if err != nil || len(got.Holds) > 0 {
		t.Errorf("held by %v, %v", got.Holds, err)
	}
}

// TestExchangedKeys: a wrapped key of another backup in place of a backup's own is found by who has the identity,
// before anything is written.
func TestExchangedKeys(t *testing.T) {
	w := newWorld(t)
	a, b := w.backup(sealed), w.backup(sealed)
	of := func(b kvmbackup.Backup) repository.Manifest {
		m, err := w.repo.ReadManifest(t.Context(), b.Path)
		lab.OK(t, err)
		return m
	}
	good := of(b)
	lab.OK(t, w.repo.RewriteManifest(t.Context(), good.WithKeys(of(a).Keys)))
	dir := t.TempDir()
	_, restore := w.reader().Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
	_, definition := w.reader().Definition(t.Context(), b.ID)
	report, verify := w.reader().Verify(t.Context(), b.ID, engine.VerifyOptions{})
	done, rekey := w.reader().Rekey(t.Context(), engine.RekeyRequest{VM: vm, To: takes(t, newPair(t))})
	for _, err := range []error{restore, definition, verify, rekey} {
		if !errors.Is(err, kvmbackup.ErrDamaged) || !strings.Contains(err.Error(), "MAC") {
			t.Errorf("an exchanged key gives %v", err)
		}
	}
	if len(report.Problems) != 1 || report.Problems[0].Code != engine.ProblemManifest || len(done) != 2 ||
		done[0].Err != nil || done[1].Err == nil {
		t.Errorf("%+v, %v", report, done)
	}
	w.cfg.Store = memstore.New()
	imported, err := w.reader().Import(t.Context(), "")
	lab.OK(t, err)
	if len(imported) != 2 || imported[1].Added || !errors.Is(imported[1].Err, kvmbackup.ErrDamaged) {
		t.Errorf("imported %v", imported)
	}
}

// TestParentExchanged: another backup for the same recipients, which anybody can make, in a parent's place and under
// its ID, is found by what its child says of it, also where no record does, and without a key.
func TestParentExchanged(t *testing.T) {
	w, attacker := newWorld(t), newWorld(t)
	attacker.mine = w.mine
	parent, child := w.backup(sealed), w.backup(sealed)
	forged := attacker.backup(sealed)
	m, err := attacker.repo.ReadManifest(t.Context(), forged.Path)
	lab.OK(t, err)
	key, err := reads(t, w.mine).UnwrapKey(t.Context(), m.Keys) // who has made the key knows it
	lab.OK(t, err)
	m.ID, m.Path, m.ChainID, m.Checkpoint, m.DomainUUID = parent.ID, parent.Path, parent.ChainID, parent.Checkpoint,
		parent.DomainUUID
	m.StartedAt, m.CompletedAt = parent.StartedAt, parent.CompletedAt
	m, err = m.SealedWith(key)
	lab.OK(t, err)
	lab.OK(t, os.RemoveAll(filepath.Join(w.repo.Root(), parent.Path)))
	lab.OK(t, os.CopyFS(filepath.Join(w.repo.Root(), parent.Path),
		os.DirFS(filepath.Join(attacker.repo.Root(), forged.Path))))
	text, err := m.Encode()
	lab.OK(t, err)
	lab.OK(t, os.WriteFile(w.repo.FilePath(parent.Path, repository.ManifestName), text, 0o600))

	w.cfg.Store = memstore.New()
	for name, e := range map[string]*engine.Engine{"with the identity": w.reader(), "without": w.taker()} {
		imported, err := e.Import(t.Context(), "")
		lab.OK(t, err)
		if len(imported) != 2 || imported[0].Err != nil || imported[1].Added ||
			!errors.Is(imported[1].Err, kvmbackup.ErrDamaged) {
			t.Errorf("%s imported %v", name, imported)
		}
	}
	lease, err := w.cfg.Store.AcquireLease(t.Context(), vm, "test", time.Minute)
	lab.OK(t, err)
	child.Sequence = 99
	lab.OK(t, w.cfg.Store.Import(t.Context(), lease, child))
	lab.OK(t, w.cfg.Store.ReleaseLease(t.Context(), lease))
	for name, e := range map[string]*engine.Engine{"with the identity": w.reader(), "without": w.taker()} {
		_, err = e.Restore(t.Context(), engine.RestoreRequest{Backup: child.ID, Dir: t.TempDir()})
		report, verr := e.Verify(t.Context(), child.ID, engine.VerifyOptions{})
		for _, err := range []error{err, verr} {
			if !errors.Is(err, kvmbackup.ErrDamaged) || !strings.Contains(err.Error(), "parent_mac") {
				t.Errorf("%s: its parent was exchanged: %v", name, err)
			}
		}
		if len(report.Problems) != 1 || report.Problems[0].Backup != child.ID {
			t.Errorf("%s: %+v", name, report)
		}
	}
}

// TestParentExchangedBefore: nothing is built on a parent whose manifest isn't what its record says, which would vouch
// for it.
func TestParentExchangedBefore(t *testing.T) {
	w := newWorld(t)
	b := w.backup(sealed)
	m, err := w.repo.ReadManifest(t.Context(), b.Path)
	lab.OK(t, err)
	key := kvmbackup.NewDataKey()
	keys, err := takes(t, w.mine).WrapKey(t.Context(), key)
	lab.OK(t, err)
	m.Volumes[0].FileDigest = "sha256:" + strings.Repeat("00", 32)
	m, err = m.WithKeys(keys).SealedWith(key)
	lab.OK(t, err)
	lab.OK(t, w.repo.RewriteManifest(t.Context(), m))
	w.change()
	next, err := w.taker().Backup(t.Context(), w.request(sealed))
	lab.OK(t, err)
	if next.Kind != kvmbackup.KindFull || !slices.ContainsFunc(next.Reasons, func(r kvmbackup.Reason) bool {
		return r.Code == kvmbackup.ReasonParentDamaged
	}) {
		t.Errorf("built on an exchanged parent: %v, %v", next.Kind, next.Reasons)
	}
}

// TestManifestStaysAuthentic: what rewrites manifests leaves what the MAC is over as it is, and refuses a manifest that
// isn't the record's. Pins and verifications are written.
func TestManifestStaysAuthentic(t *testing.T) {
	w := newWorld(t)
	w.backup(sealed)
	b := w.backup(sealed)
	key := func() (repository.Manifest, error) {
		m, err := w.repo.ReadManifest(t.Context(), b.Path)
		lab.OK(t, err)
		k, err := reads(t, w.mine).UnwrapKey(t.Context(), m.Keys)
		lab.OK(t, err)
		return m, m.Authenticate(k)
	}
	m, err := key()
	lab.OK(t, err)
	// Another record, as an earlier import, or a store's migration, may have left it.
	record := m.Backup
	record.Volumes = slices.Clone(m.Volumes)
	record.Volumes[0].StoredSize, record.Volumes[0].DirtyBytes, record.StartedAt = 1, 2, m.StartedAt.Add(time.Second)
	store := memstore.New()
	lease, err := store.AcquireLease(t.Context(), vm, "test", time.Minute)
	lab.OK(t, err)
	full, err := w.cfg.Store.Backup(t.Context(), b.ParentID)
	lab.OK(t, err)
	lab.OK(t, errors.Join(store.Import(t.Context(), lease, full), store.Import(t.Context(), lease, record)))
	pinned := true
	lab.OK(t, store.Annotate(t.Context(), lease, b.ID, kvmbackup.Annotation{Pinned: &pinned}))
	lab.OK(t, store.ReleaseLease(t.Context(), lease))
	w.cfg.Store = store
	if n, err := w.taker().Export(t.Context(), vm); err != nil || n != 2 {
		t.Errorf("exported %d, %v", n, err)
	}
	if m, err = key(); err != nil || !m.Pinned {
		t.Errorf("after an export: pinned %v, %v", m.Pinned, err)
	}
	if err := w.reader().AddDigests(t.Context(), b.ID); err != nil {
		t.Errorf("digests of what has them: %v", err)
	}
	if _, err := key(); err != nil {
		t.Errorf("after digests: %v", err)
	}
	m.Volumes[0].FileDigest = "sha256:" + strings.Repeat("00", 32)
	lab.OK(t, w.repo.RewriteManifest(t.Context(), m))
	before := w.tree()
	if n, err := w.taker().Export(t.Context(), vm); !errors.Is(err, kvmbackup.ErrDamaged) || n != 1 {
		t.Errorf("exported %d over a manifest of another's: %v", n, err)
	}
	after := w.tree()
	if changed := w.repo.FilePath(b.Path, repository.ManifestName); after[changed] != before[changed] {
		t.Error("a manifest that isn't the record's was rewritten")
	}
}

// TestTakenForPlain: a plain manifest and a plain image in place of sealed ones are refused, also without digests.
func TestTakenForPlain(t *testing.T) {
	w := newWorld(t)
	b := w.backup(sealed)
	m, err := w.repo.ReadManifest(t.Context(), b.Path)
	lab.OK(t, err)
	m, m.MAC = m.WithKeys(nil), ""
	m.Volumes[0].FileEncryption = ""
	lab.OK(t, w.repo.RewriteManifest(t.Context(), m))
	file := w.repo.FilePath(b.Path, b.Volumes[0].File)
	lab.OK(t, os.Remove(file))
	lab.OK(t, kvmbackuptest.Images{}.Create(t.Context(), file, qcow2.CreateOptions{SizeBytes: b.Volumes[0].VirtualSize}))
	for _, k := range []engine.Keys{nil, reads(t, w.mine)} {
		req := engine.RestoreRequest{Backup: b.ID, Dir: t.TempDir(), SkipDigests: true}
		_, restore := w.engine(k).Restore(t.Context(), req)
		_, definition := w.engine(k).Definition(t.Context(), b.ID)
		_, verify := w.engine(k).Verify(t.Context(), b.ID, engine.VerifyOptions{})
		for _, err := range []error{restore, definition, verify} {
			if !errors.Is(err, kvmbackup.ErrDamaged) {
				t.Errorf("taken for plain: %v", err)
			}
		}
	}
}

// twoDisks is a sealed backup of a VM with two disks of one size.
func (w *world) twoDisks() kvmbackup.Backup {
	w.Helper()
	disk := func(device string) kvmbackuptest.Disk {
		return kvmbackuptest.Disk{Device: device, Source: filepath.Join(w.dir, "images", "two-"+device+".qcow2"),
			SizeBytes: 8 * kvmbackuptest.ClusterBytes}
	}
	lab.OK(w, w.h.Define(kvmbackuptest.Domain{Name: "two", Disks: []kvmbackuptest.Disk{disk("vda"), disk("vdb")}}))
	b, err := w.taker().Backup(w.Context(), engine.BackupRequest{VM: "two", Policy: sealed,
		Volumes: []engine.Volume{{ID: "v1", Device: "vda"}, {ID: "v2", Device: "vdb"}}})
	lab.OK(w, err)
	return b
}

// exchange gives each of the two files the other's name.
func (w *world) exchange(b kvmbackup.Backup) {
	w.Helper()
	one, other := w.repo.FilePath(b.Path, b.Volumes[0].File), w.repo.FilePath(b.Path, b.Volumes[1].File)
	lab.OK(w, errors.Join(os.Rename(one, one+".x"), os.Rename(other, one), os.Rename(one+".x", other)))
}

// TestDisksExchanged: the files of two disks of one backup, exchanged after their digests were compared, open as
// neither disk. Nothing else tells them apart: their sizes and links are the same.
func TestDisksExchanged(t *testing.T) {
	w := newWorld(t)
	b := w.twoDisks()
	w.exchange(b)
	dir := t.TempDir()
	_, restore := w.reader().Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir, SkipDigests: true})
	_, open := w.reader().Browse(t.Context(), b.ID, "v2", filepath.Join(dir, "s"))
	for err, file := range map[error]string{restore: b.Volumes[0].File, open: b.Volumes[1].File} {
		if !errors.Is(err, kvmbackup.ErrDamaged) || !strings.Contains(err.Error(), file) {
			t.Errorf("two disks' files were exchanged: %v", err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestForgedRecord: a record that was imported from a forged manifest, by a host without an identity, vouches for no
// files once the true manifest is back.
func TestForgedRecord(t *testing.T) {
	w := newWorld(t)
	b := w.twoDisks()
	m, err := w.repo.ReadManifest(t.Context(), b.Path)
	lab.OK(t, err)
	forged := m
	forged.Volumes = slices.Clone(m.Volumes)
	forged.Volumes[0].FileDigest, forged.Volumes[1].FileDigest = m.Volumes[1].FileDigest, m.Volumes[0].FileDigest
	lab.OK(t, w.repo.RewriteManifest(t.Context(), forged))
	w.exchange(b)
	w.cfg.Store = memstore.New()
	_, err = w.taker().Import(t.Context(), "")
	lab.OK(t, err)
	lab.OK(t, w.repo.RewriteManifest(t.Context(), m))
	dir := t.TempDir()
	_, err = w.reader().Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
	if written, lerr := os.ReadDir(dir); !errors.Is(err, kvmbackup.ErrDamaged) || lerr != nil || len(written) > 0 {
		t.Errorf("restored by a forged record: %v, %v, %v", err, written, lerr)
	}
}

// TestPlan: what stands in the way of sealing is part of the plan.
func TestPlan(t *testing.T) {
	w := newWorld(t)
	p, err := w.engine(nil).Plan(t.Context(), w.request(sealed))
	if err != nil || !errors.Is(p.Blocked, kvmbackup.ErrKey) {
		t.Errorf("planned without keys: %v, %v", p.Blocked, err)
	}
	p, err = w.taker().Plan(t.Context(), w.request(sealed))
	if err != nil || p.Blocked != nil {
		t.Errorf("planned: %v, %v", p.Blocked, err)
	}
}

// TestRefusals: what can't be sealed is refused before anything is written, with the way out.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.cfg.CleanupLimit = 50 * time.Millisecond
	running := newWorld(t)
	lab.OK(t, running.h.Start(string(vm)))
	otherwise := sealed
	otherwise.Encryption = "rot13"
	for name, c := range map[string]struct {
		w      *world
		keys   engine.Keys
		policy kvmbackup.Policy
		want   error
		text   string
	}{
		"no keys":              {w, nil, sealed, kvmbackup.ErrKey, "recipient"},
		"no recipient":         {w, seal.New(), sealed, kvmbackup.ErrKey, "recipient"},
		"a push":               {running, takes(t, w.mine), sealed, kvmbackup.ErrUnsupported, "encryption"},
		"another encryption":   {w, takes(t, w.mine), otherwise, kvmbackup.ErrInvalid, "rot13"},
		"a service that hangs": {w, service{hang: make(chan struct{})}, sealed, kvmbackup.ErrUnavailable, "keys"},
		"a service that fails": {w, service{err: errors.New("connection refused")}, sealed, kvmbackup.ErrUnavailable,
			"connection refused"},
		"wrapped for nobody": {w, service{}, sealed, kvmbackup.ErrKey, "recipient"},
		"wrapped in nothing": {w, service{wrapped: []kvmbackup.WrappedKey{{KeyID: "a"}}}, sealed,
			kvmbackup.ErrInvalid, "0 bytes"},
		"the same twice": {w, service{
			wrapped: []kvmbackup.WrappedKey{{KeyID: "a", Wrapped: []byte{1}}, {KeyID: "a", Wrapped: []byte{1}}},
		}, sealed,
			kvmbackup.ErrInvalid, "twice"},
	} {
		_, err := c.w.engine(c.keys).Backup(t.Context(), c.w.request(c.policy))
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		all, err := c.w.engine(nil).List(t.Context(), kvmbackup.Query{})
		if err != nil || len(all) > 0 || len(c.w.tree()) != 1 {
			t.Errorf("%s has left %v, %v", name, all, err)
		}
	}
}

// TestServiceGoneInBetween: a key service that is gone once the key is wrapped stands in a backup's way only where it
// has side files to seal. Then nothing is left.
func TestServiceGoneInBetween(t *testing.T) {
	w := newWorld(t)
	w.change()
	keys := service{wrapped: []kvmbackup.WrappedKey{{KeyID: "a", Wrapped: []byte{1}}}, files: errors.New("gone")}
	_, err := w.engine(keys).Backup(t.Context(), w.request(sealed))
	if !errors.Is(err, kvmbackup.ErrUnavailable) {
		t.Errorf("the service is gone: %v", err)
	}
	if len(w.tree()) != 1 {
		t.Errorf("left: %v", slices.Collect(maps.Keys(w.tree())))
	}
	b := w.backup(sealed)
	_, err = w.engine(service{err: errors.New("connection refused")}).Restore(t.Context(), engine.RestoreRequest{
		Backup: b.ID, Dir: t.TempDir(),
	})
	if !errors.Is(err, kvmbackup.ErrUnavailable) {
		t.Errorf("a restore without the service: %v", err)
	}
}

// service is a key service.
type service struct {
	seal.Files
	hang    chan struct{}
	err     error
	wrapped []kvmbackup.WrappedKey
	files   error
}

func (s service) WrapKey(context.Context, kvmbackup.DataKey) ([]kvmbackup.WrappedKey, error) {
	if s.hang != nil {
		<-s.hang
	}
	return s.wrapped, s.err
}

func (s service) UnwrapKey(context.Context, []kvmbackup.WrappedKey) (kvmbackup.DataKey, error) {
	return kvmbackup.DataKey{}, s.err
}

func (s service) SealFile(ctx context.Context, key kvmbackup.DataKey, b []byte) ([]byte, error) {
	if s.files != nil {
		return nil, s.files
	}
	return s.Files.SealFile(ctx, key, b)
}

// asked counts what a key service is asked for: it may be slow, and cost money.
type asked struct {
	engine.Keys
	unwrapped *int
}

func (a asked) UnwrapKey(ctx context.Context, w []kvmbackup.WrappedKey) (kvmbackup.DataKey, error) {
	*a.unwrapped++
	return a.Keys.UnwrapKey(ctx, w)
}

// A verification asks once for each backup's data key, also where all have to be opened.
func TestVerifyAsksOnce(t *testing.T) {
	w := newWorld(t)
	w.backup(sealed)
	w.change()
	b := w.backup(sealed)
	for _, open := range []bool{false, true} {
		n := 0
		e := w.engine(asked{reads(t, w.mine), &n})
		if _, err := e.Verify(t.Context(), b.ID, engine.VerifyOptions{Open: open, Content: true}); err != nil || n != 2 {
			t.Errorf("asked %d times for the keys of 2 backups, %v", n, err)
		}
	}
}
