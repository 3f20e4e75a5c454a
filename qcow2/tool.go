package qcow2

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os/exec"
	"regexp"
	"time"
)

// NoLimit is for Config.MemoryLimitBytes, Config.InspectTimeout, Config.StallTimeout and the Timeout of options: none,
// besides the context's.
const NoLimit = math.MaxInt64

// Config says where the tools are and what they may use up. The zero value is
// ready for use. It is copied by New.
type Config struct {
	// QemuImg, StorageDaemon and QemuNBD are paths, or names to look up in PATH.
	// Default to "qemu-img", "qemu-storage-daemon" and "qemu-nbd".
	QemuImg, StorageDaemon, QemuNBD string
	// Logger gets each run at Debug and each process left behind at Warn.
	// Defaults to discarding.
	Logger *slog.Logger
	// MaxOutputBytes bounds what one run may print on its standard output, what a tool
	// may print as messages, and one answer of the storage daemon. Defaults to 64 MiB.
	MaxOutputBytes int64
	// MemoryLimitBytes is the address space (RLIMIT_AS) that a tool may use, beside 64 MiB
	// for each image that it opens, of which QEMU 7.2 takes 39 MiB at most. A qcow2 header can
	// ask QEMU for gigabytes. A tool isn't limited where it opens more images than are known here: Convert, Compare
	// and ServeNBD where QEMU follows a chain by its links, and what serves a stopped VM's disks.
	// Raise it for checks of images beyond some 20 TiB.
	// Defaults to 2 GiB; may be NoLimit. Has no effect outside Linux.
	MemoryLimitBytes int64
	// InspectTimeout is the time limit of commands that do not copy data: all but
	// Convert, Compare and backups. The caller's
	// context may end earlier. Defaults to 60 s; may be NoLimit.
	InspectTimeout time.Duration
	// StallTimeout is how long a tool that works, or a digest, may neither read nor write a byte: then it is
	// killed, with ErrTimeout. It bounds what has no time limit otherwise, on storage that doesn't answer. Tools that
	// serve wait for their clients, and have none. Defaults to 10 min; may be NoLimit. Outside Linux it has an effect
	// on digests of files alone.
	StallTimeout time.Duration
	// Unconfined runs the tools without keeping them from opening files that they are not given: see Confines. By default
	// those that are given a chain layer by layer, or one image alone, can open nothing else but programs and libraries,
	// where the kernel has Landlock. What it costs is below 1 ms. For tools that are scripts, say.
	Unconfined bool
	// KillGrace is how long a call waits for a killed process to end before it
	// returns ErrHung. Defaults to 5 s.
	KillGrace time.Duration
}

// Tool runs qemu-img, qemu-storage-daemon and qemu-nbd. It is safe for
// concurrent use and holds no resources. Image locks between processes are
// QEMU's own.
type Tool struct {
	cfg       Config
	log       *slog.Logger
	img       program
	daemon    program
	nbdServer program
}

// program is one executable; err says why it can't be used.
type program struct {
	name, path string
	err        error
}

// New returns a Tool. It looks the programs up and fails with ErrToolMissing
// when qemu-img is not there; a missing qemu-storage-daemon or qemu-nbd fails
// only the calls that need it. Nothing is run.
func New(cfg Config) (*Tool, error) {
	if min(cfg.MaxOutputBytes, cfg.MemoryLimitBytes) < 0 || min(cfg.InspectTimeout, cfg.StallTimeout, cfg.KillGrace) < 0 {
		return nil, fmt.Errorf("%w: a negative MaxOutputBytes, MemoryLimitBytes, InspectTimeout, StallTimeout or KillGrace",
			ErrInvalidOption)
	}
	cfg.MaxOutputBytes = orDefault(cfg.MaxOutputBytes, 64<<20)
	cfg.MemoryLimitBytes = orDefault(cfg.MemoryLimitBytes, 2<<30)
	cfg.InspectTimeout = orDefault(cfg.InspectTimeout, 60*time.Second)
	cfg.StallTimeout = orDefault(cfg.StallTimeout, 10*time.Minute)
	cfg.KillGrace = orDefault(cfg.KillGrace, 5*time.Second)
	t := &Tool{
		cfg:       cfg,
		log:       cfg.Logger,
		img:       lookUp("qemu-img", cfg.QemuImg),
		daemon:    lookUp("qemu-storage-daemon", cfg.StorageDaemon),
		nbdServer: lookUp("qemu-nbd", cfg.QemuNBD),
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	return t, t.img.err
}

// orDefault returns v, or def when v is zero.
func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// lookUp finds a program by its configured path, or by its usual name.
func lookUp(name, configured string) program {
	path, err := exec.LookPath(orDefault(configured, name))
	if err != nil {
		return program{name: name, err: fmt.Errorf("%w: %w", ErrToolMissing, err)}
	}
	return program{name: name, path: path}
}

// Missing names the programs that New has not found. Calls that need one of them fail with ErrToolMissing.
func (t *Tool) Missing() []string {
	var names []string
	for _, p := range []program{t.img, t.daemon, t.nbdServer} {
		if p.err != nil {
			names = append(names, p.name)
		}
	}
	return names
}

var versionPattern = regexp.MustCompile(`^qemu-img version (\S+)`)

// Version returns the version of qemu-img, such as "7.2.22". An unreadable answer
// is ErrProtocol.
func (t *Tool) Version(ctx context.Context) (string, error) {
	out, err := t.run(ctx, command{program: t.img, args: []string{"--version"}, timeout: t.cfg.InspectTimeout})
	if err != nil {
		return "", fmt.Errorf("read version of qemu-img: %w", err)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("read version of qemu-img: %w: %.80q", ErrProtocol, out)
	}
	return string(m[1]), nil
}
