package engine

import (
	"context"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Repository is the folder that holds the backups, as the engine needs it; *repository.Repository implements it.
//
// The contract: all methods may be called concurrently. What is written is durable when the call returns nil.
// Every method is idempotent, so that what a crash interrupted may be called again. No name leaves the root, and
// nothing is removed that doesn't belong to the backup named. A call on a mount that doesn't
// answer returns when its context ends, at the latest after the repository's own time limit.
type Repository interface {
	kvmbackup.Files
	// Probe proves that the repository is there and can be written, and returns its space.
	Probe(ctx context.Context) (repository.Space, error)
	// CreatePartial creates the folder in which the backup of that path (VM/STAMP) and ID is written and returns it.
	CreatePartial(ctx context.Context, path string, id kvmbackup.BackupID) (string, error)
	// PartialDir returns that folder's absolute name without looking whether it is there.
	PartialDir(path string, id kvmbackup.BackupID) string
	// OpenTargets opens the job's targets before it begins, so that Publish hears of every write that the storage has lost,
	// whoever was the first to flush. release closes what neither Publish nor RemovePartial have closed.
	OpenTargets(ctx context.Context, path string, id kvmbackup.BackupID, files []string) (release func(), err error)
	// WriteFile adds a small side file to the partial folder.
	WriteFile(ctx context.Context, path string, id kvmbackup.BackupID, name string, data []byte) (repository.FileEntry, error)
	// Publish makes the partial folder the final one, manifest last.
	Publish(ctx context.Context, m repository.Manifest) error
	// Published returns the manifest if the final folder is there and belongs to the ID.
	Published(ctx context.Context, path string, id kvmbackup.BackupID) (repository.Manifest, bool, error)
	// PartialManifest returns the manifest in the partial folder, if one was written: then every file is whole and flushed,
	// and Publish again finishes what a crash had interrupted. repository.ErrNotFound if not.
	PartialManifest(ctx context.Context, path string, id kvmbackup.BackupID) (repository.Manifest, error)
	// Settle waits for what an ended context had left behind of that VM, or of any with an empty name, so that cleaning up can begin.
	Settle(ctx context.Context, vm kvmbackup.VMID) error
	// ReadManifest and RewriteManifest read and atomically replace a published folder's manifest.
	ReadManifest(ctx context.Context, path string) (repository.Manifest, error)
	RewriteManifest(ctx context.Context, m repository.Manifest) error
	// ReadSideFile returns a small side file of a published folder.
	ReadSideFile(ctx context.Context, path, name string, maxBytes int64) ([]byte, error)
	// FilePath returns the absolute path of a file in a published folder, Stat what it is; links are refused.
	FilePath(path, file string) string
	Stat(ctx context.Context, path, file string) (repository.FileInfo, error)
	// Files lists what is in one folder, List every folder of one VM, or of all with an empty name.
	Files(ctx context.Context, path string) ([]repository.FileInfo, error)
	List(ctx context.Context, vm kvmbackup.VMID) ([]repository.Entry, error)
}

// VMChecker is what a Repository may be, too: it refuses a VM that can have no folder of its own before anything is written. Without
// it CreatePartial does.
type VMChecker interface {
	// CheckVM returns kvmbackup.ErrInvalid where another VM's folder has the VM's name, as upper and lower case are the same there.
	CheckVM(ctx context.Context, vm kvmbackup.VMID) error
}

// checkVM asks the repository, where it can say.
func (e *Engine) checkVM(ctx context.Context, vm kvmbackup.VMID) error {
	if c, ok := e.cfg.Repository.(VMChecker); ok {
		return c.CheckVM(ctx, vm)
	}
	return nil
}

// Images reads and writes disk images outside of a job; *qcow2.Tool implements it with the real qemu-img.
// All methods may be called concurrently; a context that ends kills what they run.
type Images interface {
	// Header reads what a qcow2 file says of itself: sizes and links. No tool is run and no other file is opened.
	Header(ctx context.Context, path string) (qcow2.Header, error)
	// Check reads a file's tables. A restore estimates the room that it needs by the clusters that it counts.
	Check(ctx context.Context, path string, o qcow2.CheckOptions) (qcow2.CheckResult, error)
	Create(ctx context.Context, path string, o qcow2.CreateOptions) error
	Convert(ctx context.Context, src, dst string, o qcow2.ConvertOptions) error
	Map(ctx context.Context, path string, o qcow2.MapOptions) ([]qcow2.Extent, error)
	ServeNBD(ctx context.Context, o qcow2.NBDOptions) (*qcow2.NBDServer, error)
}

// Digester is what Images must be, too, for digests: those asked for in a backup, and for verifying content.
type Digester interface {
	// Digest returns ALGORITHM:HEX over the bytes that a guest sees, through exactly the layers given.
	Digest(ctx context.Context, path string, backing []qcow2.Layer) (string, error)
	// FileDigest does so over a file's own bytes.
	FileDigest(ctx context.Context, path string) (string, error)
	// DeviceDigest does so over the first bytes of a block device.
	DeviceDigest(ctx context.Context, path string, sizeBytes int64) (string, error)
}

// digester returns ErrUnsupported when the engine's Images can't compute digests.
func (e *Engine) digester() (Digester, error) {
	d, ok := e.cfg.Images.(Digester)
	if !ok {
		return nil, fmt.Errorf("%w: %T computes no digests", kvmbackup.ErrUnsupported, e.cfg.Images)
	}
	return d, nil
}

var (
	_ Repository = (*repository.Repository)(nil)
	_ VMChecker  = (*repository.Repository)(nil)
	_ Images     = (*qcow2.Tool)(nil)
)
