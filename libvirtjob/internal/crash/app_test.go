package crash_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// app is a backup application over one guest: what a process opens when it starts.
type app struct {
	*testing.T
	ctx    context.Context //nolint:containedctx // of the test or of its helper process
	guest  *guest
	dir    string // with the repository, the database and what the disks held at each backup
	gate   *gate
	exec   *gatedExecutor
	cfg    engine.Config
	repo   *repository.Repository
	images *qcow2.Tool
	store  *sqlstore.Store
	db     *sql.DB // the store's
	engine *engine.Engine
	cut    bool          // QEMU has died with its bitmaps, and libvirt still lists their checkpoint
	asked  *atomic.Int64 // how often libvirt was asked everything: see ask
	probed bool          // a backup was taken, which has removed the probes that earlier processes left
}

// setup changes what an app is made of.
type setup struct {
	config func(*engine.Config)
	sync   bool // flush files
	// patience limits all operations together. Defaults to 10 minutes, for a busy machine.
	patience time.Duration
	uri      string
	// scratch is a folder with a short path. Not empty: running guests are backed up by pull.
	scratch string
	// step is asked before each step of the repository that changes it, also while the gate is not armed.
	step func(step string)
}

// openApp opens an application on a folder, which may have been another process's.
func openApp(t *testing.T, g *guest, dir string, s setup) *app {
	t.Helper()
	if s.patience == 0 {
		s.patience = 10 * time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), s.patience)
	t.Cleanup(cancel)
	a := &app{T: t, ctx: ctx, guest: g, dir: dir, gate: &gate{}, asked: new(atomic.Int64)}
	a.must(os.MkdirAll(a.repoDir(), 0o755))
	var err error
	a.images, err = qcow2.New(qcow2.Config{})
	a.must(err)
	o := repository.Options{NoSync: !s.sync, BeforeStep: func(step string) error {
		if s.step != nil {
			s.step(step)
		}
		return a.gate.pass("step " + step)
	}}
	a.repo, err = repository.Init(ctx, a.repoDir(), o)
	a.must(err)
	o.AroundCall, o.Space = a.gate.aroundCall, roomy
	gated, err := repository.Open(ctx, a.repoDir(), o)
	a.must(err)
	a.exec = &gatedExecutor{in: a.hypervisor(s.uri), g: a.gate}
	a.store = a.openStore()
	a.cfg = engine.Config{
		Store: a.gate.store(a.store), Repository: gated, Executor: a.exec,
		Images: gatedImages{a.images, a.gate}, ReserveBytes: engine.NoReserve,
		Prefix: "kvmbackup", // of all repositories that the runs on one guest make
	}
	if s.scratch != "" {
		a.must(os.MkdirAll(s.scratch, 0o755))
		a.cfg.Scratch = []string{s.scratch}
	}
	if s.config != nil {
		s.config(&a.cfg)
	}
	a.engine, err = engine.New(a.cfg)
	a.must(err)
	return a
}

func (a *app) hypervisor(uri string) *libvirtjob.Executor {
	a.Helper()
	cfg := libvirtjob.Config{Images: a.images, ProgressInterval: 50 * time.Millisecond}
	var e *libvirtjob.Executor
	var err error
	if uri == "" {
		e, err = libvirtjob.New(a.guest.conn, cfg)
	} else {
		e, err = libvirtjob.Open(a.ctx, uri, cfg)
	}
	a.must(err)
	a.Cleanup(func() { _ = e.Close() })
	return e
}

// openStore doesn't have SQLite flush: the processes die here, not the machine.
func (a *app) openStore() *sqlstore.Store {
	a.Helper()
	file := filepath.Join(a.dir, "backups.db")
	db, err := sql.Open("sqlite",
		"file:"+file+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(OFF)")
	a.must(err)
	a.Cleanup(func() { _ = db.Close() })
	a.db = db
	store, err := sqlstore.New(a.ctx, db, sqlstore.Config{})
	a.must(err)
	a.must(store.Migrate(a.ctx))
	return store
}

// expireLeases is what time does to the leases of processes that were killed, and of operations that couldn't release
// them.
func (a *app) expireLeases() {
	a.Helper()
	_, err := a.db.ExecContext(a.ctx, "UPDATE kvmbackup_vms SET lease_expires_us = 1 WHERE lease_expires_us > 0")
	a.must(err)
}

func (a *app) must(err error) {
	a.Helper()
	if err != nil {
		a.Fatal(err)
	}
}

func (a *app) repoDir() string { return filepath.Join(a.dir, "repository") }

func (a *app) vm() kvmbackup.VMID { return kvmbackup.VMID(a.guest.name) }

func (a *app) ref() kvmbackup.DomainRef {
	return kvmbackup.DomainRef{Name: a.guest.name, Disks: a.disks()}
}

// disks describes those of a transient guest, which libvirt forgets when it stops.
func (a *app) disks() (refs []kvmbackup.DiskRef) {
	if !a.guest.transient {
		return nil
	}
	for _, d := range a.guest.devices {
		refs = append(refs, kvmbackup.DiskRef{Device: d, Source: a.guest.image(d), Format: "qcow2"})
	}
	return refs
}

func (a *app) request() engine.BackupRequest {
	r := engine.BackupRequest{
		VM: a.vm(), Policy: kvmbackup.Policy{FullEvery: 100}, Disks: a.disks(),
		IgnoreSpace: true, // disks of 64 GiB are blanked whole, which counts as data beforehand
	}
	for _, d := range a.guest.devices {
		r.Volumes = append(r.Volumes, engine.Volume{ID: kvmbackup.VolumeID("vol-" + d), Device: d})
	}
	return r
}

// contentDir is where it is kept what the disks held at the backup of that sequence.
func (a *app) contentDir(sequence int64) string {
	return filepath.Join(a.dir, fmt.Sprintf("%s.content.%d", a.guest.name, sequence))
}

// keep keeps what the next backup has to give back. Its sequence is the one after the last that was begun.
func (a *app) keep() {
	a.Helper()
	vm, err := a.store.VM(a.ctx, a.vm())
	a.must(err)
	a.guest.keep(a.contentDir(vm.LastSequence + 1))
}

// backup takes a backup that has to succeed.
func (a *app) backup(req engine.BackupRequest) kvmbackup.Backup {
	a.Helper()
	a.keep()
	b, err := a.engine.Backup(a.ctx, req)
	a.must(err)
	a.probed, a.cut = true, false
	return b
}

func (a *app) records(statuses ...kvmbackup.Status) []kvmbackup.Backup {
	a.Helper()
	list, err := a.store.List(a.ctx, kvmbackup.Query{VM: a.vm(), Statuses: statuses})
	a.must(err)
	return list
}

// forget takes all checkpoints and bitmaps off the domain, for a run that starts over.
func (a *app) forget() {
	a.Helper()
	st, err := a.exec.Inspect(a.ctx, a.ref())
	a.must(err)
	owned := engine.Ownership{Prefix: a.cfg.Prefix, VM: a.vm()}
	for _, name := range owned.Stale(st) {
		a.must(a.exec.DropCheckpoint(a.ctx, a.ref(), name))
	}
}
