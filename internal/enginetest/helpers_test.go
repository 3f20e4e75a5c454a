package enginetest_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

var errInjected = errors.New("injected")

// world is one VM's backups: small files in a real repository, and their records.
type world struct {
	t      lab.TB
	dir    string
	repo   *repository.Repository
	store  kvmbackup.Store
	engine *engine.Engine
	names  map[kvmbackup.BackupID]string
	events []engine.Event
}

func tempDir(t lab.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kvmbackup") // rapid's T has no TempDir
	lab.OK(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func newWorld(t lab.TB) *world {
	t.Helper()
	return newWorldOn(t, memstore.New())
}

// newWorldOn is for a store that is empty.
func newWorldOn(t lab.TB, store kvmbackup.Store) *world {
	t.Helper()
	dir := tempDir(t)
	_, err := repository.Init(t.Context(), dir, repository.Options{NoSync: true})
	lab.OK(t, err)
	return openWorld(t, dir, store)
}

// openWorld is for a folder that is a repository already.
func openWorld(t lab.TB, dir string, store kvmbackup.Store) *world {
	t.Helper()
	w := &world{t: t, dir: dir, store: store, names: map[kvmbackup.BackupID]string{}}
	w.repo = w.openRepo(repository.Options{})
	w.engine = w.newEngine(engine.Config{OnEvent: func(e engine.Event) { w.events = append(w.events, e) }})
	return w
}

func (w *world) openRepo(o repository.Options) *repository.Repository {
	w.t.Helper()
	o.NoSync = true
	r, err := repository.Open(w.t.Context(), w.dir, o)
	lab.OK(w.t, err)
	return r
}

// newEngine fills in what the configuration leaves out.
func (w *world) newEngine(cfg engine.Config) *engine.Engine {
	w.t.Helper()
	if cfg.Store == nil {
		cfg.Store = w.store
	}
	if cfg.Repository == nil {
		cfg.Repository = w.repo
	}
	e, err := engine.New(cfg)
	lab.OK(w.t, err)
	return e
}

func (w *world) deleter() *kvmbackup.Deleter {
	return &kvmbackup.Deleter{Store: w.store, Files: w.repo}
}

// locked runs f with the VM's lease.
func (w *world) locked(f func(l kvmbackup.Lease) error) error {
	w.t.Helper()
	ctx := w.t.Context()
	l, err := w.store.AcquireLease(ctx, lab.VM, "test", time.Hour)
	lab.OK(w.t, err)
	err = f(l)
	lab.OK(w.t, w.store.ReleaseLease(ctx, l))
	return err
}

// draft is the record of a backup of one volume, or of two for names in upper case, at the second n; on parent unless
// that is zero.
func (w *world) draft(name string, parent kvmbackup.Backup, n int) kvmbackup.Backup {
	w.names[lab.BackupID(name)] = name
	stamp := kvmbackup.Stamp{}.Next(lab.Epoch.Add(time.Duration(n)*time.Second), nil)
	b := kvmbackup.Backup{
		ID: lab.BackupID(name), VM: lab.VM, Domain: string(lab.VM), Kind: kvmbackup.KindFull, Status: kvmbackup.StatusRunning,
		ChainID: lab.ChainID(name), Checkpoint: kvmbackup.NewCheckpointName("kvmbackup", stamp, lab.VM),
		Repository: w.repo.ID(), Path: string(lab.VM) + "/" + stamp.String(), StartedAt: stamp.Time(),
		Consistency: kvmbackup.ConsistencyCrash, Reasons: []kvmbackup.Reason{{Code: kvmbackup.ReasonForced}},
	}
	files := []string{"root.v1.qcow2"}
	if name == strings.ToUpper(name) {
		files = append(files, "datadisk.v2.qcow2")
	}
	for i, f := range files {
		b.Volumes = append(b.Volumes, kvmbackup.VolumeBackup{
			VolumeID: kvmbackup.VolumeID(fmt.Sprintf("v%d", i+1)), Device: []string{"vda", "vdb"}[i],
			Kind: kvmbackup.KindFull, File: f, VirtualSize: 1 << 20, SourceFormat: "qcow2", Tracked: true,
		})
	}
	if parent.ID == "" {
		return b
	}
	b.Kind, b.ChainID, b.ParentID, b.Position = kvmbackup.KindIncremental, parent.ChainID, parent.ID, parent.Position+1
	for i := range b.Volumes {
		if pv, there := parent.Volume(b.Volumes[i].VolumeID); there {
			b.Volumes[i].Kind = kvmbackup.KindIncremental
			b.Volumes[i].ParentFile = parent.BackingLink(pv.File)
		}
	}
	return b
}

// begin records a backup as running and writes its partial folder.
func (w *world) begin(name, parent string) kvmbackup.Backup {
	w.t.Helper()
	ctx := w.t.Context()
	var p kvmbackup.Backup
	if parent != "" {
		p = w.get(parent)
	}
	vm, err := w.store.VM(ctx, lab.VM)
	lab.OK(w.t, err)
	b := w.draft(name, p, int(vm.LastSequence))
	lab.OK(w.t, w.locked(func(l kvmbackup.Lease) (err error) { b, err = w.store.Begin(ctx, l, b); return err }))
	dir, err := w.repo.CreatePartial(ctx, b.Path, b.ID)
	lab.OK(w.t, err)
	for i := range b.Volumes {
		v := &b.Volumes[i]
		sum := sha256.Sum256([]byte(name + v.File))
		lab.OK(w.t, os.WriteFile(filepath.Join(dir, v.File), slices.Repeat(sum[:], 128*(1+int(b.Sequence)%3)), 0o600))
		info, err := w.repo.Stat(ctx, repository.PartialPath(b.Path, b.ID), v.File)
		lab.OK(w.t, err)
		v.StoredSize = info.AllocatedBytes
	}
	return b
}

// publish makes the folder of a begun backup final; its record stays as it is.
func (w *world) publish(b kvmbackup.Backup) kvmbackup.Backup {
	w.t.Helper()
	b.CompletedAt = b.StartedAt.Add(time.Second)
	lab.OK(w.t, w.repo.Publish(w.t.Context(), repository.NewManifest(b)))
	return b
}

// add takes a whole backup. An empty parent makes it a full.
func (w *world) add(name, parent string) kvmbackup.Backup {
	w.t.Helper()
	b := w.publish(w.begin(name, parent))
	b.Status = kvmbackup.StatusCompleted
	lab.OK(w.t, w.locked(func(l kvmbackup.Lease) error { return w.store.Complete(w.t.Context(), l, b) }))
	return w.get(name)
}

// record adds a record of what has no folder.
func (w *world) record(b kvmbackup.Backup) {
	w.t.Helper()
	lab.OK(w.t, w.locked(func(l kvmbackup.Lease) error { return w.store.Import(w.t.Context(), l, b) }))
}

func (w *world) get(name string) kvmbackup.Backup {
	w.t.Helper()
	b, err := w.store.Backup(w.t.Context(), lab.BackupID(name))
	lab.OK(w.t, err)
	return b
}

func (w *world) all() []kvmbackup.Backup {
	w.t.Helper()
	list, err := w.store.List(w.t.Context(), kvmbackup.Query{})
	lab.OK(w.t, err)
	return list
}

// state is the records as "A B:delete-pending ...", by Sequence; completed ones have their name alone.
func (w *world) state() string {
	w.t.Helper()
	var out []string
	for _, b := range w.all() {
		s := w.name(b.ID)
		if b.Status != kvmbackup.StatusCompleted {
			s += ":" + b.Status.String()
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func (w *world) name(id kvmbackup.BackupID) string { return cmp.Or(w.names[id], string(id)) }

func namesOf[T any](w *world, list []T, id func(T) kvmbackup.BackupID) string {
	var out []string
	for _, e := range list {
		out = append(out, w.name(id(e)))
	}
	return strings.Join(out, " ")
}

func backupID(b kvmbackup.Backup) kvmbackup.BackupID { return b.ID }

func pendingID(p kvmbackup.PendingDelete) kvmbackup.BackupID { return p.ID }

// whole fails unless everything that a live backup needs is there.
func (w *world) whole() {
	w.t.Helper()
	ctx := w.t.Context()
	for _, b := range w.all() {
		if b.Status != kvmbackup.StatusCompleted {
			continue
		}
		chain, err := w.engine.Chain(ctx, b.ID)
		if err != nil {
			w.t.Fatalf("chain of the live backup %s: %v", w.name(b.ID), err)
		}
		for _, c := range chain {
			if _, there, err := w.repo.Published(ctx, c.Path, c.ID); !there || err != nil {
				w.t.Fatalf("%s is live and the folder of %s is not there: %v", w.name(b.ID), w.name(c.ID), err)
			}
			for _, v := range c.Volumes {
				if _, err := w.repo.Stat(ctx, c.Path, v.File); err != nil {
					w.t.Fatalf("%s is live and needs a file of %s: %v", w.name(b.ID), w.name(c.ID), err)
				}
			}
		}
	}
}

// settled is whole, and wants records and folders to agree, and nothing to stay hidden that nobody needs.
func (w *world) settled() {
	w.t.Helper()
	w.whole()
	needed := map[kvmbackup.BackupID]bool{}
	var want, got []string
	for _, b := range w.all() {
		if b.Status == kvmbackup.StatusCompleted || b.Status == kvmbackup.StatusDeletePending {
			want = append(want, w.name(b.ID))
		}
		if b.ParentID != "" {
			needed[b.ParentID] = true
		}
	}
	for _, b := range w.all() {
		if b.Status == kvmbackup.StatusDeletePending && !needed[b.ID] && len(b.Holds) == 0 {
			w.t.Fatalf("%s stays delete-pending and nothing needs it: %s", w.name(b.ID), w.state())
		}
	}
	entries, err := w.repo.List(w.t.Context(), "")
	lab.OK(w.t, err)
	for _, e := range entries {
		if e.Kind != repository.FolderPublished || e.Err != nil {
			w.t.Fatalf("%s/%s is left, %v: %v", e.VM, e.Name, e.Kind, e.Err)
		}
		got = append(got, w.name(e.ID))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.t.Fatalf("folders of %v, records of %v", got, want)
	}
}

// tree is every file and folder in the repository but its marker.
func (w *world) tree() []string {
	w.t.Helper()
	var names []string
	lab.OK(w.t, filepath.WalkDir(w.dir, func(p string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(w.dir, p); rel != "." && rel != repository.MarkerName {
			names = append(names, rel)
		}
		return err
	}))
	return names
}

// diskUsage is what a backup's folder takes.
func (w *world) diskUsage(b kvmbackup.Backup) (bytes int64) {
	w.t.Helper()
	files, err := w.repo.Files(w.t.Context(), b.Path)
	lab.OK(w.t, err)
	for _, f := range files {
		bytes += f.AllocatedBytes
	}
	return bytes
}

// hooked is a store whose calls can be watched, failed before they are done, or have their answer lost.
type hooked struct {
	kvmbackup.Store
	before, after func(call string) error
}

func (s hooked) call(name string, f func() error) error {
	if s.before != nil {
		if err := s.before(name); err != nil {
			return err
		}
	}
	err := f()
	if err == nil && s.after != nil {
		err = s.after(name)
	}
	return err
}

func called[T any](s hooked, name string, f func() (T, error)) (out T, err error) {
	err = s.call(name, func() (err error) { out, err = f(); return err })
	if err != nil {
		var zero T
		return zero, err
	}
	return out, nil
}

func (s hooked) AcquireLease(ctx context.Context, vm kvmbackup.VMID, holder string,
	ttl time.Duration) (kvmbackup.Lease, error) {
	return called(s, "acquire", func() (kvmbackup.Lease, error) { return s.Store.AcquireLease(ctx, vm, holder, ttl) })
}

func (s hooked) RenewLease(ctx context.Context, l kvmbackup.Lease, ttl time.Duration) (kvmbackup.Lease, error) {
	return called(s, "renew", func() (kvmbackup.Lease, error) { return s.Store.RenewLease(ctx, l, ttl) })
}

func (s hooked) VM(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.VMRecord, error) {
	return called(s, "vm", func() (kvmbackup.VMRecord, error) { return s.Store.VM(ctx, vm) })
}

func (s hooked) Backup(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	return called(s, "backup", func() (kvmbackup.Backup, error) { return s.Store.Backup(ctx, id) })
}

func (s hooked) Children(ctx context.Context, id kvmbackup.BackupID) ([]kvmbackup.Backup, error) {
	return called(s, "children", func() ([]kvmbackup.Backup, error) { return s.Store.Children(ctx, id) })
}

func (s hooked) List(ctx context.Context, q kvmbackup.Query) ([]kvmbackup.Backup, error) {
	return called(s, "list", func() ([]kvmbackup.Backup, error) { return s.Store.List(ctx, q) })
}

func (s hooked) MarkDeletePending(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID) error {
	return s.call("mark", func() error { return s.Store.MarkDeletePending(ctx, l, id) })
}

func (s hooked) Remove(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID, bytes int64) error {
	return s.call("remove", func() error { return s.Store.Remove(ctx, l, id, bytes) })
}

func (s hooked) Annotate(ctx context.Context, l kvmbackup.Lease, id kvmbackup.BackupID, a kvmbackup.Annotation) error {
	return s.call("annotate", func() error { return s.Store.Annotate(ctx, l, id, a) })
}

func (s hooked) Import(ctx context.Context, l kvmbackup.Lease, b kvmbackup.Backup) error {
	return s.call("import", func() error { return s.Store.Import(ctx, l, b) })
}

// optionsFailing opens a repository on which one step fails.
func optionsFailing(step string) repository.Options {
	return repository.Options{BeforeStep: func(s string) error {
		if s == step {
			return errInjected
		}
		return nil
	}}
}
