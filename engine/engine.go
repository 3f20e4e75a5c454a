package engine

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
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

// Config is what an Engine is made of. It is copied. Negative durations and sizes are an ErrInvalid; what has an end that no length
// says has a name for it.
type Config struct {
	Store      kvmbackup.Store        // where the records are; required
	Repository *repository.Repository // where the backups are; required
	Executor   kvmbackup.Executor     // the hypervisor; nil for a host that only lists, restores to files, verifies and deletes
	Images     Images                 // qemu-img; required for restore, verify and backup

	// Decider decides full or incremental. Defaults to Decider{}.
	Decider kvmbackup.ChainDecider
	// Prefix begins the names of this consumer's checkpoints and bitmaps; what begins otherwise, and is not in its records, is never
	// touched. Several consumers of one VM need different prefixes. Letters, digits and '-'. Defaults to RepositoryPrefix, so that
	// only stores that share a repository have to choose; it may be changed at any time, as records know the old names.
	Prefix string
	// Holder names this process in leases. Defaults to Host, process ID and a random part.
	Holder string
	// Host names the machine whose domains the Executor reaches. Records say where they were taken, so that hosts that share
	// a store leave what a crash interrupted elsewhere to that host. Defaults to the host name.
	Host string
	// LeaseTTL is how long a crashed process blocks a VM. It is renewed at a third of it. Defaults to 30 s.
	LeaseTTL time.Duration
	// LeaseWait bounds the wait for a busy VM: NoWait and WaitForever are its ends. Defaults to 2 minutes, or to twice LeaseTTL where
	// that is longer, so that the lease of a process that crashed is waited out.
	LeaseWait time.Duration
	// ReserveBytes must stay free in the repository beyond a backup's estimate. Defaults to 64 MiB; NoReserve: nothing.
	ReserveBytes int64
	// StallWarn and StallAbort are how long a job may stand still, or take to begin, before it is reported, and aborted.
	// Default to 1 and 10 minutes; Never is an end of them.
	StallWarn, StallAbort time.Duration
	// FreezeLimit bounds how long a guest's file systems stay frozen, also while OnEvent blocks. Defaults to 10 s.
	FreezeLimit time.Duration
	// CleanupLimit bounds each part of what is done after a failure or a cancel, the hypervisor's and the repository's, whatever is left
	// of the caller's time, and how long the hypervisor may take to answer a question.
	// Defaults to 30 s.
	CleanupLimit time.Duration
	// AbortLeftJobs makes recovery abort a job that a crashed process left running; by default it follows the job to
	// its end and commits the backup.
	AbortLeftJobs bool
	// HostLimit and RepositoryLimit bound how many backups and restores run at once; engines may share them. nil: no limit.
	HostLimit, RepositoryLimit *Limiter
	// OnEvent receives the event stream; Tee gives it to several subscribers. It must not block: the operation waits for it. The events of
	// one operation (Event.OpID) come one after the other, from goroutines of the engine or the executor, and those of operations that
	// run at once come concurrently. nil: none.
	OnEvent func(Event)
	// Logger receives steps at debug level and what was survived at warn level, each with vm, backup (empty before there is one) and step;
	// so do those of the repository, the images and the executor what they do for an operation of the engine. nil discards.
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
		if err := kvmbackup.ValidPrefix(cfg.Prefix); err != nil {
			return nil, err
		}
	}
	if cfg.Decider == nil {
		cfg.Decider = kvmbackup.Decider{}
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
		{"LeaseTTL", c.LeaseTTL, ""}, {"LeaseWait", c.LeaseWait, "; NoWait is a name"}, {"StallWarn", c.StallWarn, "; Never is a name"},
		{"StallAbort", c.StallAbort, "; Never is a name"}, {"FreezeLimit", c.FreezeLimit, ""}, {"CleanupLimit", c.CleanupLimit, ""},
	} {
		if d.value < 0 && !(d.name == "LeaseWait" && d.value == NoWait) {
			return fmt.Errorf("%w config: %s %v is negative%s", kvmbackup.ErrInvalid, d.name, d.value, d.hint)
		}
	}
	if c.ReserveBytes < 0 && c.ReserveBytes != NoReserve {
		return fmt.Errorf("%w config: ReserveBytes %d is negative; NoReserve is a name", kvmbackup.ErrInvalid, c.ReserveBytes)
	}
	c.ReserveBytes = max(c.ReserveBytes, 0)
	return nil
}

func orDefault[T time.Duration | int64](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}

// prefix begins the names of the engine's checkpoints and bitmaps.
func (e *Engine) prefix() string {
	if e.cfg.Prefix == "" {
		return kvmbackup.RepositoryPrefix(e.cfg.Repository.ID())
	}
	return e.cfg.Prefix
}

func (e *Engine) now() time.Time { return e.cfg.Now().UTC() }

// cleanup is a context for what must be done although ctx may have ended.
func (e *Engine) cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), e.cfg.CleanupLimit)
}

// inspect begins whatever is done to a domain. A stopped one may run elsewhere while an unknown process has an image of
// it open, so that is an ErrImageLocked.
func (e *Engine) inspect(ctx context.Context, dom kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	st, err := e.look(ctx, dom)
	for _, d := range st.Disks {
		if err == nil && mayRun(d) {
			err = fmt.Errorf("%w: %s of domain %q: %s", kvmbackup.ErrImageLocked, d.Device, st.Name, d.Unreadable)
		}
	}
	return st, err
}

// look is for those who only look, or see to the images that are in use themselves.
func (e *Engine) look(ctx context.Context, dom kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	return ask(ctx, e, func(ctx context.Context) (kvmbackup.DomainStatus, error) { return e.cfg.Executor.Inspect(ctx, dom) })
}

// ask gives the hypervisor CleanupLimit to answer: a QEMU that hangs, perhaps on a dead repository, mustn't keep operations waiting
// with the VM's lease in their hands.
func ask[T any](ctx context.Context, e *Engine, f func(context.Context) (T, error)) (T, error) {
	c, cancel := context.WithTimeout(ctx, e.cfg.CleanupLimit)
	defer cancel()
	v, err := f(c)
	if err != nil && c.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: the hypervisor hasn't answered for %v; does QEMU hang on its storage? (%w)",
			kvmbackup.ErrUnavailable, e.cfg.CleanupLimit, err)
	}
	return v, err
}

// stallLimit is for what the hypervisor does with the targets before there is a job to watch.
func (e *Engine) stallLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := e.cfg.StallAbort
	if limit == Never {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: it has not begun for %v: is the repository slow or dead?", kvmbackup.ErrStalled, limit))
}

// needHypervisor is asked by operations that can't do without.
func (e *Engine) needHypervisor() error {
	if e.cfg.Executor == nil || e.cfg.Images == nil {
		return fmt.Errorf("%w config: this operation needs Executor and Images", kvmbackup.ErrInvalid)
	}
	return nil
}

// Get returns one record. ErrNotFound.
func (e *Engine) Get(ctx context.Context, id kvmbackup.BackupID) (kvmbackup.Backup, error) {
	_, b, err := e.find(ctx, "get", id)
	return b, err
}

// List returns the records that the query selects, those of one VM by Sequence. What can be restored is StatusCompleted; a query without
// statuses also selects running, failed and delete-pending ones.
func (e *Engine) List(ctx context.Context, q kvmbackup.Query) ([]kvmbackup.Backup, error) {
	list, err := e.cfg.Store.List(ctx, q)
	return list, (&op{name: "list", vm: q.VM, at: "read records"}).wrap(ctx, err)
}

// Newest returns the VM's newest completed backup, the one to restore when nothing else is known. ErrNotFound when there is none.
func (e *Engine) Newest(ctx context.Context, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	o := &op{name: "newest", vm: vm, at: "read records"}
	if err := named(vm); err != nil {
		return kvmbackup.Backup{}, o.wrap(ctx, err)
	}
	all, err := e.cfg.Store.List(ctx, kvmbackup.Query{VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted}})
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("%w: VM %q has no completed backup", kvmbackup.ErrNotFound, vm)
	}
	if err != nil {
		return kvmbackup.Backup{}, o.wrap(ctx, err)
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
