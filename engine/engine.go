package engine

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Engine does whole jobs over what its Config has: back up, restore, delete, verify, recover. It is safe for concurrent
// use, by any number of VMs at once; operations on one VM follow one another, over all processes
// that share the store. After a call returns nothing of it runs in the background.
type Engine struct {
	cfg     Config
	deleter *kvmbackup.Deleter
}

// Never is for Config.StallWarn and Config.StallAbort: however long a job stands still, it isn't reported, or aborted.
const Never time.Duration = math.MaxInt64

// The ends of Config.LeaseWait. With NoWait a busy VM is an ErrBusy at once; WaitForever waits as long as the context.
const (
	NoWait      time.Duration = math.MinInt64
	WaitForever time.Duration = math.MaxInt64
)

// NoReserve is for Config.ReserveBytes: a backup may fill the repository.
const NoReserve int64 = math.MinInt64

// Config is what an Engine is made of. It is copied. Negative durations and sizes are an ErrInvalid; what has an end
// that no length says has a name for it.
type Config struct {
	Store      kvmbackup.Store        // where the records are; required
	Repository *repository.Repository // where the backups are; required
	// Executor is the hypervisor. Without one the engine plans from an inventory (PlanWith), lists, verifies, restores
	// to files, retains, deletes, imports, exports and requires fulls; Backup, Plan, Forget, Inspect, Repair and a
	// restore in place return ErrNoHypervisor.
	Executor kvmbackup.Executor
	Images   Images // qemu-img; required for restore, verify and backup

	// Keys wrap the data keys of sealed backups, and open them. nil: nothing is sealed, and sealed backups can't be read.
	Keys Keys

	// IndexKey is a secret of this host, made with kvmbackup.NewDataKey and kept, by which it compares contents with
	// sealed backups that its Keys don't open: the keys of their indexes are derived from it. What who has it can learn is
	// in docs/security.md. Another one costs a full. Zero: no sealed backup has an index.
	IndexKey kvmbackup.DataKey

	// Decider decides full or incremental. Defaults to kvmbackup.ChainDecider{}.
	Decider Decider
	// Prefix begins the names of this consumer's checkpoints and bitmaps; what begins otherwise, and is not in its
	// records, is never touched. Several consumers of one VM need different prefixes. Letters, digits and '-'. Defaults
	// to the Repository's CheckpointPrefix, so that only stores that share a repository have to choose. It may be
	// changed at any time, as records know the old names.
	Prefix string
	// Holder names this process in leases. Defaults to Host, process ID and a random part.
	Holder string
	// Host names the machine whose domains the Executor reaches. Records say where they were taken, so that hosts that
	// share a store leave what a crash interrupted elsewhere to that host. Defaults to the host name.
	Host string
	// LeaseTTL is how long a crashed process blocks a VM. It is renewed at a third of it. Defaults to 30 s.
	LeaseTTL time.Duration
	// LeaseWait bounds the wait for a busy VM, without what an operation waits for a place meanwhile: NoWait and
	// WaitForever are its ends. Defaults to 2 minutes, or to twice LeaseTTL where that is longer, so that the lease of
	// a process that crashed is waited out.
	LeaseWait time.Duration
	// ReserveBytes must stay free in the repository beyond a backup's estimate. Defaults to 64 MiB; NoReserve: nothing.
	ReserveBytes int64
	// Scratch are folders on local storage, as absolute paths: a backup by pull keeps there what its guest overwrites
	// before it is copied. The folder with the most room is taken. Its room is shared by the backups of this process,
	// and by whatever else is on its file system, which must not be the repository's. docs/operations.md says how large
	// it has to be. Empty: nothing is pulled. Where the Executor is a ScratchHost they are folders of its host.
	Scratch []string
	// StallWarn and StallAbort are how long a job may stand still, or take to begin, before it is reported, and aborted.
	// Default to 1 and 10 minutes; Never is an end of them.
	StallWarn, StallAbort time.Duration
	// FreezeLimit bounds how long a guest's file systems stay frozen, also while OnEvent blocks. Defaults to 10 s.
	FreezeLimit time.Duration
	// CleanupLimit bounds each part of what is done after a failure or a cancel, the hypervisor's and the repository's,
	// whatever is left of the caller's time, and how long the hypervisor may take to answer a question.
	// Defaults to 30 s.
	CleanupLimit time.Duration
	// AbortLeftJobs makes recovery abort a job that a crashed process left running; by default it follows the job to
	// its end and commits the backup.
	AbortLeftJobs bool
	// HostLimit and RepositoryLimit bound how many backups and restores run at once; engines may share them. An
	// operation that waits for a place holds nothing, and an EventWaiting shows it. nil: no limit.
	HostLimit, RepositoryLimit *Limiter
	// OnEvent receives the event stream; Tee gives it to several subscribers. It must not block: the operation waits
	// for it. The events of one operation (Event.OpID) come one after the other, from goroutines of the engine or the
	// executor, and those of operations that run at once come concurrently. nil: none.
	OnEvent func(Event)
	// Logger receives steps at debug level and what was survived at warn level, each with vm, backup (empty before
	// there is one) and step; so do those of the repository, the images and the executor what they do for an operation
	// of the engine. nil discards.
	Logger *slog.Logger
	// Now is the clock for time stamps. Defaults to time.Now.
	Now func() time.Time
}

// New makes an engine. It does no I/O. An incomplete configuration is an ErrInvalid.
func New(cfg Config) (*Engine, error) {
	if cfg.Store == nil || cfg.Repository == nil {
		return nil, fmt.Errorf("%w config: Store and Repository are required", kvmbackup.ErrInvalid)
	}
	if cfg.Prefix != "" {
		if err := validPrefix(cfg.Prefix); err != nil {
			return nil, err
		}
	}
	if cfg.Decider == nil {
		cfg.Decider = kvmbackup.ChainDecider{}
	}
	if cfg.Host == "" {
		cfg.Host, _ = os.Hostname() // without a name all hosts count as one
	}
	if cfg.Holder == "" {
		cfg.Holder = fmt.Sprintf("%s/%d/%.8s", cfg.Host, os.Getpid(), uuid.NewString())
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := cfg.bound(); err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg}
	e.deleter = &kvmbackup.Deleter{Store: cfg.Store, Files: cfg.Repository}
	return e, nil
}

// bound sets the limits that were left out, and refuses those that are none.
func (c *Config) bound() error {
	orDefault(&c.LeaseTTL, 30*time.Second)
	orDefault(&c.LeaseWait, max(2*time.Minute, 2*c.LeaseTTL))
	orDefault(&c.StallWarn, time.Minute)
	orDefault(&c.StallAbort, 10*time.Minute)
	orDefault(&c.FreezeLimit, 10*time.Second)
	orDefault(&c.CleanupLimit, 30*time.Second)
	orDefault(&c.ReserveBytes, 64<<20)
	for _, d := range []struct {
		name  string
		value time.Duration
		hint  string
	}{
		{"LeaseTTL", c.LeaseTTL, ""}, {"LeaseWait", c.LeaseWait, "; NoWait is a name"},
		{"StallWarn", c.StallWarn, "; Never is a name"},
		{"StallAbort", c.StallAbort, "; Never is a name"}, {"FreezeLimit", c.FreezeLimit, ""},
		{"CleanupLimit", c.CleanupLimit, ""},
	} {
		if d.value < 0 && !(d.name == "LeaseWait" && d.value == NoWait) {
			return fmt.Errorf("%w config: %s %v is negative%s", kvmbackup.ErrInvalid, d.name, d.value, d.hint)
		}
	}
	if c.ReserveBytes < 0 && c.ReserveBytes != NoReserve {
		return fmt.Errorf("%w config: ReserveBytes %d is negative; NoReserve is a name", kvmbackup.ErrInvalid, c.ReserveBytes)
	}
	c.ReserveBytes = max(c.ReserveBytes, 0)
	c.Scratch = slices.Clone(c.Scratch)
	for i, folder := range c.Scratch {
		if !filepath.IsAbs(folder) {
			return fmt.Errorf("%w config: the scratch %q is not an absolute path", kvmbackup.ErrInvalid, folder)
		}
		c.Scratch[i] = filepath.Clean(folder)
	}
	return nil
}

func orDefault[T time.Duration | int64](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

// validPrefix returns ErrInvalid for a prefix that checkpoint names can't begin with: 1 to 64 letters, digits and '-'
// can, not beginning with '-'.
func validPrefix(prefix string) error {
	for _, r := range prefix {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-') {
			return fmt.Errorf("%w prefix %q: letters, digits and '-' only", kvmbackup.ErrInvalid, prefix)
		}
	}
	if prefix == "" || prefix[0] == '-' || len(prefix) > 64 {
		return fmt.Errorf("%w prefix %q: 1 to 64 characters, not beginning with '-'", kvmbackup.ErrInvalid, prefix)
	}
	return nil
}

// prefix begins the names of the engine's checkpoints and bitmaps.
func (e *Engine) prefix() string {
	if e.cfg.Prefix == "" {
		return e.cfg.Repository.CheckpointPrefix()
	}
	return e.cfg.Prefix
}

func (e *Engine) now() time.Time { return e.cfg.Now().UTC() }

// cleanup is a context for what must be done although ctx may have ended.
func (e *Engine) cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), e.cfg.CleanupLimit)
}

// stallLimit is for what the hypervisor does with the targets before there is a job to watch.
func (e *Engine) stallLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := e.cfg.StallAbort
	if limit == Never {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: it has not begun for %v: is the repository slow or "+
		"dead?", kvmbackup.ErrStalled, limit))
}

// needHypervisor is asked by operations that can't do without.
func (e *Engine) needHypervisor() error {
	if e.cfg.Images == nil && e.cfg.Executor != nil {
		return fmt.Errorf("%w config: this operation needs Images", kvmbackup.ErrInvalid)
	}
	return e.needExecutor()
}

// needExecutor sends the caller to the VM's own host.
func (e *Engine) needExecutor() error {
	if e.cfg.Executor == nil {
		return fmt.Errorf("%w: have it done by an engine of the VM's host, or give this one an Executor that reaches "+
			"it", kvmbackup.ErrNoHypervisor)
	}
	return nil
}

// needImages is asked by operations that read or write images and leave domains alone.
func (e *Engine) needImages(name string) error {
	if e.cfg.Images == nil {
		return fmt.Errorf("%w config: %s needs Images", kvmbackup.ErrInvalid, name)
	}
	return nil
}

// Get returns one record, or ErrNotFound if the store has no such record.
func (e *Engine) Get(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	_, b, err := e.find(ctx, "get", id)
	return b, err
}

// List returns the records that the query selects, those of one VM by Sequence. What can be restored is
// StatusCompleted; a query without statuses also selects running, failed and delete-pending ones.
func (e *Engine) List(ctx context.Context, q kvmbackup.Query) ([]kvmbackup.Backup, error) {
	list, err := e.cfg.Store.List(ctx, q)
	return list, e.query("list", q.VM, "read records").wrap(ctx, err)
}

// pageSize is how many records All has in memory at once.
const pageSize = 500

// All returns what List does, one record after the other, whatever the query's Limit: it asks for a page when the one
// before is used up, so that its memory doesn't grow with the number of records. What is written meanwhile may be among
// them or not. An error is the last that comes.
func (e *Engine) All(ctx context.Context, q kvmbackup.Query) iter.Seq2[kvmbackup.Backup, error] {
	return func(yield func(kvmbackup.Backup, error) bool) {
		q := q // of this iteration
		for q.Limit = pageSize; ; {
			page, err := e.List(ctx, q)
			for _, b := range page {
				if !yield(b, nil) {
					return
				}
				q.AfterVM, q.AfterSequence = b.VM, b.Sequence
			}
			if err != nil {
				yield(kvmbackup.Backup{}, err)
			}
			if err != nil || len(page) < q.Limit {
				return
			}
		}
	}
}

// Newest returns the VM's newest completed backup, the one to restore when nothing else is known. Returns ErrNotFound
// if the VM has none.
func (e *Engine) Newest(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	o := e.query("newest", vm, "read records")
	if err := named(vm); err != nil {
		return kvmbackup.Backup{}, o.wrap(ctx, err)
	}
	b, err := e.newest(ctx, vm)
	return b, o.wrap(ctx, err)
}

// newest looks through the records only where the newest one is delete-pending.
func (e *Engine) newest(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	b, err := e.cfg.Store.Newest(ctx, vm)
	if err != nil || b.Status == kvmbackup.StatusCompleted {
		return b, err
	}
	all, err := e.cfg.Store.List(ctx, kvmbackup.Query{VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted}})
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("%w: VM %q has no completed backup", kvmbackup.ErrNotFound, vm)
	}
	if err != nil {
		return kvmbackup.Backup{}, err
	}
	return all[len(all)-1], nil
}

// Chain returns the backup and its ancestors, the full first. It fails with ErrInvalid, naming the record, when
// a parent is missing, of another VM or chain, at a wrong position, or the links form a circle.
func (e *Engine) Chain(ctx context.Context, id kvmbackup.BackupID) ([]kvmbackup.Backup, error) {
	o, _, err := e.find(ctx, "chain", id)
	if err != nil {
		return nil, err
	}
	o.at = "read chain"
	chain, err := kvmbackup.ChainOf(ctx, e.cfg.Store, id)
	return chain, o.wrap(ctx, err)
}
