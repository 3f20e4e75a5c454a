package restoretest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// childEnv names the file that tells a re-executed test binary what to do, instead of running tests.
const childEnv = "KVMBACKUP_RESTORETEST_CHILD"

func TestMain(m *testing.M) {
	if file := os.Getenv(childEnv); file != "" {
		os.Exit(child(file))
	}
	lab.Attacker()
	os.Exit(m.Run())
}

// childJob is what a child does: a restore in place, or a recovery where no backup is named.
type childJob struct {
	NAS     string
	Backup  kvmbackup.BackupID
	Disks   []kvmbackup.DiskRef
	Volumes []engine.Volume
	// Op is another operation on the backup, in whose Dir it may leave something.
	Op, Dir string
	// KillAtCopy is the copy at whose end the child kills itself, with nothing renamed yet. 0: none.
	KillAtCopy int32
	// Host is what it does that is a whole host. nil: it knows nothing but the repository.
	Host *hostJob
}

// Exit codes of a child.
const (
	childDone = iota
	childFailed
	childBroken
)

func child(file string) int {
	data, err := os.ReadFile(file)
	if err != nil {
		return childBroken
	}
	var j childJob
	if err := json.Unmarshal(data, &j); err != nil {
		return childBroken
	}
	if err := j.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return childFailed
	}
	return childDone
}

func (j childJob) run(ctx context.Context) error {
	if j.Host != nil {
		return j.host(ctx)
	}
	e, err := j.engine(ctx)
	if err != nil {
		return err
	}
	return j.do(ctx, e)
}

// engine is a host process that knows nothing but the repository and the disks of a VM that is off.
func (j childJob) engine(ctx context.Context) (*engine.Engine, error) {
	repo, err := repository.Open(ctx, j.NAS, repository.Options{NoSync: true})
	if err != nil {
		return nil, err
	}
	host := &offHost{disks: j.Disks, wanted: int32(len(j.Volumes)), killAt: j.KillAtCopy}
	e, err := engine.New(engine.Config{Store: memstore.New(), Repository: repo, Images: host, Executor: host})
	if err != nil {
		return nil, err
	}
	if j.Op != "import" {
		_, err = e.Import(ctx, vm)
	}
	return e, err
}

func (j childJob) do(ctx context.Context, e *engine.Engine) error {
	if j.Op != "" {
		lab.Mark()
		return j.operate(ctx, e)
	}
	if j.Backup == "" {
		lab.Mark()
		_, err := e.Recover(ctx, engine.Target{VM: vm, Domain: vm, Disks: j.Disks})
		return err
	}
	_, err := e.Restore(ctx, engine.RestoreRequest{
		Backup: j.Backup, InPlace: &engine.InPlace{Disks: j.Disks, Volumes: j.Volumes},
	})
	return err
}

// operate is marked from its beginning on.
func (j childJob) operate(ctx context.Context, e *engine.Engine) (err error) {
	inPlace := &engine.InPlace{Disks: j.Disks, Volumes: j.Volumes}
	switch j.Op {
	case "restore":
		_, err = e.Restore(ctx, engine.RestoreRequest{Backup: j.Backup, Dir: j.Dir})
	case "in place":
		_, err = e.Restore(ctx, engine.RestoreRequest{Backup: j.Backup, InPlace: inPlace})
	case "verify":
		_, err = e.Verify(ctx, j.Backup, engine.VerifyOptions{Content: true})
	case "open":
		var o *engine.Opened
		if o, err = e.Open(ctx, engine.OpenRequest{Backup: j.Backup, Dir: j.Dir}); err == nil {
			err = o.Close(ctx)
		}
	case "browse":
		var b *engine.Browsed
		if b, err = e.Browse(ctx, j.Backup, j.Volumes[0].ID, filepath.Join(j.Dir, "socket")); err == nil {
			err = b.Close(ctx)
		}
	case "export":
		_, err = e.Export(ctx, vm)
	case "import":
		_, err = e.Import(ctx, vm)
	case "delete":
		_, err = e.Delete(ctx, j.Backup, kvmbackup.DeleteOptions{})
	default:
		err = fmt.Errorf("unknown operation %q", j.Op)
	}
	return err
}

// offHost is a hypervisor on which one VM is off. It marks the instant after the last copy for the process that traces
// it.
type offHost struct {
	kvmbackuptest.Images
	kvmbackup.Executor
	disks  []kvmbackup.DiskRef
	wanted int32
	killAt int32
	copied atomic.Int32
}

func (h *offHost) Inspect(context.Context, kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	st := kvmbackup.DomainStatus{Name: vm, State: kvmbackup.DomainStopped}
	for _, d := range h.disks {
		s := kvmbackup.DiskStatus{Device: d.Device, Source: d.Source, Path: d.Source, Format: d.Format}
		if _, err := os.Stat(d.Source); errors.Is(err, os.ErrNotExist) {
			s.Unreadable = "missing"
		}
		st.Disks = append(st.Disks, s)
	}
	return st, nil
}

func (h *offHost) DropCheckpoint(context.Context, kvmbackup.DomainRef, kvmbackup.CheckpointName) error {
	return nil
}

func (h *offHost) Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error {
	err := h.Images.Convert(ctx, src, dst, o)
	n := h.copied.Add(1)
	if n == h.killAt {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	if n == h.wanted {
		lab.Mark()
	}
	return err
}
