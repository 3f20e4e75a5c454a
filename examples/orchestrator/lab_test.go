package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

const (
	vmCount  = 20
	clusters = 4 // of each VM's disk
	keepLast = 3
	deadline = time.Minute
)

// lab is a database with a schema of its own, a repository, and twenty VMs in the schedule.
type lab struct {
	t     *testing.T
	cfg   Config
	db    *sql.DB
	store *sqlstore.Store
	repo  *repository.Repository
}

var schemas atomic.Int64

func newLab(t *testing.T) *lab {
	t.Helper()
	name := fmt.Sprintf("orchestrator%d", schemas.Add(1))
	l := &lab{t: t, cfg: Config{
		Database: testpg.DSN(t) + " search_path=" + name, Repository: newFolder(t), Workers: 4, HostLimit: 3,
		RepositoryLimit: 3, LeaseTTL: 3 * time.Second, BusyWait: 3 * time.Second, Retry: 20 * time.Millisecond,
		Poll: 20 * time.Millisecond, Grace: deadline,
	}}
	var err error
	l.db, err = sql.Open("pgx", l.cfg.Database)
	l.must(err)
	t.Cleanup(func() { _ = l.db.Close() })
	l.exec(`CREATE SCHEMA ` + name)
	l.store, err = sqlstore.New(t.Context(), l.db, sqlstore.Config{})
	l.must(err)
	l.must(l.store.Migrate(t.Context()))
	l.must(migrate(t.Context(), l.db))
	l.repo, err = repository.Init(t.Context(), l.cfg.Repository, repository.Options{})
	l.must(err)
	l.exec(history)
	return l
}

// history keeps every completed record as it was at its completion, also when retention removes it.
const history = `
CREATE TABLE seen (vm TEXT, sequence BIGINT, record JSONB);
CREATE FUNCTION remember() RETURNS trigger AS $$
	BEGIN INSERT INTO seen VALUES (NEW.vm_id, NEW.sequence, NEW.record::jsonb); RETURN NEW; END
$$ LANGUAGE plpgsql;
CREATE TRIGGER remember AFTER UPDATE ON kvmbackup_backups FOR EACH ROW
	WHEN (OLD.status = 'running' AND NEW.status = 'completed') EXECUTE FUNCTION remember();`

// newFolder is in memory where that is possible: there a file takes what it takes at once.
func newFolder(t *testing.T) string {
	dir, err := inMemory()
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func inMemory() (string, error) { return os.MkdirTemp("/dev/shm", "orchestrator-") }

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) exec(query string, args ...any) {
	l.t.Helper()
	_, err := l.db.ExecContext(l.t.Context(), query, args...)
	l.must(err)
}

// query is for one value.
func query[T any](l *lab, text string, args ...any) (value T) {
	l.t.Helper()
	l.must(l.db.QueryRowContext(l.t.Context(), text, args...).Scan(&value))
	return value
}

// schedule lets all VMs be backed up again and again.
func (l *lab) schedule() {
	for i := range vmCount {
		l.exec(`INSERT INTO orchestrator_vms (vm, every, full_every, keep_last) VALUES ($1, '50 milliseconds', 4, $2)`,
			vmName(i), keepLast)
	}
}

// until polls until the condition holds.
func (l *lab) until(what string, condition func() bool) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), deadline)
	defer cancel()
	for !condition() {
		pause(ctx, 10*time.Millisecond)
		if ctx.Err() != nil {
			l.t.Fatalf("after %v still not: %s", deadline, what)
		}
	}
}

// untilBackups waits until every VM has n backups that were completed.
func (l *lab) untilBackups(n int) {
	l.t.Helper()
	l.until(fmt.Sprintf("%d backups of every VM", n), func() bool {
		return query[int](l, `SELECT count(*) FROM (SELECT vm FROM seen GROUP BY vm HAVING count(*) >= $1) x`, n) == vmCount
	})
}

// untilMore waits until every VM has a backup that was begun after the call, and retention has removed one.
func (l *lab) untilMore() {
	l.t.Helper()
	asked := time.Now()
	l.untilBackups(keepLast + 1)
	l.until("something is returned to the quota", func() bool {
		return query[bool](l, `SELECT EXISTS (SELECT FROM orchestrator_quota WHERE returned_at IS NOT NULL)`)
	})
	l.until("a backup of every VM that was begun since", func() bool {
		return query[int](l, `SELECT count(DISTINCT vm) FROM seen WHERE (record->>'started_at')::timestamptz > $1`,
			asked) == vmCount
	})
}

// calm takes all VMs off the schedule and waits for what is under way.
func (l *lab) calm() {
	l.t.Helper()
	l.exec(`UPDATE orchestrator_vms SET enabled = false`)
	l.until("no claims", func() bool {
		return query[int](l, `SELECT count(*) FROM orchestrator_vms WHERE claimed_by <> ''`) == 0
	})
}

type instance struct {
	stop  context.CancelFunc
	ended chan error
}

// start runs an instance in this process.
func (l *lab) start(name string, h host, change func(*Config)) *instance {
	cfg := l.cfg
	cfg.Instance = name
	if change != nil {
		change(&cfg)
	}
	if h.Log == nil {
		h.Log = testLog(l.t.Output(), name)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(l.t.Context()))
	i := &instance{stop, make(chan error, 1)}
	go func() { i.ended <- serve(ctx, cfg, h) }()
	l.t.Cleanup(stop)
	return i
}

// end stops it and waits.
func (l *lab) end(i *instance) {
	l.t.Helper()
	i.stop()
	select {
	case err := <-i.ended:
		l.must(err)
	case <-time.After(deadline):
		l.t.Fatal("the service doesn't end")
	}
}

func testLog(w io.Writer, name string) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn})).With("process", name)
}

func vmName(i int) string { return fmt.Sprintf("vm%02d", i) }

// newHypervisor has the twenty VMs, running, with something on their disks.
func newHypervisor(delay time.Duration) (*kvmbackuptest.Hypervisor, error) {
	h := kvmbackuptest.NewHypervisor()
	for i := range vmCount {
		vm := vmName(i)
		err := h.Define(kvmbackuptest.Domain{Name: vm, Agent: kvmbackuptest.AgentPresent, Disks: []kvmbackuptest.Disk{{
			Device: "vda", SizeBytes: clusters * kvmbackuptest.ClusterBytes, Serial: "disk-" + vm,
		}}})
		if err == nil {
			err = h.Start(vm)
		}
		if err == nil {
			err = h.SetTarget(vm, kvmbackuptest.Target{Delay: delay})
		}
		if err == nil {
			err = h.Write(vm, "vda", 0, kvmbackuptest.Pattern(uint64(i), clusters*kvmbackuptest.ClusterBytes))
		}
		if err != nil {
			return nil, err
		}
	}
	return h, nil
}

func hostOf(h *kvmbackuptest.Hypervisor) host {
	return host{Executor: h.Executor(), Images: kvmbackuptest.Images{}}
}

// check looks at what is there when no instance is at work any more.
func (l *lab) check() {
	l.t.Helper()
	l.checkRecords()
	l.checkHistory()
	l.checkQuota()
}

// checkRecords: every VM has completed backups, of which retention has nothing more to remove, and none is running.
func (l *lab) checkRecords() {
	l.t.Helper()
	eng, err := engine.New(engine.Config{Store: l.store, Repository: l.repo, Images: kvmbackuptest.Images{}})
	l.must(err)
	for i := range vmCount {
		vm := kvmbackup.VMID(vmName(i))
		records, err := eng.List(l.t.Context(), kvmbackup.Query{VM: vm})
		l.must(err)
		completed := 0
		for _, b := range records {
			switch b.Status {
			case kvmbackup.StatusRunning:
				l.t.Errorf("%s is left running", b.Path)
			case kvmbackup.StatusCompleted:
				completed++
				_, err := eng.Verify(l.t.Context(), b.ID, engine.VerifyOptions{})
				l.must(err)
			}
		}
		p, err := (kvmbackup.RetentionPolicy{Last: keepLast}).Plan(records, "")
		l.must(err)
		if completed != keepLast || len(p.RemoveNow) > 0 {
			l.t.Errorf("%s has %d completed backups, and retention would remove %v; want %d and none", vm, completed,
				p.RemoveNow, keepLast)
		}
	}
}

// checkContents: the newest backup of every VM has what is on its disk.
func (l *lab) checkContents(h *kvmbackuptest.Hypervisor) {
	l.t.Helper()
	for i := range vmCount {
		b, err := l.store.Newest(l.t.Context(), kvmbackup.VMID(vmName(i)))
		l.must(err)
		got, err := kvmbackuptest.ReadChain(l.repo.FilePath(b.Path, b.Volumes[0].File))
		l.must(err)
		want, err := h.Content(vmName(i), "vda")
		l.must(err)
		if diff := got.Diff(want); diff != "" {
			l.t.Errorf("%s: %s", b.Path, diff)
		}
	}
}

// checkHistory: no two backups of one VM overlap.
func (l *lab) checkHistory() {
	l.t.Helper()
	overlaps := query[int](l, `
SELECT count(*) FROM seen a JOIN seen b ON a.vm = b.vm AND a.sequence < b.sequence
WHERE (a.record->>'completed_at')::timestamptz > (b.record->>'started_at')::timestamptz`)
	if overlaps > 0 {
		l.t.Errorf("%d pairs of backups overlap", overlaps)
	}
	n := query[int](l,
		`SELECT count(*) FROM seen WHERE (record->>'completed_at')::timestamptz >= (record->>'started_at')::timestamptz`)
	if n == 0 {
		l.t.Error("the history has no times")
	}
}

// checkQuota: the quota table is what is on disk, backup by backup and byte by byte, and every removal is accounted
// for.
func (l *lab) checkQuota() {
	l.t.Helper()
	entries, err := l.repo.List(l.t.Context(), "")
	l.must(err)
	for _, e := range entries {
		if e.Kind != repository.FolderPublished {
			l.t.Errorf("%s is left as %v", e.Path, e.Kind)
			continue
		}
		m, err := l.repo.ReadManifest(l.t.Context(), e.Path)
		l.must(err)
		var allocated int64
		for _, v := range m.Volumes {
			info, err := l.repo.Stat(l.t.Context(), e.Path, v.File)
			l.must(err)
			allocated += info.AllocatedBytes
		}
		charged := query[int64](l,
			`SELECT coalesce(sum(bytes), 0) FROM orchestrator_quota WHERE backup = $1 AND returned_at IS NULL`, e.ID)
		if charged != allocated || allocated == 0 {
			l.t.Errorf("%s takes %d bytes on disk and %d of the quota", e.Path, allocated, charged)
		}
	}
	if n := query[int](l, `SELECT count(*) FROM orchestrator_quota WHERE returned_at IS NULL`); n != len(entries) {
		l.t.Errorf("the quota has %d backups, the disk %d", n, len(entries))
	}
	if returned := query[int](l, `SELECT count(*) FROM orchestrator_quota WHERE returned_at IS NOT NULL`); returned == 0 {
		l.t.Error("nothing was returned to the quota")
	}
	left, err := l.store.Removals(l.t.Context(), 0)
	if err != nil || len(left) > 0 {
		l.t.Errorf("removals that nobody accounted for: %v, %v", left, err)
	}
}
