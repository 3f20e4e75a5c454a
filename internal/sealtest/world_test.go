package sealtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/seal"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

const vm kvmbackup.VMID = "vm1"

var (
	sealed = kvmbackup.Policy{Encryption: kvmbackup.EncryptionLUKS, OfflineIncremental: true, FullEvery: 5}
	plain  = kvmbackup.Policy{OfflineIncremental: true, FullEvery: 5}
)

// pair is an identity and its recipient.
type pair struct{ private, public string }

func newPair(t *testing.T) pair {
	t.Helper()
	i, err := age.GenerateX25519Identity()
	lab.OK(t, err)
	return pair{i.String(), i.Recipient().String()}
}

// takes wraps for the recipients alone.
func takes(t *testing.T, pairs ...pair) *seal.Keys {
	t.Helper()
	k := seal.New()
	for _, p := range pairs {
		lab.OK(t, k.AddRecipient(p.public))
	}
	return k
}

// reads has the identities.
func reads(t *testing.T, pairs ...pair) *seal.Keys {
	t.Helper()
	k := takes(t, pairs...)
	for _, p := range pairs {
		lab.OK(t, k.AddIdentity(p.private))
	}
	return k
}

// world is a stopped VM with one disk, and what it held at each backup.
type world struct {
	*testing.T
	dir         string
	h           *kvmbackuptest.Hypervisor
	repo        *repository.Repository
	cfg         engine.Config
	mine        pair
	contents    map[kvmbackup.BackupID]kvmbackuptest.Content
	writes      uint64
	restores    int
	ahead       atomic.Int64          // of the store's clock
	interrupted kvmbackuptest.Content // what the disk held at a backup that something broke off
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		T: t, dir: t.TempDir(), h: kvmbackuptest.NewHypervisor(), mine: newPair(t),
		contents: map[kvmbackup.BackupID]kvmbackuptest.Content{},
	}
	lab.OK(t, errors.Join(os.Mkdir(filepath.Join(w.dir, "nas"), 0o755), os.Mkdir(filepath.Join(w.dir, "images"), 0o755)))
	lab.OK(t, w.h.Define(kvmbackuptest.Domain{Name: string(vm), Disks: []kvmbackuptest.Disk{
		{Device: "vda", Source: filepath.Join(w.dir, "images", "vda.qcow2"), SizeBytes: 8 * kvmbackuptest.ClusterBytes},
	}}))
	var err error
	w.repo, err = repository.Init(t.Context(), filepath.Join(w.dir, "nas"), repository.Options{NoSync: true})
	lab.OK(t, err)
	clock := func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }
	w.cfg = engine.Config{
		Store: memstore.New(memstore.WithClock(clock)), Repository: w.repo, Images: kvmbackuptest.Images{},
		Executor: w.h.Executor(),
	}
	return w
}

// engine is one with these keys.
func (w *world) engine(k engine.Keys) *engine.Engine {
	w.Helper()
	cfg := w.cfg
	cfg.Keys = k
	e, err := engine.New(cfg)
	lab.OK(w, err)
	return e
}

func (w *world) taker() *engine.Engine  { return w.engine(takes(w.T, w.mine)) }
func (w *world) reader() *engine.Engine { return w.engine(reads(w.T, w.mine)) }

// change writes something new to the disk.
func (w *world) change() {
	w.Helper()
	w.writes++
	lab.OK(w, w.h.Start(string(vm)))
	lab.OK(w, w.h.Write(string(vm), "vda", int64(w.writes%8)*kvmbackuptest.ClusterBytes,
		kvmbackuptest.Pattern(w.writes, 100)))
	lab.OK(w, w.h.Shutdown(string(vm)))
}

func (w *world) request(p kvmbackup.Policy) engine.BackupRequest {
	return engine.BackupRequest{VM: vm, Policy: p, Volumes: []engine.Volume{{ID: "v1", Device: "vda"}}}
}

// backup takes one after a change.
func (w *world) backup(p kvmbackup.Policy) kvmbackup.Backup {
	w.Helper()
	w.change()
	b, err := w.taker().Backup(w.Context(), w.request(p))
	lab.OK(w, err)
	if b.Sealed() != (p.Encryption != "") {
		w.Errorf("%s with the policy %+v is for %q", b.Path, p, b.KeyIDs)
	}
	w.contents[b.ID], err = w.h.Content(string(vm), "vda")
	lab.OK(w, err)
	return b
}

// restores compares what the engine restores with what the disk held.
func (w *world) restored(e *engine.Engine, b kvmbackup.Backup) {
	w.Helper()
	w.restores++
	dir := filepath.Join(w.dir, fmt.Sprintf("restored%d", w.restores))
	lab.OK(w, os.Mkdir(dir, 0o755))
	done, err := e.Restore(w.Context(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
	lab.OK(w, err)
	got, err := kvmbackuptest.ReadChain(done.Volumes[0].Path)
	lab.OK(w, err)
	if diff := got.Diff(w.contents[b.ID]); diff != "" {
		w.Errorf("restored %s: %s", b.Path, diff)
	}
}

// tree is every file below the repository, by its path, as text.
func (w *world) tree() map[string]string {
	w.Helper()
	files := map[string]string{}
	lab.OK(w, filepath.WalkDir(w.repo.Root(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[path] = string(b)
		return err
	}))
	return files
}
