package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// A process has one libvirt, so each host is a process: this test binary, with the arguments of an agent in the
// environment.
const agentEnv = "HOSTS_TEST_AGENT"

func TestMain(m *testing.M) {
	if told := os.Getenv(agentEnv); told != "" {
		if err := runAgent(told); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		return
	}
	os.Exit(testpg.Main(m))
}

const cluster = kvmbackuptest.ClusterBytes

// agent is a host's process, its guest, and what is on that one's disk, by cluster.
type agent struct {
	t          *testing.T
	cmd        *exec.Cmd
	url, write string
	vm         kvmbackup.VMID
	disk       [4]byte
}

func startAgent(t *testing.T, host, database, repo string) *agent {
	t.Helper()
	a := &agent{t: t, cmd: exec.Command(os.Args[0])}
	a.cmd.Env = append(os.Environ(), agentEnv+"="+host+"\n"+database+"\n"+repo)
	var stderr bytes.Buffer
	a.cmd.Stderr = &stderr
	stdout, err := a.cmd.StdoutPipe()
	lab.OK(t, err)
	lab.OK(t, a.cmd.Start())
	t.Cleanup(func() {
		_ = a.cmd.Process.Signal(syscall.SIGTERM) // it has a guest to end
		_ = a.cmd.Wait()
		if t.Failed() {
			t.Logf("agent %s: %s", host, stderr.String())
		}
	})
	lines := bufio.NewReader(stdout)
	line, err := lines.ReadString('\n')
	if _, scan := fmt.Sscan(line, &a.url, &a.write, &a.vm); err != nil || scan != nil {
		rest, _ := io.ReadAll(lines)
		t.Fatalf("agent %s doesn't start: %v: %s%s", host, err, line, rest)
	}
	go func() { _, _ = io.Copy(io.Discard, lines) }()
	return a
}

// stop ends the agent as a service manager does.
func (a *agent) stop() {
	a.t.Helper()
	lab.OK(a.t, a.cmd.Process.Signal(syscall.SIGTERM))
	lab.OK(a.t, a.cmd.Wait())
}

// changes lets the guest write a cluster.
func (a *agent) changes(at int, pattern byte) {
	a.t.Helper()
	r, err := http.Get(fmt.Sprintf("%s?at=%d&pattern=%d", a.write, at*64, pattern))
	lab.OK(a.t, err)
	lab.OK(a.t, r.Body.Close())
	lab.Equal(a.t, "the guest's write", r.StatusCode, http.StatusOK)
	a.disk[at] = pattern
}

// manager is a manager's process, in this one, whose mount of the share is another path.
type manager struct {
	t *testing.T
	*site
	engine *engine.Engine
}

func startManager(t *testing.T, database, repo string) *manager {
	t.Helper()
	s, err := open(t.Context(), database, repo)
	lab.OK(t, err)
	t.Cleanup(func() { _ = s.db.Close() })
	e, err := s.engine(nil, managerName)
	lab.OK(t, err)
	return &manager{t, s, e}
}

// holds restores a backup to files, and compares them with what the disk held then.
func (m *manager) holds(b kvmbackup.Backup, disk [4]byte) {
	m.t.Helper()
	dir := m.t.TempDir()
	var out bytes.Buffer
	lab.OK(m.t, m.manage(m.t.Context(), &out, []string{"restore", b.ID.String(), dir}))
	files, err := filepath.Glob(filepath.Join(dir, "*.qcow2"))
	lab.OK(m.t, err)
	lab.Equal(m.t, "files restored", len(files), 1)
	content, err := kvmbackuptest.ReadChain(files[0])
	lab.OK(m.t, err)
	got := make([]byte, cluster*len(disk))
	_, err = content.ReadAt(got, 0)
	lab.OK(m.t, err)
	for n, pattern := range disk {
		if !bytes.Equal(got[n*cluster:(n+1)*cluster], bytes.Repeat([]byte{pattern}, cluster)) {
			m.t.Errorf("backup %s: cluster %d isn't %#x", b.Path, n, pattern)
		}
	}
}

// backup has the VM's host take one.
func (m *manager) backup(a *agent, want kvmbackup.Kind) (kvmbackup.Backup, [4]byte) {
	m.t.Helper()
	var b kvmbackup.Backup
	lab.OK(m.t, askAgent(m.t.Context(), a.url, "backup", a.vm, &b))
	lab.Equal(m.t, fmt.Sprintf("kind, because %v", b.Reasons), b.Kind, want)
	return b, a.disk
}

// newSite is a database and a share, which the manager has mounted elsewhere.
func newSite(t *testing.T) (database, share, managers string) {
	t.Helper()
	schema := fmt.Sprintf("hosts%d", os.Getpid())
	database = testpg.DSN(t) + " search_path=" + schema
	dir := t.TempDir()
	share, managers = filepath.Join(dir, "mnt"), filepath.Join(dir, "elsewhere")
	lab.OK(t, os.Mkdir(share, 0o777))
	lab.OK(t, os.Chmod(share, 0o777)) //nolint:gosec // QEMU may be another user
	lab.OK(t, os.Chmod(dir, 0o755))   //nolint:gosec // as above
	lab.OK(t, os.Symlink(share, managers))
	s, err := open(t.Context(), testpg.DSN(t), t.TempDir())
	lab.OK(t, err)
	_, err = s.db.ExecContext(t.Context(), "CREATE SCHEMA "+schema)
	lab.OK(t, err)
	lab.OK(t, s.db.Close())
	return database, share, managers
}

// TestHosts: two hosts with real guests, and a manager that reaches neither hypervisor by itself.
func TestHosts(t *testing.T) {
	lab.Need(t, "qemu-system-x86_64")
	database, share, managers := newSite(t)
	m := startManager(t, database, managers)
	one, two := startAgent(t, "one", database, share), startAgent(t, "two", database, share)
	for _, a := range []*agent{one, two} {
		a.changes(0, 1)
		m.planned(a, kvmbackup.KindFull)
		full, fullDisk := m.backup(a, kvmbackup.KindFull)
		a.changes(1, 2)
		m.planned(a, kvmbackup.KindIncremental)
		incremental, disk := m.backup(a, kvmbackup.KindIncremental)
		m.holds(full, fullDisk)
		m.holds(incremental, disk)
		for _, b := range []kvmbackup.Backup{full, incremental} {
			lab.OK(t, m.manage(t.Context(), io.Discard, []string{"verify", b.ID.String()}))
		}
	}
	m.writesToTheStore(one)
	m.sendsToTheHost(two)
	m.central(two)
	one.stop()
	two.stop()
}

// planned compares what the manager plans from an agent's inventory with what comes.
func (m *manager) planned(a *agent, want kvmbackup.Kind) {
	m.t.Helper()
	p, err := planFor(m.t.Context(), m.engine, a.url, a.vm)
	lab.OK(m.t, err)
	if p.Decision.Kind != want || p.Blocked != nil || !slices.Equal(p.Unmeasured, []string{"vda"}) {
		m.t.Errorf("planned\n%v", p)
	}
}

// writesToTheStore: what the manager does to the records counts for the host's next backup.
func (m *manager) writesToTheStore(a *agent) {
	m.t.Helper()
	do := func(words ...string) { m.t.Helper(); lab.OK(m.t, m.manage(m.t.Context(), io.Discard, words)) }
	do("require-full", string(a.vm))
	m.backup(a, kvmbackup.KindFull)
	a.changes(2, 3)
	newest, _ := m.backup(a, kvmbackup.KindIncremental)
	do("delete", newest.ID.String())
	m.backup(a, kvmbackup.KindFull) // the newest is gone
	a.changes(3, 4)
	kept, disk := m.backup(a, kvmbackup.KindIncremental)
	do("retain", string(a.vm), "1")
	left, err := m.engine.List(m.t.Context(), kvmbackup.Query{
		VM: a.vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted},
	})
	lab.OK(m.t, err)
	lab.Equal(m.t, "backups that are left", len(left), 1)
	m.holds(kept, disk)
}

// sendsToTheHost: what the manager can't do has a code that says so.
func (m *manager) sendsToTheHost(a *agent) {
	m.t.Helper()
	_, err := m.engine.Backup(m.t.Context(), engine.BackupRequest{VM: a.vm})
	lab.Equal(m.t, "code of a manager's own backup", kvmbackup.Code(err), "no-hypervisor")
	err = askAgent(m.t.Context(), a.url, "backup", "nobody", nil)
	lab.Equal(m.t, "code of an unknown domain", kvmbackup.Code(err), "no-domain")
}

// central: the manager's own engine takes a backup over the wire, which breaks in mid-job.
func (m *manager) central(a *agent) {
	m.t.Helper()
	target, err := url.Parse(a.url)
	lab.OK(m.t, err)
	proxy, waits := httputil.NewSingleHostReverseProxy(target), new(atomic.Int32)
	proxy.FlushInterval = -1
	proxy.ModifyResponse = func(r *http.Response) error {
		if path.Base(r.Request.URL.Path) == "Wait" {
			if waits.Add(1) == 1 {
				r.Body = io.NopCloser(io.LimitReader(r.Body, 10)) // in the middle of a line
			}
		}
		return nil
	}
	wire := httptest.NewServer(proxy)
	defer wire.Close()
	for _, want := range []kvmbackup.Kind{kvmbackup.KindIncremental, kvmbackup.KindIncremental} {
		a.changes(0, 9)
		b, err := m.site.central(m.t.Context(), wire.URL, a.vm)
		lab.OK(m.t, err)
		lab.Equal(m.t, fmt.Sprintf("kind, because %v", b.Reasons), b.Kind, want)
		m.holds(b, a.disk)
	}
	lab.Equal(m.t, "times that the two jobs were waited for", waits.Load(), 3)
}
