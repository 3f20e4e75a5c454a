//go:build cgo

package guests_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// TestSignals ends the host's process while the guest is frozen: by SIGTERM, which the process turns into a cancel, and
// then by SIGKILL, after which another process recovers. A process has only one libvirt root, so both are helpers,
// which are this test binary again on a root of their own.
func TestSignals(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needSystem(t)
	connection(t)
	dir, err := newWorkDir()
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "helper")
	root, err := os.MkdirTemp("", "kvmb-") //nolint:usetesting // sockets are in it, whose paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeRoot(root) })
	for path, err := range map[string]error{root: os.Chmod(root, 0o755), dir: os.Mkdir(dir, 0o755)} {
		if err != nil {
			t.Fatal(path, err)
		}
	}

	first := startHelper(t, "TestHelperIsEnded", root, dir)
	first.expect("frozen")
	first.signal(syscall.SIGTERM)
	first.expect("cancelled, frozen: false")
	first.expect("frozen")
	first.signal(syscall.SIGKILL)
	_ = first.cmd.Wait()

	second := startHelper(t, "TestHelperRecovers", root, dir)
	second.expect("frozen: true")
	second.expect("recovered: undone, frozen: false")
	second.expect("backup: full filesystem")
	if err := second.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// helper is another process of this test binary.
type helper struct {
	*testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner
}

const helperEnv = "KVMBACKUP_HELPER_DIR"

func startHelper(t *testing.T, test, root, dir string) *helper {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), helperEnv+"="+dir, rootEnv+"="+root, "TMPDIR="+dir, "LIBVIRT_LOG_OUTPUTS=")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return &helper{t, cmd, bufio.NewScanner(out)}
}

// expect reads what the helper says until it says the line.
func (h *helper) expect(line string) {
	h.Helper()
	var said strings.Builder
	for h.lines.Scan() {
		if h.lines.Text() == line {
			return
		}
		fmt.Fprintln(&said, h.lines.Text())
	}
	h.Fatalf("the helper didn't say %q but\n%s", line, said.String())
}

func (h *helper) signal(s os.Signal) {
	h.Helper()
	if err := h.cmd.Process.Signal(s); err != nil {
		h.Fatal(err)
	}
}

// fileStore is a store that outlives the process.
func fileStore(t *testing.T, path string) kvmbackup.Store {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	store, err := sqlstore.New(t.Context(), db, sqlstore.Config{})
	if err == nil {
		err = store.Migrate(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// helperBench is the helper's engine.
func helperBench(t *testing.T, dir string) *bench {
	t.Helper()
	return newBench(t, func(c *engine.Config) {
		c.Store = fileStore(t, filepath.Join(dir, "backups.db"))
		c.Repository = newRepository(t, filepath.Join(dir, "repository"))
		c.LeaseTTL = 6 * time.Second // the killed process holds it
	})
}

// TestHelperIsEnded is the first process.
func TestHelperIsEnded(t *testing.T) {
	dir := os.Getenv(helperEnv)
	if dir == "" {
		return // it is not the helper
	}
	g := newGuest(t)
	g.name = "helper"
	g.disks = []guestDisk{{device: "vda", path: newFS(t, filepath.Join(g.dir, "vda.qcow2"), 48)}}
	g.start(g.xml())
	b := helperBench(t, dir)
	ctx, stop := signal.NotifyContext(b.ctx, syscall.SIGTERM)
	defer stop()
	req := engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceRequire}
	b.on(engine.EventFrozen, func(engine.Event) {
		fmt.Println("\nfrozen")
		<-ctx.Done()
	})
	_, err := b.engine.Backup(ctx, req)
	b.wantErr(err, context.Canceled)
	b.wantClean(g)
	fmt.Printf("\ncancelled, frozen: %v\n", g.frozen())

	b.on(engine.EventFrozen, func(engine.Event) {
		fmt.Println("\nfrozen")
		<-b.ctx.Done() // the end comes first
	})
	_, err = b.engine.Backup(b.ctx, req)
	t.Fatalf("the process lives on: %v", err)
}

// TestHelperRecovers is the second process.
func TestHelperRecovers(t *testing.T) {
	dir := os.Getenv(helperEnv)
	if dir == "" {
		return // it is not the helper
	}
	g := &guest{TB: t, name: "helper"}
	t.Cleanup(func() { destroy(connection(t), g.name) })
	b := helperBench(t, dir)
	g.waitAgent()
	fmt.Printf("\nfrozen: %v\n", g.frozen())
	found, err := b.engine.Recover(b.ctx, engine.Target{VM: kvmbackup.VMID(g.name), DomainUUID: g.uuid})
	b.must(err)
	for _, r := range found {
		fmt.Printf("\nrecovered: %s, frozen: %v\n", r.Outcome, g.frozen())
	}
	b.wantClean(g)
	got := b.backup(engine.BackupRequest{VM: kvmbackup.VMID(g.name), Quiesce: engine.QuiesceRequire})
	fmt.Printf("\nbackup: %v %v\n", got.Kind, got.Consistency)
}
