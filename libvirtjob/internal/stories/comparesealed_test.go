package stories_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/seal"
)

// sealedWorld is a story whose backups are sealed and may be compared.
type sealedWorld struct {
	*story
	nas, db, identity string
	public, private   *seal.Keys
	mend              func() // before what is in the folders is looked at
}

func newSealedWorld(t *testing.T, cfg config) *sealedWorld {
	t.Helper()
	lab.Need(t, "age-keygen")
	s := tell(t, cfg)
	w := &sealedWorld{story: s, nas: lab.Tmpfs(t, "size=512m"), db: filepath.Join(t.TempDir(), "db"),
		identity: filepath.Join(t.TempDir(), "identity.txt"), public: seal.New(), private: seal.New(), mend: func() {}}
	s.must(os.Chmod(w.nas, 0o777))
	s.tool("age-keygen", "-o", w.identity)
	s.must(w.public.AddRecipient(strings.TrimSpace(s.tool("age-keygen", "-y", w.identity))))
	text, err := os.ReadFile(w.identity)
	s.must(err)
	s.must(w.private.AddRecipients(strings.NewReader(strings.TrimSpace(s.tool("age-keygen", "-y", w.identity)))))
	s.must(w.private.AddIdentities(strings.NewReader(string(text))))
	return w
}

// host is one that takes backups with these keys.
func (w *sealedWorld) host(keys *seal.Keys, index kvmbackup.DataKey) *consumer {
	w.Helper()
	scratch := w.TempDir()
	return w.newConsumer("", w.nas, w.db, func(c *engine.Config) {
		c.Scratch, c.Keys, c.IndexKey = []string{scratch}, keys, index
	})
}

// take has a host take a backup, and expects its kind and what the first disk has to store, in MiB.
func (w *sealedWorld) take(c *consumer, kind kvmbackup.Kind, stored int64,
	change func(p *kvmbackup.Policy)) kvmbackup.Backup {
	w.Helper()
	req := w.request()
	req.Policy = kvmbackup.Policy{
		FullEvery: 100, OfflineIncremental: true, Encryption: kvmbackup.EncryptionLUKS, Compare: true,
	}
	if change != nil {
		change(&req.Policy)
	}
	plan, err := c.engine.Plan(w.ctx, req)
	w.must(err)
	b, err := c.engine.Backup(w.ctx, req)
	w.must(err)
	w.mend()
	c.keep(w.story, b)
	v, _ := b.Volume("vol-vda")
	if b.Kind != kind || plan.Kind != kind || stored >= 0 && v.DirtyBytes != stored*mib {
		w.Errorf("planned %v, taken %v with %d bytes, want %v with %d MiB: %v", plan.Kind, b.Kind, v.DirtyBytes, kind,
			stored, b.Reasons)
	}
	for _, code := range []kvmbackup.ReasonCode{engine.ReasonComparedByIndex, engine.ReasonCannotCompare} {
		has := func(r kvmbackup.Reason) bool { return r.Code == code }
		if slices.ContainsFunc(plan.Decision.Reasons, has) != slices.ContainsFunc(b.Reasons, has) {
			w.Errorf("%s: planned because %v, taken because %v", code, plan.Decision.Reasons, b.Reasons)
		}
	}
	return b
}

func (w *sealedWorld) cutAndWrite(pattern byte, at, n int64) {
	w.Helper()
	w.write("vda", pattern, at, n)
	w.powerCut()
	w.start()
}

// A host that has the recipient alone compares sealed chains by the index under its own key: it stores the pieces of 4
// MiB that may differ. Pieces of which a bitmap's backup has a part aren't known, until they are stored whole. The
// chain may have plain and compressed backups; what each restores is compared.
func TestCompareSealedByIndexAlone(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	w := newSealedWorld(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	c := w.host(w.public, kvmbackup.NewDataKey())
	full, incr := kvmbackup.KindFull, kvmbackup.KindIncremental
	w.write("vda", 0x11, 0, 12)
	w.write("vdb", 0x12, 4, 4)
	w.take(c, full, -1, nil)
	w.cutAndWrite(0x21, 5, 1)
	b := w.take(c, incr, 4, nil)
	if v, _ := b.Volume("vol-vdb"); v.DirtyBytes != 0 || !hasReason(b, engine.ReasonComparedByIndex) {
		t.Errorf("vdb has %d bytes: %v", v.DirtyBytes, b.Reasons)
	}
	w.write("vda", 0x31, 9, 1)
	w.take(c, incr, 1, nil) // by bitmap: of the third piece a part
	w.cutAndWrite(0x41, 6, 1)
	w.take(c, incr, 8, func(p *kvmbackup.Policy) { p.Compression = kvmbackup.CompressionZstd })
	w.cutAndWrite(0x51, 9, 1)
	w.take(c, incr, 4, nil) // all is known again
	w.guest.Destroy()
	w.behind("vda", 0x77, 1)
	b = w.take(c, incr, 4, func(p *kvmbackup.Policy) { p.ForceCompare = true })
	if !hasReason(b, engine.ReasonBitmapMissed) {
		t.Errorf("what was written behind isn't told: %v", b.Reasons)
	}
	w.start()
	w.write("vda", 0x61, 0, 1)
	w.take(c, incr, 1, nil)
	reader := w.host(w.private, kvmbackup.DataKey{})
	w.unproved = 0
	for _, b := range c.taken {
		w.restore(reader, b)
	}
}

func hasReason(b kvmbackup.Backup, code kvmbackup.ReasonCode) bool {
	return slices.ContainsFunc(b.Reasons, func(r kvmbackup.Reason) bool { return r.Code == code })
}

// A host that has an identity reads sealed parents like plain ones, with an index or without.
func TestCompareSealedWithIdentity(t *testing.T) {
	t.Parallel()
	w := newSealedWorld(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	key := kvmbackup.NewDataKey()
	c, indexed := w.host(w.private, kvmbackup.DataKey{}), w.host(w.private, key)
	w.write("vda", 0x11, 0, 12)
	w.take(c, kvmbackup.KindFull, -1, nil)
	w.cutAndWrite(0x21, 5, 1)
	w.take(c, kvmbackup.KindIncremental, 1, nil)
	w.write("vda", 0x31, 9, 1)
	w.take(c, kvmbackup.KindIncremental, 1, func(p *kvmbackup.Policy) { p.Encryption = "" })
	w.cutAndWrite(0x41, 2, 3)
	w.take(c, kvmbackup.KindIncremental, 3, nil)
	w.take(indexed, kvmbackup.KindFull, -1, func(p *kvmbackup.Policy) { p.ForceFull = true })
	w.write("vda", 0x51, 9, 1)
	w.take(indexed, kvmbackup.KindIncremental, 1, nil)
	w.cutAndWrite(0x61, 10, 1)
	w.take(indexed, kvmbackup.KindIncremental, 1, nil)
	w.unproved = 0
	for _, b := range slices.Concat(c.taken, indexed.taken) {
		w.restore(indexed, b)
	}
}

// An index that is damaged, another backup's or disk's, under another key, or gone costs a full, and hides nothing; so
// does a host without a key.
func TestCompareSealedByNoIndex(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	w := newSealedWorld(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	key := kvmbackup.NewDataKey()
	c := w.host(w.public, key)
	w.write("vda", 0x11, 0, 8)
	w.write("vdb", 0x11, 0, 8)
	w.take(c, kvmbackup.KindFull, -1, nil)
	index := func(b taken, device string) string {
		v, _ := b.Volume(kvmbackup.VolumeID("vol-" + device))
		return c.repo.FilePath(b.Path, v.File) + ".index"
	}
	var all []taken
	for i, spoil := range []func(last, before taken){
		func(last, _ taken) { w.flip(index(last, "vda")) },
		func(last, before taken) { w.run("cp", index(before, "vda"), index(last, "vda")) },
		func(last, _ taken) { w.run("cp", index(last, "vdb"), index(last, "vda")) },
		func(last, _ taken) { w.must(os.Remove(index(last, "vda"))) },
		nil, // another key
	} {
		w.write("vda", byte(0x21+i), 2, 1)
		w.take(c, kvmbackup.KindIncremental, 1, nil)
		n := len(c.taken)
		by, spoiled := c, index(c.taken[n-1], "vda")
		whole, err := os.ReadFile(spoiled)
		w.must(err)
		if spoil == nil {
			by = w.host(w.public, kvmbackup.NewDataKey())
		} else {
			spoil(c.taken[n-1], c.taken[n-2])
		}
		w.cutAndWrite(byte(0x31+i), 5, 1)
		w.mend = func() { w.must(os.WriteFile(spoiled, whole, 0o600)) }
		b := w.take(by, kvmbackup.KindFull, -1, nil)
		if !hasReason(b, engine.ReasonCannotCompare) {
			t.Errorf("%d: because %v", i, b.Reasons)
		}
		all = append(all, by.taken[len(by.taken)-1])
	}
	w.mend = func() {}
	b := w.take(w.host(w.public, kvmbackup.DataKey{}), kvmbackup.KindIncremental, 0, nil)
	if slices.ContainsFunc(b.Files, func(f kvmbackup.SideFile) bool { return strings.HasSuffix(f.Name, ".index") }) {
		t.Errorf("a host without a key has made %v", b.Files)
	}
	w.unproved = 0
	reader := w.host(w.private, kvmbackup.DataKey{})
	for _, b := range all {
		w.restore(reader, b)
	}
}
