// Package testpg runs a real PostgreSQL server for tests: once per test binary, on a temporary directory and
// a unix socket, without TCP.
//
//	func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }
//
// DSN gives a test the server's address.
package testpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// errMissing is the error of a machine without PostgreSQL.
var errMissing = errors.New("no PostgreSQL server is installed")

var shared struct {
	once    sync.Once
	managed bool // Main will stop the server
	dsn     string
	err     error
	stop    func()
}

// Main runs the tests and then stops the server, if one was started. It returns the exit code.
func Main(m *testing.M) int {
	shared.managed = true
	code := m.Run()
	if shared.stop != nil {
		shared.stop()
	}
	return code
}

// DSN starts the server, unless it runs, and returns how pgx and lib/pq reach it as its superuser. All tests of the
// binary share its one database, whose collation is not that of bytes; they take a schema each. Without an installed
// PostgreSQL it skips the test, or fails it when KVMBACKUP_REQUIRE_TOOLS is 1. It may be called concurrently.
func DSN(t testing.TB) string {
	t.Helper()
	if !shared.managed {
		t.Fatal("testpg.DSN needs testpg.Main in TestMain")
	}
	shared.once.Do(func() { shared.dsn, shared.stop, shared.err = start() })
	switch {
	case errors.Is(shared.err, errMissing):
		lab.Missing(t, shared.err)
	case shared.err != nil:
		t.Fatal(shared.err)
	}
	return shared.dsn
}

// start makes a cluster and starts its server.
func start() (dsn string, stop func(), err error) {
	bin, err := binDir()
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "testpg-")
	if err != nil {
		return "", nil, err
	}
	attr, err := asServer(dir)
	if err == nil {
		err = initialize(bin, dir, attr)
	}
	if err == nil {
		stop, err = serve(bin, dir, attr)
	}
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return "host=" + dir + " user=postgres dbname=postgres", stop, nil
}

// binDir finds the programs: those of pg_config, else the newest where Debian installs them.
func binDir() (string, error) {
	candidates, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	sort.Slice(candidates, func(i, j int) bool { return major(candidates[i]) > major(candidates[j]) })
	if out, err := exec.CommandContext(context.Background(), "pg_config", "--bindir").Output(); err == nil {
		candidates = append([]string{strings.TrimSpace(string(out))}, candidates...)
	}
	for _, dir := range candidates {
		if _, err := exec.LookPath(filepath.Join(dir, "postgres")); err == nil {
			return dir, nil
		}
	}
	return "", errMissing
}

func major(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

// asServer lets the server, which refuses to be root, own the directory.
func asServer(dir string) (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT, Setpgid: true}
	if os.Getuid() != 0 {
		return attr, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("a server can't run as root: %w", err)
	}
	uid, errU := strconv.Atoi(u.Uid)
	gid, errG := strconv.Atoi(u.Gid)
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attr, errors.Join(errU, errG, os.Chown(dir, uid, gid))
}

func initialize(bin, dir string, attr *syscall.SysProcAttr) error {
	// ICU's order is not that of bytes: a store that forgets to say which one it wants is found out.
	cmd := exec.CommandContext(context.Background(), filepath.Join(bin, "initdb"), "--pgdata",
		filepath.Join(dir, "data"), "--username", "postgres",
		"--auth", "trust", "--no-sync", "--encoding", "UTF8", "--locale", "C.UTF-8", "--locale-provider", "icu",
		"--icu-locale", "en")
	cmd.Dir, cmd.Env, cmd.SysProcAttr = dir, append(os.Environ(), "LC_ALL=C.UTF-8"), withoutDeathSignal(attr)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}

// withoutDeathSignal is for a process that is waited for anyway: the signal comes when the starting thread ends.
func withoutDeathSignal(attr *syscall.SysProcAttr) *syscall.SysProcAttr {
	a := *attr
	a.Pdeathsig = 0
	return &a
}

// serve starts the server and waits until it answers. It also ends when this process dies.
func serve(bin, dir string, attr *syscall.SysProcAttr) (stop func(), err error) {
	var log bytes.Buffer
	cmd := exec.CommandContext(context.Background(), filepath.Join(bin, "postgres"), "-D", filepath.Join(dir, "data"),
		"-k", dir, "-c", "listen_addresses=",
		"-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200", "-c", "max_wal_size=2GB")
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = dir, &log, &log, attr
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the death signal is tied to the thread
		started <- cmd.Start()
		_ = cmd.Wait()
		close(ended)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		<-ended
		_ = os.RemoveAll(dir)
	}
	if err := await(bin, dir, ended); err != nil {
		stop()
		return nil, fmt.Errorf("%w\n%s", err, log.String())
	}
	return stop, nil
}

// await asks until the server answers.
func await(bin, dir string, ended <-chan struct{}) error {
	limit, tick := time.After(time.Minute), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return errors.New("the PostgreSQL server ended at once")
		case <-limit:
			return errors.New("the PostgreSQL server doesn't answer")
		case <-tick.C:
			if exec.CommandContext(context.Background(), filepath.Join(bin, "pg_isready"), "-q", "-h", dir).Run() == nil {
				return nil
			}
		}
	}
}
