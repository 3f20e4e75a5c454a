package repository

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// Options configures a Repository. The zero value is good.
type Options struct {
	// Logger gets Debug for each step and Warn for what was survived. Defaults to discarding.
	Logger *slog.Logger

	// Timeout limits each step on the storage (one system call, or a few that belong together), not the whole call. When
	// it passes, the call returns ErrHung and the step is left behind. Defaults to 60 s.
	Timeout time.Duration

	// DataTimeout is Timeout for the steps that take the longer the larger a volume's file is: flushing it, when the
	// kernel may have gigabytes to write, and removing it. Defaults to 30 min; never less than Timeout.
	DataTimeout time.Duration

	// NoSync leaves out all flushing: a power loss may then lose backups that were reported as published. For tests.
	NoSync bool

	// BeforeStep is for tests of crash safety. It is called before every step that changes the storage, with the step's
	// verb and the path below the root ("." is the root itself): "mkdir"; "create", "write", "sync" and "place" of a file
	// that is written under a temporary name, with its final one; "link" (the marker); "sync" (also of volumes); "rename"
	// (of folders: the old path); "syncdir"; "remove" and "rmdir". The calls of one operation come one after the other;
	// operations that run at the same time call it at the same time. An error ends the operation as a failure of that
	// step would, and comes out wrapped; the step isn't done. A clean-up after the failure asks again. While it blocks,
	// the step hangs, and it isn't done if the caller has left meanwhile.
	BeforeStep func(step string) error

	// BeforeRead is BeforeStep for the steps that change nothing: "open", "read NAME", "stat NAME", "list NAME",
	// "statfs", and "close NAME" of what OpenTargets has opened in a folder.
	BeforeRead func(step string) error

	// AroundCall is for tests of what becomes of a caller whose calls fail, or take long. It carries out each call that
	// touches the storage by calling call, or doesn't, and says what its error is. op names the call, as an Error does:
	// "probe", "create partial", "publish", "remove" and so on. Calls at the same time are at the same time here.
	AroundCall func(ctx context.Context, op string, call func() error) error

	// Space is for tests of what is done with too little room, or with plenty: it changes what the storage says.
	Space func(Space) Space
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Timeout <= 0 {
		o.Timeout = 60 * time.Second
	}
	if o.DataTimeout <= 0 {
		o.DataTimeout = 30 * time.Minute
	}
	o.DataTimeout = max(o.DataTimeout, o.Timeout)
	return o
}

// Repository is a folder with backups. It is safe for concurrent use, also by several processes as long as each VM is
// worked on by one at a time, for which the store's lease is there. It holds nothing open between calls but what
// OpenTargets and Keep say, so that the share can be unmounted, and needs no closing.
type Repository struct {
	root string
	id   string // empty while being opened
	opts Options

	mu      sync.Mutex
	bad     map[string]bool        // folders with a file whose flush failed
	targets map[string]*targets    // open files of partial folders
	exact   map[string]fs.FileInfo // VMs' folders whose names were compared letter by letter; see ownsFolder
}

// Init makes the folder dir a repository and opens it; one that is a repository already is just opened. The folder
// must exist: make it on the mounted share. Its other content is left alone. Errors: ErrNotRepository (no such
// folder), ErrVersion, ErrReadOnly, ErrNoSpace, ErrUnavailable.
func Init(ctx context.Context, dir string, o Options) (*Repository, error) {
	r, err := newRepository(dir, o)
	if err != nil {
		return nil, err
	}
	return r.open(ctx, "init", (*session).makeMarker)
}

// Open opens the repository in dir. A folder without the marker is refused with ErrNotRepository, because the empty
// mount point of a share that isn't mounted is a folder like any other, on the host's own disk.
// Errors: ErrNotRepository, ErrVersion, ErrUnavailable.
func Open(ctx context.Context, dir string, o Options) (*Repository, error) {
	r, err := newRepository(dir, o)
	if err != nil {
		return nil, err
	}
	return r.open(ctx, "open", (*session).readMarker)
}

func newRepository(dir string, o Options) (*Repository, error) {
	if dir == "" {
		// filepath.Abs would take the working directory.
		return nil, fmt.Errorf("%w: no folder is given for the repository", kvmbackup.ErrInvalid)
	}
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, &Error{Root: dir, Op: "open", Err: err}
	}
	return &Repository{root: root, opts: o.withDefaults(), bad: map[string]bool{}, targets: map[string]*targets{},
		exact: map[string]fs.FileInfo{}}, nil
}

func (r *Repository) open(ctx context.Context, op string, fn func(*session) (marker, error)) (*Repository, error) {
	m, err := do(ctx, r, op, "", fn)
	if err != nil {
		return nil, err
	}
	r.id = m.ID
	return r, nil
}

// ID returns the repository's UUID, from its marker.
func (r *Repository) ID() string { return r.id }

// CheckpointPrefix begins the names of an engine's checkpoints, unless its configuration says otherwise: kvmbackup- and
// 32 bits of the SHA-256 of the ID, e.g. kvmbackup-5d41402a. So backups of one VM to several repositories don't take
// each other's checkpoints for leftovers.
func (r *Repository) CheckpointPrefix() string { return "kvmbackup-" + kvmbackup.VMID(r.id).Tag() }

// Root returns the repository's folder as an absolute path.
func (r *Repository) Root() string { return r.root }

// abs is the absolute form of a path below the root.
func (r *Repository) abs(rel string) string { return filepath.Join(r.root, filepath.FromSlash(rel)) }
