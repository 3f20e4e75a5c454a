package restoretest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// canary watches that no tool opens a file, nor anything that stands on it.
type canary struct {
	mu    sync.Mutex
	calls []string
}

// guard lets headers be read by this library alone, and notes every tool that is run.
func (c *canary) guard(call, path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call != "header" {
		c.calls = append(c.calls, call+" "+path)
	}
	return nil
}

// refused wants every way to a backup's content to be refused, and no tool to be run on the files named.
func (l *world) refused(b kvmbackup.Backup, never ...string) {
	l.Helper()
	c := &canary{}
	l.images.before = c.guard
	defer func() { l.images.before = nil }()
	ctx := l.Context()
	dir := l.out()
	_, restore := l.engine.Restore(ctx, engine.RestoreRequest{Backup: b.ID, Dir: dir})
	r, verify := l.engine.Verify(ctx, b.ID, engine.VerifyOptions{Content: true})
	_, open := l.engine.Open(ctx, engine.OpenRequest{Backup: b.ID, Dir: dir})
	br, browse := l.engine.Browse(ctx, b.ID, "v-vda", filepath.Join(dir, "socket"))
	if br != nil {
		l.ok(br.Close(ctx))
	}
	for name, err := range map[string]error{"restore": restore, "verify": verify, "open": open, "browse": browse} {
		if !errors.Is(err, kvmbackup.ErrDamaged) {
			l.Fatalf("%s: %v, want %v", name, err, kvmbackup.ErrDamaged)
		}
	}
	if r.OK() {
		l.Fatalf("verify found nothing")
	}
	if holds := l.get(b.ID).Holds; len(holds) > 0 {
		l.Fatalf("holds are left: %v", holds)
	}
	l.empty(dir)
	for _, call := range c.calls { // a verification may go on to what is good in itself
		name, path, _ := strings.Cut(call, " ")
		if name != "check" || slices.Contains(never, path) {
			l.Fatalf("a tool was run: %s", call)
		}
	}
}

// TestHostileImages puts images in place of a backup's that point elsewhere, or that a tool would choke on.
func TestHostileImages(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	chain := l.chain(2)
	secret := filepath.Join(l.dir, "secret.qcow2") // a FIFO: whatever opens it never comes back
	run(t, "mkfifo", secret)
	for i, b := range chain {
		path := l.file(b, "v-vda")
		good, err := os.ReadFile(path)
		l.ok(err)
		link := ""
		if i > 0 {
			link = b.Volumes[0].ParentFile
		}
		for name, put := range hostileImages(l, path, link, secret) {
			l.ok(os.Remove(path))
			put()
			func() {
				defer func() {
					if t.Failed() {
						t.Logf("position %d, %s", i, name)
					}
				}()
				l.refused(chain[1], path, secret)
			}()
			l.ok(os.RemoveAll(path))
			l.ok(os.WriteFile(path, good, 0o600))
		}
		l.verified(chain[1], true)
	}
}

func hostileImages(l *world, path, link, secret string) map[string]func() {
	l.Helper()
	backed := func(to string) func() {
		return func() { l.image(path, disk, to) }
	}
	patched := func(at int64, b []byte) func() {
		return func() {
			l.image(path, disk, link)
			l.patch(path, at, b)
		}
	}
	be32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	be64 := func(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
	all := map[string]func(){
		"absolute backing file":  backed(secret),
		"device as backing file": backed("/dev/zero"),
		"link to itself":         backed(filepath.Base(path)),
		"out of the repository":  backed("../../../../../../../../etc/passwd"),
		"NBD":                    func() { l.image(path, disk, ""); l.backingName(path, "nbd:unix:/run/secret.sock") },
		"JSON": func() {
			l.image(path, disk, "")
			l.backingName(path, `json:{"driver":"raw","file":{"driver":"file","filename":"`+secret+`"}}`)
		},
		"other parent":    backed("../2000.01.01.00.00.00/root.v-vda.qcow2"),
		"external data":   func() { l.external(path, secret) },
		"encrypted":       patched(32, be32(2)),
		"larger disk":     func() { l.image(path, disk+cluster, link) },
		"not qcow2":       func() { l.ok(os.WriteFile(path, filled(4096), 0o600)) },
		"later version":   patched(4, be32(4)),
		"unknown feature": patched(72, be64(1<<40)),
		"clusters":        patched(20, be32(40)),
		"huge L1":         patched(36, be32(1<<31)),
		"one table for all": func() {
			patched(36, be32(2))()
			l.patch(path, 3*cluster, append(be64(1<<63|cluster), be64(1<<63|cluster)...))
		},
		"a hole of 8 TiB":  func() { l.image(path, disk, link); l.ok(os.Truncate(path, 8<<40)) },
		"L1 elsewhere":     patched(40, be64(1<<62)),
		"refcounts away":   patched(48, be64(1<<62)),
		"huge refcounts":   patched(56, be32(1<<30)),
		"snapshots":        patched(60, be32(1<<30)),
		"a snapshot":       func() { l.image(path, disk, link); run(l, "qemu-img", "snapshot", "-c", "s", path) },
		"a bitmap":         func() { l.image(path, disk, link); run(l, "qemu-img", "bitmap", "--add", path, "b") },
		"header length":    patched(100, be32(1<<30)),
		"negative size":    patched(24, be64(1<<63)),
		"marked corrupt":   patched(72, be64(2)),
		"link to a secret": func() { l.ok(os.Symlink(secret, path)) },
		"link to a device": func() { l.ok(os.Symlink("/dev/zero", path)) },
		"FIFO":             func() { run(l, "mkfifo", path) },
		"folder":           func() { l.ok(os.Mkdir(path, 0o755)) },
	}
	if os.Geteuid() == 0 {
		all["device node"] = func() { run(l, "mknod", path, "c", "1", "5") }
	}
	if link != "" {
		all["no parent"] = backed("")
		all["guessed format"] = func() {
			l.image(path, disk, "")
			l.backingName(path, link)
		}
	}
	return all
}

// image makes an image with qemu-img; the backing file is named and not opened.
func (l *world) image(path string, size int64, backing string) {
	l.Helper()
	l.ok(l.images.Tool.Create(l.Context(), path, qcow2.CreateOptions{SizeBytes: size, BackingFile: backing}))
}

func (l *world) patch(path string, at int64, b []byte) {
	l.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	l.ok(err)
	_, err = f.WriteAt(b, at)
	l.ok(errors.Join(err, f.Close()))
}

// backingName writes a backing file's name into a header behind its extensions, as no tool would.
func (l *world) backingName(path, name string) {
	l.Helper()
	const at = 0x300
	l.patch(path, at, []byte(name))
	l.patch(path, 8, binary.BigEndian.AppendUint64(nil, at))
	l.patch(path, 16, binary.BigEndian.AppendUint32(nil, uint32(len(name))))
}

// external makes an image whose data would be in another file.
func (l *world) external(path, file string) {
	l.Helper()
	lyingImage(l, path, file)
}

// lyingImage makes an image whose data would be in another file, and says so by its feature bit and its extension.
func lyingImage(t testing.TB, path, file string) {
	t.Helper()
	scratch := file + ".data" // as long as the other name, at least
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+scratch+",data_file_raw=on", path, "1M")
	data, err := os.ReadFile(path)
	if err := errors.Join(err, os.Remove(scratch)); err != nil {
		t.Fatal(err)
	}
	name := (file + strings.Repeat("\x00", len(scratch)))[:len(scratch)]
	if err := os.WriteFile(path, []byte(strings.Replace(string(data), scratch, name, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestFoldersBehindLinks: neither a backup's folder nor the VM's may be a link.
func TestFoldersBehindLinks(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.chain(2)[1]
	for _, dir := range []string{filepath.Join(l.nas, b.Path), filepath.Join(l.nas, vm)} {
		elsewhere := filepath.Join(l.out(), "moved")
		l.ok(os.Rename(dir, elsewhere))
		l.ok(os.Symlink(elsewhere, dir))
		l.refused(b, l.file(b, "v-vda"))
		l.ok(os.Remove(dir))
		l.ok(os.Rename(elsewhere, dir))
	}
	l.verified(b, true)
}

// TestHostileManifests changes what a manifest names: nothing is read, and nothing imported.
func TestHostileManifests(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	b := l.chain(2)[1]
	path := filepath.Join(l.nas, b.Path, "backup.json")
	good, err := os.ReadFile(path)
	l.ok(err)
	file, parent := b.Volumes[0].File, b.Volumes[0].ParentFile
	for name, change := range map[string][2]string{
		"out of the folder": {`"file": "` + file + `"`, `"file": "../../../secret.qcow2"`},
		"absolute":          {`"file": "` + file + `"`, `"file": "/etc/passwd"`},
		"dots":              {`"file": "` + file + `"`, `"file": ".."`},
		"twice":             {`"file": "` + file + `"`, `"file": "` + b.Volumes[1].File + `"`},
		"twice but case":    {`"file": "` + file + `"`, `"file": "` + strings.ToUpper(b.Volumes[1].File) + `"`},
		"the manifest":      {`"file": "` + file + `"`, `"file": "backup.json"`},
		"volume twice":      {`"volume_id": "v-vda"`, `"volume_id": "v-vdb"`},
		"parent elsewhere":  {parent, "/etc/passwd"},
		"parent in JSON":    {parent, "json:{}"},
		"other VM's parent": {parent, "../../vm2/2026.01.01.00.00.00/root.qcow2"},
		"later version":     {`"version": 1`, `"version": 3`},
		"other VM":          {`"vm": "vm1"`, `"vm": "vm2"`},
		"path":              {`"path": "` + b.Path, `"path": "../../etc`},
		"no JSON":           {"{", "["},
		"side file":         {`"name": "domain.xml"`, `"name": "../../../../etc/passwd"`},
		"negative size":     {`"virtual_size": 1048576`, `"virtual_size": -1`},
		"named twice":       {`"vm": "vm1"`, `"vm": "vm1", "vm": "vm2"`},
		"file named twice":  {`"file": "` + file + `"`, `"file": "` + file + `", "file": "../../vm2/x.qcow2"`},
		"in capitals":       {`"path": "` + b.Path + `"`, `"path": "` + b.Path + `", "PATH": "../../etc"`},
		"deep": {`"vm": "vm1"`,
			`"vm": "vm1", "x": ` + strings.Repeat(`[`, 200000) + strings.Repeat(`]`, 200000)},
		"deep objects": {`"reasons": [`,
			`"reasons": [` + strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat(`}`, 20000) + `,`},
		"huge number":       {`"virtual_size": 1048576`, `"virtual_size": 1e400`},
		"number too large":  {`"virtual_size": 1048576`, `"virtual_size": 9223372036854775808`},
		"largest number":    {`"virtual_size": 1048576`, `"virtual_size": 9223372036854775807`},
		"frozen for ever":   {`"frozen_ms": 0`, `"frozen_ms": 9223372036854775`},
		"negative stored":   {`"stored_size": `, `"stored_size": -`},
		"separators":        {`"vm": "vm1"`, `"vm": "vm1\u2028x"`},
		"turned":            {`"domain": "vm1"`, `"domain": "vm1\u202e\u009b2J"`},
		"is its own parent": {string(b.ParentID), string(b.ID)},
	} {
		edit(t, path, change[0], change[1])
		l.refused(b)
		l.notImported(name, b)
		l.ok(os.WriteFile(path, good, 0o600))
	}
	replace(t, path, `"frozen_ms": 0`, `"frozen_ms": 1`)
	l.refused(b)
	l.notImported("without its checksum", b)
	l.ok(os.WriteFile(path, good, 0o600))
	for name, put := range map[string]func(){
		"huge":   func() { l.ok(os.Truncate(path, 64<<20)) },
		"FIFO":   func() { l.ok(os.Remove(path)); run(t, "mkfifo", path) },
		"link":   func() { l.ok(os.Remove(path)); l.ok(os.Symlink("/dev/zero", path)) },
		"folder": func() { l.ok(os.Remove(path)); l.ok(os.Mkdir(path, 0o755)) },
	} {
		put()
		l.refused(b)
		l.ok(os.RemoveAll(path))
		l.ok(os.WriteFile(path, good, 0o600))
		t.Logf("%s refused", name)
	}
	l.verified(b, true)
}

// notImported wants an import into an empty store to pass the backup over and to say why.
func (l *world) notImported(name string, b kvmbackup.Backup) {
	l.Helper()
	fresh, err := engine.New(engine.Config{Store: memstore.New(), Repository: l.repo, Images: l.images})
	l.ok(err)
	done, err := fresh.Import(l.Context(), "")
	l.ok(err)
	for _, i := range done {
		if i.Path == b.Path && (i.Added || i.Reason == "") {
			l.Errorf("%s: imported %+v", name, i)
		}
	}
	if _, err := fresh.Get(l.Context(), b.ID); !errors.Is(err, kvmbackup.ErrNotFound) {
		l.Errorf("%s: there is a record: %v", name, err)
	}
}

// TestHostileRecords: a store that names files elsewhere is refused by the engine as well.
func TestHostileRecords(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.chain(1)[0]
	for _, file := range []string{"../../../etc/passwd", "/etc/passwd", "..", "a\x00b", ""} {
		hostile := b
		hostile.Volumes = slices.Clone(b.Volumes)
		hostile.Volumes[0].File = file
		if err := hostile.Validate(); !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Errorf("record with the file %q: %v", file, err)
		}
		if p := l.repo.FilePath(b.Path, file); p != "" {
			t.Errorf("path of the file %q: %s", file, p)
		}
	}
}

// TestCheckBomb: an image whose check reads for ever, or asks for all the memory there is, ends within the tool's
// limits.
func TestCheckBomb(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	const large = 1 << 43 // 8 TiB: an L1 table of 128 KiB, whose entries all lead to one L2 table
	l.ok(l.h.Replace(vm, l.disk("vda", disk)))
	b := l.chain(1)[0]
	path := l.file(b, "v-vda")
	l.ok(os.Remove(path))
	l.image(path, large, "")
	h, err := qcow2.ReadHeaderFile(path)
	l.ok(err)
	l2 := h.L1OffsetBytes + 16*cluster
	entries := make([]byte, 0, h.L1Entries*8)
	for range h.L1Entries {
		entries = binary.BigEndian.AppendUint64(entries, uint64(l2)|1<<63)
	}
	l.patch(path, h.L1OffsetBytes, entries)
	l.patch(path, l2+cluster-1, []byte{0})
	tool, err := qcow2.New(qcow2.Config{
		InspectTimeout: 300 * time.Millisecond, MemoryLimitBytes: 512 << 20, MaxOutputBytes: 1 << 20,
	})
	l.ok(err)
	begun := time.Now()
	_, err = tool.Check(t.Context(), path, qcow2.CheckOptions{})
	if took := time.Since(begun); took > time.Minute {
		t.Errorf("the check took %v", took)
	}
	t.Logf("the check: %v", err)
	l.refused(b, path) // its size is not the record's
}

// TestLongCheck: a check takes as long as the volume is large and the storage slow, and only the caller's context ends
// it.
func TestLongCheck(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.chain(2)[1]
	tool, err := qcow2.New(qcow2.Config{InspectTimeout: time.Millisecond}) // no process is that quick
	l.ok(err)
	l.images.checker = tool
	_, err = l.engine.Verify(t.Context(), b.ID, engine.VerifyOptions{})
	l.ok(err)
	_, err = l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: l.out()})
	l.ok(err)
	ctx, cancel := context.WithCancelCause(t.Context())
	given := errors.New("given up")
	l.images.before = func(call, _ string) error {
		if call == "check" {
			cancel(given)
		}
		return nil
	}
	_, err = l.engine.Verify(ctx, b.ID, engine.VerifyOptions{})
	l.fails(err, given)
}

// TestSlowCheckIsNoDamage: what runs into the time limit can't be restored, and is not called damaged.
func TestSlowCheckIsNoDamage(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.chain(1)[0]
	l.images.before = func(call, path string) error {
		if call == "check" {
			return fmt.Errorf("check %s: %w", path, qcow2.ErrTimeout)
		}
		return nil
	}
	_, err := l.engine.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: l.out()})
	l.fails(err, qcow2.ErrTimeout)
	_, err = l.engine.Verify(t.Context(), b.ID, engine.VerifyOptions{})
	l.fails(err, qcow2.ErrTimeout)
	if errors.Is(err, kvmbackup.ErrDamaged) || l.get(b.ID).Verification != nil {
		t.Errorf("called damaged: %v, %+v", err, l.get(b.ID).Verification)
	}
}
