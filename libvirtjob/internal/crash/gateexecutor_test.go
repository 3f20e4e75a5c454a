package crash_test

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

type gatedExecutor struct {
	in kvmbackup.Executor
	g  *gate
	// onAdopt, if not nil, is shown every job that was adopted.
	onAdopt func(kvmbackup.Job)
}

var _ kvmbackup.Executor = gatedExecutor{}

func (e gatedExecutor) Inspect(ctx context.Context, d kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	return through(e.g, "Executor.Inspect", func() (kvmbackup.DomainStatus, error) { return e.in.Inspect(ctx, d) })
}

func (e gatedExecutor) RegisterCheckpoint(ctx context.Context, d kvmbackup.DomainRef,
	cp kvmbackup.CheckpointSpec) error {
	return do(e.g, "Executor.RegisterCheckpoint", func() error { return e.in.RegisterCheckpoint(ctx, d, cp) })
}

func (e gatedExecutor) DropCheckpoint(ctx context.Context, d kvmbackup.DomainRef, name kvmbackup.CheckpointName) error {
	return do(e.g, "Executor.DropCheckpoint", func() error { return e.in.DropCheckpoint(ctx, d, name) })
}

func (e gatedExecutor) HeldBytes(ctx context.Context, d kvmbackup.DomainRef,
	devices []string) (map[string]int64, error) {
	return through(e.g, "Executor.HeldBytes", func() (map[string]int64, error) { return e.in.HeldBytes(ctx, d, devices) })
}

func (e gatedExecutor) DirtyBytes(ctx context.Context, d kvmbackup.DomainRef,
	name kvmbackup.CheckpointName) (map[string]int64, error) {
	return through(e.g, "Executor.DirtyBytes", func() (map[string]int64, error) { return e.in.DirtyBytes(ctx, d, name) })
}

func (e gatedExecutor) PrepareJob(ctx context.Context, d kvmbackup.DomainRef,
	spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	return e.job(through(e.g, "Executor.PrepareJob", func() (kvmbackup.Job, error) {
		return e.in.PrepareJob(ctx, d, spec)
	}))
}

func (e gatedExecutor) AdoptJob(ctx context.Context, d kvmbackup.DomainRef,
	spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	j, err := e.job(through(e.g, "Executor.AdoptJob", func() (kvmbackup.Job, error) {
		return e.in.AdoptJob(ctx, d, spec)
	}))
	if err == nil && e.onAdopt != nil {
		e.onAdopt(j)
	}
	return j, err
}

func (e gatedExecutor) job(j kvmbackup.Job, err error) (kvmbackup.Job, error) {
	switch {
	case err == nil:
		return gatedJob{j, e.g}, nil
	case j != nil:
		return nil, errors.Join(err, j.Close(context.Background()))
	}
	return nil, err
}

func (e gatedExecutor) Freeze(ctx context.Context, d kvmbackup.DomainRef) (int, error) {
	return through(e.g, "Executor.Freeze", func() (int, error) { return e.in.Freeze(ctx, d) })
}

func (e gatedExecutor) Thaw(ctx context.Context, d kvmbackup.DomainRef) error {
	return do(e.g, "Executor.Thaw", func() error { return e.in.Thaw(ctx, d) })
}

func (e gatedExecutor) Resume(ctx context.Context, d kvmbackup.DomainRef) error {
	return do(e.g, "Executor.Resume", func() error { return e.in.Resume(ctx, d) })
}

func (e gatedExecutor) Definition(ctx context.Context, d kvmbackup.DomainRef,
	opts kvmbackup.DefinitionOptions) (kvmbackup.Definition, error) {
	return through(e.g, "Executor.Definition", func() (kvmbackup.Definition, error) {
		return e.in.Definition(ctx, d, opts)
	})
}

type gatedJob struct {
	in kvmbackup.Job
	g  *gate
}

var _ kvmbackup.Job = gatedJob{}

func (j gatedJob) Begin(ctx context.Context) error {
	return do(j.g, "Job.Begin", func() error { return j.in.Begin(ctx) })
}

func (j gatedJob) Wait(ctx context.Context, progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	return through(j.g, "Job.Wait", func() (kvmbackup.JobResult, error) { return j.in.Wait(ctx, progress) })
}

func (j gatedJob) Abort(ctx context.Context) error {
	return do(j.g, "Job.Abort", func() error { return j.in.Abort(ctx) })
}

func (j gatedJob) SetBandwidth(ctx context.Context, n int64) error {
	return do(j.g, "Job.SetBandwidth", func() error { return j.in.SetBandwidth(ctx, n) })
}

func (j gatedJob) Close(ctx context.Context) error {
	return do(j.g, "Job.Close", func() error { return j.in.Close(ctx) })
}

type gatedImages struct {
	in *qcow2.Tool
	g  *gate
}

var (
	_ engine.Images   = gatedImages{}
	_ engine.Digester = gatedImages{}
	_ engine.Indexer  = gatedImages{}
)

func (i gatedImages) Header(ctx context.Context, path string, secret *qcow2.Secret) (qcow2.Header, error) {
	return through(i.g, "Images.Header", func() (qcow2.Header, error) { return i.in.Header(ctx, path, secret) })
}

func (i gatedImages) Check(ctx context.Context, path string, o qcow2.CheckOptions) (qcow2.CheckResult, error) {
	return through(i.g, "Images.Check", func() (qcow2.CheckResult, error) { return i.in.Check(ctx, path, o) })
}

func (i gatedImages) Create(ctx context.Context, path string, o qcow2.CreateOptions) error {
	return do(i.g, "Images.Create", func() error { return i.in.Create(ctx, path, o) })
}

func (i gatedImages) Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error {
	return do(i.g, "Images.Convert", func() error { return i.in.Convert(ctx, src, dst, o) })
}

func (i gatedImages) Map(ctx context.Context, path string, o qcow2.MapOptions) ([]qcow2.Extent, error) {
	return through(i.g, "Images.Map", func() ([]qcow2.Extent, error) { return i.in.Map(ctx, path, o) })
}

func (i gatedImages) ServeNBD(ctx context.Context, o qcow2.NBDOptions) (*qcow2.NBDServer, error) {
	return through(i.g, "Images.ServeNBD", func() (*qcow2.NBDServer, error) { return i.in.ServeNBD(ctx, o) })
}

func (i gatedImages) Digest(ctx context.Context, path string, backing []qcow2.Layer) (string, error) {
	return through(i.g, "Images.Digest", func() (string, error) { return i.in.Digest(ctx, path, backing) })
}

func (i gatedImages) FileDigest(ctx context.Context, path string) (string, error) {
	return through(i.g, "Images.FileDigest", func() (string, error) { return i.in.FileDigest(ctx, path) })
}

func (i gatedImages) DeviceDigest(ctx context.Context, path string, size int64) (string, error) {
	return through(i.g, "Images.DeviceDigest", func() (string, error) { return i.in.DeviceDigest(ctx, path, size) })
}

func (i gatedImages) DigestIndex(
	ctx context.Context, path string, backing []qcow2.Layer, below *qcow2.Index,
) (digest string, index *qcow2.Index, err error) {
	err = do(i.g, "Images.DigestIndex", func() (err error) {
		digest, index, err = i.in.DigestIndex(ctx, path, backing, below)
		return err
	})
	return digest, index, err
}

func (i gatedImages) OwnIndex(ctx context.Context, image qcow2.Layer, below *qcow2.Index) (*qcow2.Index, error) {
	return through(i.g, "Images.OwnIndex", func() (*qcow2.Index, error) { return i.in.OwnIndex(ctx, image, below) })
}
