package bench_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// app is a backup application as a host would make it, with every flush to disk.
type app struct {
	engine     *engine.Engine
	repo       *repository.Repository
	db         *sql.DB
	hypervisor *libvirtjob.Executor
}

func openApp(ctx context.Context, dir, uri string) (*app, error) {
	a := &app{}
	store, err := a.openStore(ctx, filepath.Join(dir, "backups.db"))
	if err != nil {
		return nil, err
	}
	if a.repo, err = repository.Init(ctx, filepath.Join(dir, "nas"), repository.Options{}); err != nil {
		return nil, err
	}
	images, err := qcow2.New(qcow2.Config{})
	if err != nil {
		return nil, err
	}
	if a.hypervisor, err = libvirtjob.Open(ctx, uri, libvirtjob.Config{Images: images}); err != nil {
		return nil, err
	}
	a.engine, err = engine.New(engine.Config{Store: store, Repository: a.repo, Executor: a.hypervisor, Images: images})
	return a, err
}

func (a *app) openStore(ctx context.Context, file string) (_ *sqlstore.Store, err error) {
	if a.db, err = sql.Open("sqlite", "file:"+file+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)"); err != nil {
		return nil, err
	}
	store, err := sqlstore.New(ctx, a.db, sqlstore.Config{})
	if err != nil {
		return nil, err
	}
	err = store.Migrate(ctx)
	return store, err
}

func (a *app) close() error { return errors.Join(a.hypervisor.Close(), a.db.Close()) }

// app opens an application in this process.
func (l *lab) app(name string) *app {
	l.Helper()
	dir := l.folder(name)
	l.must(os.MkdirAll(filepath.Join(dir, "nas"), 0o755))
	a, err := openApp(l.Context(), dir, l.host.URI)
	l.must(err)
	l.Cleanup(func() { _ = a.close() })
	return a
}

// order is what another process of this program is to do: one backup or one restore, as a command-line tool.
type order struct {
	Dir, URI  string
	VM        kvmbackup.VMID // to back up
	ForceFull bool
	Restore   kvmbackup.BackupID // instead of a backup, into the folder To
	To        string
}

const orderEnv = "KVMBACKUP_BENCH_ORDER"

func obey(text string) int {
	if err := follow(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func follow(text string) (err error) {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	ctx := context.Background()
	a, err := openApp(ctx, o.Dir, o.URI)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	if o.Restore != "" {
		_, err = a.engine.Restore(ctx, engine.RestoreRequest{Backup: o.Restore, Dir: o.To})
		return err
	}
	done, err := a.engine.Backup(ctx, engine.BackupRequest{VM: o.VM, Policy: chainPolicy(o.ForceFull)})
	if err != nil {
		return err
	}
	_, err = fmt.Println(done.ID, done.Kind, done.Path)
	return err
}

// chainPolicy has chains end only where a full is asked for.
func chainPolicy(full bool) kvmbackup.Policy {
	return kvmbackup.Policy{FullEvery: 1000, ForceFull: full}
}

// ours runs an order of the guest's application in a process of its own. What it prints is returned.
func (g *guest) ours(o order) (cost, []byte) {
	g.lab.Helper()
	text, err := json.Marshal(o)
	g.lab.must(err)
	return g.process([]string{orderEnv + "=" + string(text)}, os.Args[0])
}

// tool is the application as a command, one guest's.
type tool struct {
	*guest
	dir    string
	last   kvmbackup.BackupID
	folder string // of the newest backup
}

func (g *guest) tool() *tool {
	g.lab.Helper()
	t := &tool{guest: g, dir: g.lab.folder("ours")}
	g.lab.must(os.MkdirAll(filepath.Join(t.dir, "nas"), 0o755))
	return t
}

// backup measures one backup, which has to be of the kind.
func (t *tool) backup(kind kvmbackup.Kind) cost {
	t.lab.Helper()
	c, out := t.ours(order{Dir: t.dir, URI: t.lab.host.URI, VM: t.vm(), ForceFull: kind == kvmbackup.KindFull})
	var got, path string
	_, err := fmt.Sscan(string(out), &t.last, &got, &path)
	t.lab.must(err)
	if got != kind.String() {
		t.lab.Fatalf("ours took a %s backup, want %v", got, kind)
	}
	t.folder = filepath.Join(t.dir, "nas", path)
	c.stored = t.lab.stored(t.folder)
	return c
}

// full measures a full and removes its files behind the store's back: the next is a full again, and the disk may be
// small.
func (t *tool) full() cost {
	t.lab.Helper()
	c := t.backup(kvmbackup.KindFull)
	t.lab.run("rm", "-r", t.folder)
	return c
}

// restore measures one restore of the newest backup.
func (t *tool) restore(dir string) cost {
	t.lab.Helper()
	c, _ := t.ours(order{Dir: t.dir, URI: t.lab.host.URI, Restore: t.last, To: dir})
	return c
}
