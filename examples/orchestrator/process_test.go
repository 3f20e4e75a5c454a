package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
)

const childEnv = "ORCHESTRATOR_TEST_CHILD"

// child is what a process is told: its hypervisor, which only it sees, takes so long for each cluster.
type child struct {
	Config Config
	Delay  time.Duration
}

// TestMain is also the process of TestKilled.
func TestMain(m *testing.M) {
	if told := os.Getenv(childEnv); told != "" {
		if err := runChild(told); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	os.Exit(testpg.Main(m))
}

func runChild(told string) error {
	var c child
	if err := json.Unmarshal([]byte(told), &c); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	h, err := newHypervisor(c.Delay)
	if err != nil {
		return err
	}
	host := hostOf(h)
	host.Log = testLog(os.Stderr, c.Config.Instance)
	return serve(ctx, c.Config, host)
}

// process is an instance in a process of its own.
type process struct {
	*exec.Cmd
	stderr bytes.Buffer
}

func (l *lab) spawn(name string, delay time.Duration) *process {
	l.t.Helper()
	exe, err := os.Executable()
	l.must(err)
	c := child{l.cfg, delay}
	c.Config.Instance = name
	told, err := json.Marshal(c)
	l.must(err)
	p := &process{Cmd: exec.Command(exe)}
	p.Env = append(os.Environ(), childEnv+"="+string(told))
	p.Stderr = &p.stderr
	l.must(p.Start())
	l.t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.Wait()
		if l.t.Failed() {
			l.t.Logf("%s:\n%s", name, p.stderr.String())
		}
	})
	return p
}

// TestKilled has two processes, one of which is killed in the middle of backups and started again. Each process has a
// simulated hypervisor of its own with the same VMs, and a job dies with its process: when the other process goes on
// with a VM, it finds no bitmap there and takes a full.
func TestKilled(t *testing.T) {
	l := newLab(t)
	l.schedule()
	a, b := l.spawn("a", 50*time.Millisecond), l.spawn("b", 5*time.Millisecond)
	const running = `SELECT count(*) FROM kvmbackup_backups b JOIN orchestrator_vms v ON v.vm = b.vm_id
		WHERE b.status = 'running' AND v.claimed_by = 'a'`
	l.until("two backups of a and one completed", func() bool {
		return query[int](l, running) >= 2 && query[int](l, `SELECT count(*) FROM seen`) > 0
	})
	l.must(a.Process.Kill())
	_ = a.Wait()
	killed := l.left()
	if len(killed) == 0 {
		t.Error("the killed process has left nothing to recover")
	}
	restarted := l.spawn("a2", 5*time.Millisecond)
	l.until("what was left is settled", func() bool { return l.settled(killed) })
	l.untilMore()
	l.calm()
	for _, p := range []*process{restarted, b} {
		l.must(p.Process.Signal(syscall.SIGTERM))
		l.must(p.Wait())
	}
	l.check()
}

// left returns the running backups of the process a, which is dead.
func (l *lab) left() (ids []kvmbackup.BackupID) {
	l.t.Helper()
	rows, err := l.db.QueryContext(l.t.Context(), `SELECT backup_id FROM kvmbackup_backups b
		JOIN kvmbackup_vms v ON v.vm_id = b.vm_id WHERE b.status = 'running' AND v.lease_holder = 'a'`)
	l.must(err)
	defer rows.Close()
	for rows.Next() {
		var id kvmbackup.BackupID
		l.must(rows.Scan(&id))
		ids = append(ids, id)
	}
	l.must(rows.Err())
	return ids
}

// settled: none of them runs any more. Some may have been whole already and were completed, and even retained.
func (l *lab) settled(ids []kvmbackup.BackupID) bool {
	l.t.Helper()
	for _, id := range ids {
		b, err := l.store.Backup(l.t.Context(), id)
		if !errors.Is(err, kvmbackup.ErrNotFound) {
			l.must(err)
			if b.Status == kvmbackup.StatusRunning {
				return false
			}
		}
	}
	return true
}
