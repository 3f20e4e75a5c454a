package crash_test

import (
	"context"
	"errors"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/repository"
)

// gatedRepository passes the calls on the folder; their steps pass by themselves, through repository.Options.BeforeStep.
type gatedRepository struct {
	in *repository.Repository
	g  *gate
}

var _ engine.Repository = gatedRepository{}

// ID, PartialDir and FilePath touch nothing.
func (r gatedRepository) ID() string { return r.in.ID() }
func (r gatedRepository) PartialDir(path string, id kvmbackup.BackupID) string {
	return r.in.PartialDir(path, id)
}
func (r gatedRepository) FilePath(path, file string) string { return r.in.FilePath(path, file) }

// Probe makes room for the zeroes of big disks, which an estimate counts and a backup doesn't store.
func (r gatedRepository) Probe(ctx context.Context) (repository.Space, error) {
	space, err := through(r.g, "Repository.Probe", func() (repository.Space, error) { return r.in.Probe(ctx) })
	space.FreeBytes += 4 * big
	return space, err
}

func (r gatedRepository) CreatePartial(ctx context.Context, path string, id kvmbackup.BackupID) (string, error) {
	return through(r.g, "Repository.CreatePartial", func() (string, error) { return r.in.CreatePartial(ctx, path, id) })
}

func (r gatedRepository) WriteFile(ctx context.Context, path string, id kvmbackup.BackupID, name string, data []byte) (repository.FileEntry, error) {
	return through(r.g, "Repository.WriteFile", func() (repository.FileEntry, error) { return r.in.WriteFile(ctx, path, id, name, data) })
}

func (r gatedRepository) OpenTargets(ctx context.Context, path string, id kvmbackup.BackupID, files []string) (func(), error) {
	return through(r.g, "Repository.OpenTargets", func() (func(), error) { return r.in.OpenTargets(ctx, path, id, files) })
}

func (r gatedRepository) Publish(ctx context.Context, m repository.Manifest) error {
	return do(r.g, "Repository.Publish", func() error { return r.in.Publish(ctx, m) })
}

func (r gatedRepository) Published(ctx context.Context, path string, id kvmbackup.BackupID) (m repository.Manifest, ok bool, err error) {
	m, err = through(r.g, "Repository.Published", func() (m repository.Manifest, err error) { m, ok, err = r.in.Published(ctx, path, id); return m, err })
	return m, ok && err == nil, err
}

func (r gatedRepository) PartialManifest(ctx context.Context, path string, id kvmbackup.BackupID) (repository.Manifest, error) {
	return through(r.g, "Repository.PartialManifest", func() (repository.Manifest, error) { return r.in.PartialManifest(ctx, path, id) })
}

func (r gatedRepository) Settle(ctx context.Context, vm kvmbackup.VMID) error {
	return do(r.g, "Repository.Settle", func() error { return r.in.Settle(ctx, vm) })
}

func (r gatedRepository) RemovePartial(ctx context.Context, b kvmbackup.Backup) error {
	return do(r.g, "Repository.RemovePartial", func() error { return r.in.RemovePartial(ctx, b) })
}

func (r gatedRepository) Remove(ctx context.Context, b kvmbackup.Backup) (kvmbackup.Removed, error) {
	return through(r.g, "Repository.Remove", func() (kvmbackup.Removed, error) { return r.in.Remove(ctx, b) })
}

func (r gatedRepository) ReadManifest(ctx context.Context, path string) (repository.Manifest, error) {
	return through(r.g, "Repository.ReadManifest", func() (repository.Manifest, error) { return r.in.ReadManifest(ctx, path) })
}

func (r gatedRepository) RewriteManifest(ctx context.Context, m repository.Manifest) error {
	return do(r.g, "Repository.RewriteManifest", func() error { return r.in.RewriteManifest(ctx, m) })
}

func (r gatedRepository) ReadSideFile(ctx context.Context, path, name string, maxBytes int64) ([]byte, error) {
	return through(r.g, "Repository.ReadSideFile", func() ([]byte, error) { return r.in.ReadSideFile(ctx, path, name, maxBytes) })
}

func (r gatedRepository) Stat(ctx context.Context, path, file string) (repository.FileInfo, error) {
	return through(r.g, "Repository.Stat", func() (repository.FileInfo, error) { return r.in.Stat(ctx, path, file) })
}

func (r gatedRepository) Files(ctx context.Context, path string) ([]repository.FileInfo, error) {
	return through(r.g, "Repository.Files", func() ([]repository.FileInfo, error) { return r.in.Files(ctx, path) })
}

func (r gatedRepository) List(ctx context.Context, vm kvmbackup.VMID) ([]repository.Entry, error) {
	return through(r.g, "Repository.List", func() ([]repository.Entry, error) { return r.in.List(ctx, vm) })
}

// errClosed joins the failure to close a handle that an injected error has made useless.
func errClosed(err error, c interface{ Close() error }) error { return errors.Join(err, c.Close()) }
