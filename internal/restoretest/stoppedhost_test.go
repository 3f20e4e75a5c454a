package restoretest_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	_ "modernc.org/sqlite"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/offline"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// hostJob is what a child does that is a whole host: one VM, which is off, a store in a file and the real tools. It
// does the operation, and takes the next backup when its mark has gone.
type hostJob struct {
	Op    string
	Image string // of the VM's one disk
	DB    string
	Out   string // for what is restored, and the outcome
	Alone bool   // nothing comes after it
	// MarkAt is the engine's step at which the operation is marked. Empty: its beginning.
	MarkAt string
	// KillAt is the step, the engine's or the beginning of the repository's, at which the child kills itself. Then
	// nothing comes after it.
	KillAt string
}

// outcome is what a hostJob says.
type outcome struct {
	Err      string
	Code     string // of the error, as kvmbackup.Code has it
	Typed    bool   // the error is an OpError
	Restored string // the image that came of the operation's backup
	Damage   string // why it has none
	NextErr  string
	Next     string // the image that came of the backup after it
}

func (j childJob) host(ctx context.Context) error {
	tool, err := qcow2.New(qcow2.Config{})
	if err != nil {
		return err
	}
	repo, err := repository.Open(ctx, j.NAS, repository.Options{BeforeStep: j.Host.step})
	if err != nil {
		return err
	}
	store, err := openSQLite(ctx, j.Host.DB)
	if err != nil {
		return err
	}
	e, err := engine.New(engine.Config{
		Store: store, Repository: repo, Images: tool, Prefix: "kvmbackup", ReserveBytes: engine.NoReserve,
		Executor: newStoppedHost(tool, j.Host.Image), CleanupLimit: 5 * time.Second,
		OnEvent: func(ev engine.Event) {
			if ev.Type == engine.EventStep {
				_ = j.Host.step(ev.Step)
			}
		},
	})
	if err != nil {
		return err
	}
	return j.Host.run(ctx, e)
}

func openSQLite(ctx context.Context, file string) (*sqlstore.Store, error) {
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(10000)&_pragma=synchronous(OFF)")
	if err != nil {
		return nil, err
	}
	return sqlstore.New(ctx, db, sqlstore.Config{})
}

// step is asked before each.
func (j hostJob) step(name string) error {
	if j.KillAt != "" && strings.HasPrefix(name, j.KillAt) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	if j.MarkAt == name {
		lab.Mark()
	}
	return nil
}

func (j hostJob) run(ctx context.Context, e *engine.Engine) error {
	if j.MarkAt == "" {
		lab.Mark()
	}
	b, err := j.operate(ctx, e)
	lab.Unmark()
	if j.Alone {
		return err
	}
	var typed *kvmbackup.OpError
	o := outcome{Code: kvmbackup.Code(err), Typed: errors.As(err, &typed)}
	if err != nil {
		o.Err = err.Error()
	} else if b.ID != "" {
		if o.Restored, err = j.restore(ctx, e, b.ID); err != nil {
			o.Damage = err.Error()
		}
	}
	if o.Next, err = j.next(ctx, e); err != nil {
		o.NextErr = err.Error()
	}
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(j.Out, "outcome.json"), data, 0o600)
}

// next takes the next backup and restores it; where what it stands on was damaged, a full.
func (j hostJob) next(ctx context.Context, e *engine.Engine) (path string, err error) {
	req := j.request()
	for {
		b, err := e.Backup(ctx, req)
		if err != nil {
			return "", fmt.Errorf("the next backup: %w", err)
		}
		path, err := j.restore(ctx, e, b.ID)
		if err == nil || req.Policy.ForceFull || !errors.Is(err, kvmbackup.ErrDamaged) {
			return path, err
		}
		req.Policy.ForceFull = true
	}
}

func (j hostJob) restore(ctx context.Context, e *engine.Engine, id kvmbackup.BackupID) (path string, err error) {
	dir, err := os.MkdirTemp(j.Out, "restored-")
	if err != nil {
		return "", err
	}
	r, err := e.Restore(ctx, engine.RestoreRequest{Backup: id, Dir: dir})
	if err != nil {
		return "", err
	}
	return r.Volumes[0].Path, nil
}

// request is of an incremental, if it can be one.
func (j hostJob) request() engine.BackupRequest {
	return engine.BackupRequest{
		VM: vm, Volumes: []engine.Volume{volume("vda")}, Digests: true,
		Policy: kvmbackup.Policy{OfflineIncremental: true, FullEvery: 100},
	}
}

// operate returns the backup that was taken, if one was.
func (j hostJob) operate(ctx context.Context, e *engine.Engine) (b kvmbackup.Backup, err error) {
	req := j.request()
	switch j.Op {
	case "full":
		req.Policy.ForceFull = true
		return e.Backup(ctx, req)
	case "incremental":
		return e.Backup(ctx, req)
	case "compared":
		req.Policy.Compare, req.Policy.ForceCompare = true, true
		return e.Backup(ctx, req)
	case "recover":
		_, err = e.Recover(ctx, engine.Target{VM: vm})
		return b, err
	case "delete newest":
		all, err := e.List(ctx, kvmbackup.Query{VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted}})
		if err == nil {
			_, err = e.Delete(ctx, all[len(all)-1].ID, kvmbackup.DeleteOptions{})
		}
		return b, err
	}
	return b, fmt.Errorf("unknown operation %q", j.Op)
}

// stoppedHost is a hypervisor on which one VM with one disk is off.
type stoppedHost struct {
	kvmbackup.Executor
	images *offline.Images
	disks  []offline.Disk
}

func newStoppedHost(tool *qcow2.Tool, image string) *stoppedHost {
	return &stoppedHost{
		images: offline.New(tool, offline.Config{}), disks: []offline.Disk{{Device: "vda", Path: image, Format: "qcow2"}},
	}
}

func (h *stoppedHost) Inspect(ctx context.Context, _ kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	disks, err := h.images.Inspect(ctx, h.disks)
	return kvmbackup.DomainStatus{
		Name: vm, State: kvmbackup.DomainStopped, Job: kvmbackup.JobNone, CanCompare: true, Disks: disks,
	}, err
}

func (h *stoppedHost) RegisterCheckpoint(context.Context, kvmbackup.DomainRef, kvmbackup.CheckpointSpec) error {
	return nil
}

func (h *stoppedHost) DropCheckpoint(
	ctx context.Context, _ kvmbackup.DomainRef, name kvmbackup.CheckpointName,
) error {
	return h.images.DropBitmap(ctx, h.disks, name)
}

func (h *stoppedHost) DirtyBytes(
	ctx context.Context, _ kvmbackup.DomainRef, name kvmbackup.CheckpointName,
) (map[string]int64, error) {
	return h.images.DirtyBytes(ctx, h.disks, name)
}

func (h *stoppedHost) HeldBytes(
	ctx context.Context, _ kvmbackup.DomainRef, devices []string,
) (map[string]int64, error) {
	return h.images.HeldBytes(ctx, h.disks, devices)
}

func (h *stoppedHost) PrepareJob(
	ctx context.Context, _ kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	return h.images.PrepareJob(ctx, vm, h.disks, spec)
}

func (h *stoppedHost) AdoptJob(context.Context, kvmbackup.DomainRef, kvmbackup.JobSpec) (kvmbackup.Job, error) {
	return nil, kvmbackup.ErrNoJob
}

func (h *stoppedHost) Thaw(context.Context, kvmbackup.DomainRef) error   { return nil }
func (h *stoppedHost) Resume(context.Context, kvmbackup.DomainRef) error { return nil }

func (h *stoppedHost) Definition(
	context.Context, kvmbackup.DomainRef, kvmbackup.DefinitionOptions,
) (kvmbackup.Definition, error) {
	return kvmbackup.Definition{XML: []byte("<domain type='kvm'><name>" + vm + "</name></domain>\n")}, nil
}
