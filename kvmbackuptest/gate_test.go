package kvmbackuptest_test

import (
	"context"
	"errors"
	"sync"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

var (
	errInjected = errors.New("injected fault")
	errKilled   = errors.New("injected: the process was killed")
)

// mode says what happens at the call that a plan names.
type mode int

const (
	failBefore mode = iota // the call fails without an effect
	failAfter              // it has its effect and fails
	killBefore             // the process dies, without an effect
	killAfter              // it has its effect, and the process dies
)

func (m mode) String() string {
	return [...]string{"fail before", "fail after", "kill before", "kill after"}[m]
}

func (m mode) kills() bool { return m >= killBefore }

// plan interferes with the n-th call, counted from 1, or with the first one of a name; the zero plan with none.
type plan struct {
	n    int
	op   string
	mode mode
	// always interferes with every call of the name.
	always bool
}

// gate is what all calls of one process to what its engine stands on pass.
type gate struct {
	mu    sync.Mutex
	plan  plan
	calls int
	hit   string // the call that was interfered with
	dead  bool
	kill  func()
}

// enter says whether the call may have its effect, and what it returns afterwards.
func (g *gate) enter(op string) (before, after error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return errKilled, errKilled
	}
	g.calls++
	if g.calls != g.plan.n && (g.plan.op != op || g.hit != "" && !g.plan.always) {
		return nil, nil
	}
	g.hit = op
	switch g.plan.mode {
	case failBefore:
		return errInjected, nil
	case failAfter:
		return nil, errInjected
	case killBefore:
		return errKilled, errKilled
	}
	return nil, errKilled
}

// disarm lets all further calls through, unless the process is dead, and returns the call that was hit.
func (g *gate) disarm() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.plan = plan{}
	return g.hit
}

func (g *gate) die() {
	g.mu.Lock()
	was := g.dead
	g.dead = true
	g.mu.Unlock()
	if !was {
		g.kill()
	}
}

func (g *gate) isDead() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dead
}

// through passes one call.
func through[T any](g *gate, op string, f func() (T, error)) (T, error) {
	var zero T
	before, after := g.enter(op)
	if before != nil {
		if errors.Is(before, errKilled) {
			g.die()
		}
		return zero, before
	}
	v, err := f()
	if errors.Is(after, errKilled) {
		g.die()
	}
	if after != nil {
		return zero, errors.Join(after, err)
	}
	if g.isDead() {
		return zero, errKilled
	}
	return v, err
}

func pass(g *gate, op string, f func() error) error {
	_, err := through(g, op, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// storeCalls are the calls of the store that pass the gate, as plans name them.
var storeCalls = map[string]string{
	"AcquireLease": "AcquireLease", "RenewLease": "RenewLease", "ReleaseLease": "ReleaseLease", "VM": "VM",
	"Backup": "Backup", "Newest": "Newest", "Children": "Children", "List": "List", "Begin": "store Begin",
	"Complete": "Complete", "Fail": "Fail", "MarkDeletePending": "MarkDeletePending", "Remove": "store Remove",
	"SetActive": "SetActive", "Annotate": "Annotate",
}

func (g *gate) store(in kvmbackup.Store) kvmbackup.Store {
	return lab.GatedStore{In: in, Around: func(method string, call func() error) error {
		if name, ok := storeCalls[method]; ok {
			return pass(g, name, call)
		}
		return call()
	}}
}

// repositoryCalls are the calls on the folder that pass the gate, by what the repository calls them, as plans name
// them.
var repositoryCalls = map[string]string{
	"probe": "Probe", "create partial": "CreatePartial", "write file": "WriteFile", "publish": "Publish",
	"open targets": "OpenTargets", "published": "Published", "read partial manifest": "PartialManifest",
	"remove partial": "RemovePartial", "remove": "repository Remove", "read manifest": "ReadManifest",
	"rewrite manifest": "RewriteManifest", "stat": "Stat",
}

// aroundCall passes the calls on the folder.
func (g *gate) aroundCall(_ context.Context, op string, call func() error) error {
	if name, ok := repositoryCalls[op]; ok {
		return pass(g, name, call)
	}
	return call()
}

type gatedImages struct {
	kvmbackuptest.Images
	g *gate
}

func (i gatedImages) Header(ctx context.Context, path string, secret *qcow2.Secret) (qcow2.Header, error) {
	return through(i.g, "Header", func() (qcow2.Header, error) { return i.Images.Header(ctx, path, secret) })
}

func (i gatedImages) Check(ctx context.Context, path string, o qcow2.CheckOptions) (qcow2.CheckResult, error) {
	return through(i.g, "Check", func() (qcow2.CheckResult, error) { return i.Images.Check(ctx, path, o) })
}

func (i gatedImages) Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error {
	return pass(i.g, "Convert", func() error { return i.Images.Convert(ctx, src, dst, o) })
}

func (i gatedImages) Digest(ctx context.Context, path string, backing []qcow2.Layer) (string, error) {
	return through(i.g, "Digest", func() (string, error) { return i.Images.Digest(ctx, path, backing) })
}

func (i gatedImages) FileDigest(ctx context.Context, path string) (string, error) {
	return through(i.g, "FileDigest", func() (string, error) { return i.Images.FileDigest(ctx, path) })
}

func (i gatedImages) DigestIndex(
	ctx context.Context, path string, backing []qcow2.Layer, below *qcow2.Index,
) (digest string, index *qcow2.Index, err error) {
	err = pass(i.g, "DigestIndex", func() (err error) {
		digest, index, err = i.Images.DigestIndex(ctx, path, backing, below)
		return err
	})
	return digest, index, err
}

func (i gatedImages) OwnIndex(ctx context.Context, image qcow2.Layer, below *qcow2.Index) (*qcow2.Index, error) {
	return through(i.g, "OwnIndex", func() (*qcow2.Index, error) { return i.Images.OwnIndex(ctx, image, below) })
}

type gatedExecutor struct {
	kvmbackup.Executor
	g *gate
	l *world
}

func (e gatedExecutor) Inspect(ctx context.Context, d kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	return through(e.g, "Inspect", func() (kvmbackup.DomainStatus, error) { return e.Executor.Inspect(ctx, d) })
}

func (e gatedExecutor) RegisterCheckpoint(ctx context.Context, d kvmbackup.DomainRef,
	cp kvmbackup.CheckpointSpec) error {
	return pass(e.g, "RegisterCheckpoint", func() error { return e.Executor.RegisterCheckpoint(ctx, d, cp) })
}

func (e gatedExecutor) DropCheckpoint(ctx context.Context, d kvmbackup.DomainRef, name kvmbackup.CheckpointName) error {
	if !name.HasPrefix(e.l.prefix()) {
		e.l.stray = append(e.l.stray, "DropCheckpoint "+string(name))
	}
	return pass(e.g, "DropCheckpoint", func() error { return e.Executor.DropCheckpoint(ctx, d, name) })
}

func (e gatedExecutor) HeldBytes(ctx context.Context, d kvmbackup.DomainRef,
	devices []string) (map[string]int64, error) {
	return through(e.g, "HeldBytes", func() (map[string]int64, error) { return e.Executor.HeldBytes(ctx, d, devices) })
}

func (e gatedExecutor) DirtyBytes(ctx context.Context, d kvmbackup.DomainRef,
	name kvmbackup.CheckpointName) (map[string]int64, error) {
	return through(e.g, "DirtyBytes", func() (map[string]int64, error) { return e.Executor.DirtyBytes(ctx, d, name) })
}

func (e gatedExecutor) PrepareJob(ctx context.Context, d kvmbackup.DomainRef,
	spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	return through(e.g, "PrepareJob", func() (kvmbackup.Job, error) {
		return e.job(spec)(e.Executor.PrepareJob(ctx, d, spec))
	})
}

func (e gatedExecutor) AdoptJob(ctx context.Context, d kvmbackup.DomainRef,
	spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	return through(e.g, "AdoptJob", func() (kvmbackup.Job, error) {
		return e.job(spec)(e.Executor.AdoptJob(ctx, d, spec))
	})
}

func (e gatedExecutor) job(spec kvmbackup.JobSpec) func(kvmbackup.Job, error) (kvmbackup.Job, error) {
	return func(j kvmbackup.Job, err error) (kvmbackup.Job, error) {
		if err != nil {
			return nil, err
		}
		return gatedJob{j, e.g, e.l, spec}, nil
	}
}

func (e gatedExecutor) Freeze(ctx context.Context, d kvmbackup.DomainRef) (int, error) {
	return through(e.g, "Freeze", func() (int, error) { return e.Executor.Freeze(ctx, d) })
}

func (e gatedExecutor) Thaw(ctx context.Context, d kvmbackup.DomainRef) error {
	return pass(e.g, "Thaw", func() error { return e.Executor.Thaw(ctx, d) })
}

func (e gatedExecutor) Resume(ctx context.Context, d kvmbackup.DomainRef) error {
	return pass(e.g, "Resume", func() error { return e.Executor.Resume(ctx, d) })
}

func (e gatedExecutor) Definition(ctx context.Context, d kvmbackup.DomainRef,
	opts kvmbackup.DefinitionOptions) (kvmbackup.Definition, error) {
	return through(e.g, "Definition", func() (kvmbackup.Definition, error) { return e.Executor.Definition(ctx, d, opts) })
}

type gatedJob struct {
	kvmbackup.Job
	g    *gate
	l    *world
	spec kvmbackup.JobSpec
}

func (j gatedJob) Begin(ctx context.Context) error {
	return pass(j.g, "Begin", func() error {
		err := j.Job.Begin(ctx)
		if err == nil {
			j.l.begun(j.spec)
		}
		return err
	})
}

func (j gatedJob) Wait(ctx context.Context, progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	return through(j.g, "Wait", func() (kvmbackup.JobResult, error) { return j.Job.Wait(ctx, progress) })
}

func (j gatedJob) Abort(ctx context.Context) error {
	return pass(j.g, "Abort", func() error { return j.Job.Abort(ctx) })
}

func (j gatedJob) Close(ctx context.Context) error {
	return pass(j.g, "Close", func() error { return j.Job.Close(ctx) })
}
