package sqlstoretest_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

const workerEnv = "SQLSTORE_TEST_WORKER"

// TestMain is also the worker process of TestProcesses.
func TestMain(m *testing.M) {
	if dsn := os.Getenv(workerEnv); dsn != "" {
		if err := work(context.Background(), dsn); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(testpg.Main(m))
}

// The race: each process wants to do that many backups of the one VM.
const (
	racingProcesses = 4
	backupsEach     = 8
)

// work waits for its input to end, so that all begin at once, and then backs up under leases for which it contends.
func work(ctx context.Context, dsn string) error {
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	st, err := sqlstore.New(ctx, db, sqlstore.Config{})
	if err != nil {
		return err
	}
	if err := st.Migrate(ctx); err != nil {
		return err
	}
	for n := 0; n < backupsEach; {
		l, err := st.AcquireLease(ctx, "vm", fmt.Sprint(os.Getpid()), time.Minute)
		if errors.Is(err, kvmbackup.ErrBusy) {
			continue
		}
		if err != nil {
			return err
		}
		if err := backUp(ctx, st, l); err != nil {
			return err
		}
		if err := st.ReleaseLease(ctx, l); err != nil {
			return err
		}
		n++
	}
	return nil
}

// backUp reads, begins on what it read and completes: an update that got lost on the way shows as a wrong parent or a
// second running record.
func backUp(ctx context.Context, st *sqlstore.Store, l kvmbackup.Lease) error {
	b := kvmbackup.Backup{ID: kvmbackup.NewBackupID(), VM: "vm", Kind: kvmbackup.KindFull, Status: kvmbackup.StatusRunning,
		ChainID: kvmbackup.NewChainID(), Path: fmt.Sprintf("vm/%d", l.Token),
		Checkpoint: kvmbackup.CheckpointName(fmt.Sprint("backup.", l.Token)), StartedAt: time.Unix(1, 0),
		Consistency: kvmbackup.ConsistencyCrash, Volumes: []kvmbackup.VolumeBackup{
			{VolumeID: "v", Kind: kvmbackup.KindFull, File: "v.qcow2"},
		}}
	if parent, err := st.Newest(ctx, "vm"); err == nil {
		b.Kind, b.ParentID, b.ChainID, b.Position = kvmbackup.KindIncremental, parent.ID, parent.ChainID, parent.Position+1
	} else if !errors.Is(err, kvmbackup.ErrNotFound) {
		return err
	}
	b, err := st.Begin(ctx, l, b)
	if err != nil {
		return err
	}
	b.Status = kvmbackup.StatusCompleted
	return st.Complete(ctx, l, b)
}

// TestProcesses lets several processes race for the leases and backups of one VM in one SQLite file, from the empty
// file on. With a busy_timeout SQLite queues them, without one the store does.
func TestProcesses(t *testing.T) {
	const documented = "?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(OFF)"
	for name, pragmas := range map[string]string{
		"documented":        documented,
		"no busy_timeout":   "?_pragma=journal_mode(WAL)&_pragma=busy_timeout(0)&_pragma=synchronous(OFF)",
		"rollback journal":  "?_pragma=busy_timeout(10000)&_pragma=synchronous(OFF)",
		"host's own txlock": documented + "&_txlock=immediate",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := "file:" + filepath.Join(t.TempDir(), "backups.db") + pragmas
			race(t, dsn)
			st := newStore(t, openDB(t, "sqlite", dsn), sqlstore.Config{})
			checkRace(t, st)
		})
	}
}

func race(t *testing.T, dsn string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var starts []io.Closer
	var workers []*exec.Cmd
	var outputs []*bufio.Reader
	for range racingProcesses {
		cmd := exec.CommandContext(t.Context(), exe)
		cmd.Env = append(os.Environ(), workerEnv+"="+dsn)
		in, errIn := cmd.StdinPipe()
		out, errOut := cmd.StdoutPipe()
		cmd.Stderr = cmd.Stdout
		if err := errors.Join(errIn, errOut, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		starts, workers, outputs = append(starts, in), append(workers, cmd), append(outputs, bufio.NewReader(out))
	}
	for _, s := range starts {
		_ = s.Close()
	}
	for i, cmd := range workers {
		out, _ := io.ReadAll(outputs[i])
		if err := cmd.Wait(); err != nil {
			t.Errorf("a process failed: %v\n%s", err, out)
		}
	}
}

// checkRace expects one unbroken chain, as if the processes had queued.
func checkRace(t *testing.T, st *sqlstore.Store) {
	t.Helper()
	list, err := st.List(t.Context(), kvmbackup.Query{VM: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != racingProcesses*backupsEach {
		t.Fatalf("%d backups are there, want %d", len(list), racingProcesses*backupsEach)
	}
	var before kvmbackup.Backup
	for i, b := range list {
		if b.Sequence != int64(i+1) || b.Position != i || b.ParentID != before.ID || b.Status != kvmbackup.StatusCompleted {
			t.Errorf("backup %d: sequence %d, position %d, parent %s, %v", i, b.Sequence, b.Position, b.ParentID, b.Status)
		}
		before = b
	}
	vm, err := st.VM(t.Context(), "vm")
	if err != nil || vm.ActiveCheckpoint != before.Checkpoint || !strings.HasSuffix(before.Path, vm.LastStamp) {
		t.Errorf("the VM's record is %+v, %v", vm, err)
	}
}
