package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	tools "github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// TestTwoInstances lets two instances share twenty VMs on one hypervisor, while the guests write.
func TestTwoInstances(t *testing.T) {
	tools.Further(t)
	l := newLab(t)
	h, err := newHypervisor(time.Millisecond)
	l.must(err)
	l.schedule()
	var running []*instance
	var addresses []string
	for _, name := range []string{"a", "b"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		l.must(err)
		host := hostOf(h)
		host.Listener = listener
		running = append(running, l.start(name, host, func(cfg *Config) {
			cfg.LeaseTTL, cfg.BusyWait = deadline, time.Millisecond
		}))
		addresses = append(addresses, listener.Addr().String())
	}
	for n := range tools.Rounds(3, 6) {
		l.untilBackups(n + 1)
		for i := range vmCount {
			l.until("written", func() bool {
				err := h.Write(vmName(i), "vda", 0, kvmbackuptest.Pattern(uint64(100*n+i), 512))
				if !errors.Is(err, kvmbackuptest.ErrFrozen) { // while a backup freezes the guest, its writes wait
					l.must(err)
				}
				return err == nil
			})
		}
	}
	l.untilMore()
	l.calm()
	l.checkMetrics(addresses)
	for _, address := range addresses { // the claims alone have kept the two apart
		if failed := l.metric(address, `kvmbackup_failures_total{.*op="backup".*}`); len(failed) > 0 {
			t.Errorf("%s tells failures: %v", address, failed)
		}
	}
	for _, i := range running {
		l.end(i)
	}
	l.check()
	l.checkContents(h)
	if n := query[int](l, `SELECT count(*) FROM seen WHERE record->>'kind' = 'incremental'`); n < vmCount {
		t.Errorf("only %d incremental backups", n)
	}
}

// checkMetrics: what the tables say is the same from every instance; what the instances have seen is all VMs together.
func (l *lab) checkMetrics(addresses []string) {
	l.t.Helper()
	seen := map[string]bool{}
	for _, address := range addresses {
		l.get(address, "/healthz")
		all := l.scrape(address, "orchestrator_last_success_timestamp_seconds")
		if len(all) != vmCount {
			l.t.Errorf("%s tells the last success of %d VMs, want %d", address, len(all), vmCount)
		}
		for vm, at := range all {
			if age := time.Since(time.Unix(int64(at), 0)); age > deadline {
				l.t.Errorf("%s tells that the last success of %s was %v ago", address, vm, age)
			}
		}
		own := l.scrape(address, "kvmbackup_last_success_timestamp_seconds")
		if len(own) == 0 {
			l.t.Errorf("%s has done nothing", address)
		}
		for vm := range own {
			seen[vm] = true
		}
		var quota float64
		for _, bytes := range l.scrape(address, "orchestrator_quota_bytes") {
			quota += bytes
		}
		want := query[float64](l, `SELECT sum(bytes)::float8 FROM orchestrator_quota WHERE returned_at IS NULL`)
		if quota != want {
			l.t.Errorf("%s tells a quota of %v, want %v", address, quota, want)
		}
	}
	if len(seen) != vmCount {
		l.t.Errorf("the instances have seen %d VMs, want %d", len(seen), vmCount)
	}
}

// scrape returns a metric by VM.
func (l *lab) scrape(address, metric string) map[string]float64 {
	l.t.Helper()
	values := map[string]float64{}
	for _, m := range l.metric(address, metric+`\{vm="(\w+)"\} (\S+)`) {
		v, err := strconv.ParseFloat(m[2], 64)
		l.must(err)
		values[m[1]] = v
	}
	return values
}

// metric returns the lines that a pattern begins, with its submatches.
func (l *lab) metric(address, pattern string) [][]string {
	l.t.Helper()
	return regexp.MustCompile(`(?m)^`+pattern).FindAllStringSubmatch(l.get(address, "/metrics"), -1)
}

func (l *lab) get(address, path string) string {
	l.t.Helper()
	r, err := http.Get("http://" + address + path)
	l.must(err)
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	l.must(err)
	if r.StatusCode != http.StatusOK {
		l.t.Errorf("%s: %s\n%s", path, r.Status, body)
	}
	return string(body)
}

// TestLostClaims has every claim lapse at once, again and again, so that only the engine's leases keep the instances
// apart.
func TestLostClaims(t *testing.T) {
	tools.Further(t)
	l := newLab(t)
	h, err := newHypervisor(time.Millisecond)
	l.must(err)
	l.schedule()
	a, b := l.start("a", hostOf(h), nil), l.start("b", hostOf(h), nil)
	l.until("three backups for every VM, on average", func() bool {
		l.exec(`UPDATE orchestrator_vms SET claimed_until = '-infinity', next_run = least(next_run, now()) WHERE enabled`)
		return query[int](l, `SELECT count(*) FROM seen`) >= 3*vmCount
	})
	l.untilMore()
	l.calm()
	l.end(a)
	l.end(b)
	l.check()
}

// TestShutdown ends the service in the middle of backups.
func TestShutdown(t *testing.T) {
	for _, c := range []struct {
		name      string
		delay     time.Duration
		grace     time.Duration
		completed int
	}{
		{"within the grace period", 0, deadline, 3},
		{"after the grace period", time.Hour, 10 * time.Millisecond, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			h, err := newHypervisor(c.delay)
			l.must(err)
			asked, goOn := context.WithCancel(t.Context()) // the jobs don't get ahead of the shutdown
			defer goOn()
			h.OnStep(func(string, int64, int64) { <-asked.Done() })
			l.schedule()
			i := l.start("a", hostOf(h), func(cfg *Config) { cfg.Workers, cfg.Grace = 3, c.grace })
			l.until("three jobs", func() bool { return jobs(h) == 3 })
			i.stop()
			goOn()
			l.end(i)
			if n := query[int](l, `SELECT count(*) FROM seen`); n != c.completed {
				t.Errorf("%d backups were completed, want %d", n, c.completed)
			}
			if n := query[int](l, `SELECT count(*) FROM kvmbackup_backups WHERE status = 'running'`); n != 0 || jobs(h) != 0 {
				t.Errorf("%d records and %d jobs are left running", n, jobs(h))
			}
			if n := query[int](l, `SELECT count(*) FROM orchestrator_vms WHERE claimed_by = '' AND failures = 0`); n != vmCount {
				t.Errorf("%d VMs are free for others, want %d", n, vmCount)
			}
			if partial, err := filepath.Glob(filepath.Join(l.cfg.Repository, "*", "*.partial-*")); len(partial) > 0 ||
				err != nil {
				t.Errorf("left over: %v, %v", partial, err)
			}
			due := query[int](l,
				`SELECT count(*) FROM orchestrator_vms WHERE next_run > now() - interval '1 hour' AND last_success IS NULL`)
			if due != vmCount-c.completed {
				t.Errorf("%d VMs wait for their first backup, want %d", due, vmCount-c.completed)
			}
		})
	}
}

func jobs(h *kvmbackuptest.Hypervisor) (n int) {
	for i := range vmCount {
		if _, ok, _ := h.Job(vmName(i)); ok {
			n++
		}
	}
	return n
}

// TestRestart starts the service again after it has lost its hypervisor in the middle of backups, whose jobs run on:
// they are followed to their end and count.
func TestRestart(t *testing.T) {
	l := newLab(t)
	h, err := newHypervisor(20 * time.Millisecond)
	l.must(err)
	lost, goOn := context.WithCancel(t.Context()) // no job ends before
	defer goOn()
	h.OnStep(func(string, int64, int64) { <-lost.Done() })
	l.schedule()
	i := l.start("a", hostOf(h), func(cfg *Config) { cfg.Workers, cfg.Retry = 3, time.Hour })
	l.until("three jobs", func() bool { return jobs(h) == 3 })
	l.exec(`UPDATE orchestrator_vms SET enabled = false`)
	h.KillHost()
	goOn()
	l.end(i)
	if n := query[int](l, `SELECT count(*) FROM kvmbackup_backups WHERE status = 'running'`); n != 3 || jobs(h) != 3 {
		t.Fatalf("%d records and %d jobs are left running, want 3", n, jobs(h))
	}
	i = l.start("a2", hostOf(h), nil)
	l.until("the recovery and its accounting", func() bool {
		return query[int](l, `SELECT count(*) FROM seen s JOIN orchestrator_quota q ON q.backup = s.record->>'id'
			WHERE s.record->'reasons' @> '[{"code": "recovered"}]'`) == 3
	})
	l.end(i)
}

// TestPutOff has one VM that somebody else works on and one that doesn't exist.
func TestPutOff(t *testing.T) {
	l := newLab(t)
	h, err := newHypervisor(0)
	l.must(err)
	lease, err := l.store.AcquireLease(t.Context(), "vm00", "somebody", time.Hour)
	l.must(err)
	l.exec(`INSERT INTO orchestrator_vms (vm, daily) VALUES ('vm00', '02:30'), ('nobody', '02:30')`)
	i := l.start("a", hostOf(h), func(cfg *Config) { cfg.BusyWait = 50 * time.Millisecond })
	l.until("the failures", func() bool {
		return query[bool](l, `SELECT bool_and(last_error <> '') AND max(failures) > 2 FROM orchestrator_vms`)
	})
	if n := query[int](l, `SELECT failures FROM orchestrator_vms WHERE vm = 'vm00'`); n != 0 {
		t.Errorf("a busy VM counts %d failures", n)
	}
	if n := query[int](l, `SELECT count(*) FROM seen`); n != 0 {
		t.Errorf("%d backups under somebody else's lease", n)
	}
	l.must(l.store.ReleaseLease(t.Context(), lease))
	l.until("the backup that was put off", func() bool {
		return query[bool](l, `SELECT last_success IS NOT NULL AND last_error = '' FROM orchestrator_vms WHERE vm = 'vm00'`)
	})
	l.end(i)
	next := query[time.Time](l, `SELECT next_run FROM orchestrator_vms WHERE vm = 'vm00'`)
	if next.UTC().Format("15:04") != "02:30" {
		t.Errorf("the next run is at %v", next)
	}
}

// TestLedger charges and returns in the wrong order and twice.
func TestLedger(t *testing.T) {
	l := newLab(t)
	ledger := &ledger{l.db}
	eng, err := engine.New(engine.Config{Store: l.store, Repository: l.repo})
	l.must(err)
	records := []kvmbackup.Backup{
		{ID: "gone", VM: "vm", Status: kvmbackup.StatusCompleted, Volumes: []kvmbackup.VolumeBackup{{StoredSize: 100}}},
		{ID: "here", VM: "vm", Status: kvmbackup.StatusDeletePending, Volumes: []kvmbackup.VolumeBackup{{StoredSize: 20}}},
		{ID: "never", VM: "vm", Status: kvmbackup.StatusFailed, Volumes: []kvmbackup.VolumeBackup{{StoredSize: 3}}},
	}
	l.exec(`INSERT INTO kvmbackup_removals (backup_id, vm_id, stored_bytes, removed_us)
		VALUES ('gone', 'vm', 90, extract(epoch FROM now())::bigint * 1000000)`)
	for range 2 {
		l.must(ledger.settle(t.Context(), eng))
		l.must(ledger.charge(t.Context(), records))
	}
	if n := query[int64](l, `SELECT sum(bytes) FROM orchestrator_quota WHERE returned_at IS NULL`); n != 20 {
		t.Errorf("%d bytes are charged, want 20", n)
	}
}

// TestLedgerByIndex: what is done after each backup, and what is shown of each VM, doesn't read the table of all.
func TestLedgerByIndex(t *testing.T) {
	l := newLab(t)
	l.exec(`INSERT INTO orchestrator_quota (backup, vm, bytes)
		SELECT 'b' || i, 'vm' || i % 500, 1 FROM generate_series(1, 20000) AS i`)
	l.exec(`INSERT INTO orchestrator_vms (vm, every) SELECT 'vm' || i, '1 day' FROM generate_series(1, 2) AS i`)
	l.exec(`ANALYZE`)
	for _, statement := range []string{forgetSQL, tablesSQL} {
		var plan string
		l.must(l.db.QueryRowContext(t.Context(), `EXPLAIN (FORMAT JSON) `+statement).Scan(&plan))
		for part := range strings.SplitSeq(plan, `"Node Type"`) {
			if strings.Contains(part, `"Seq Scan"`) && strings.Contains(part, `"orchestrator_quota"`) {
				t.Errorf("scans the table:\n%s\n%s", statement, plan)
			}
		}
	}
}
