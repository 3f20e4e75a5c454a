package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
)

// Config is the command line.
type Config struct {
	Connect    string // libvirt URI
	Database   string // PostgreSQL DSN
	Repository string // folder of the backups
	Init       bool   // makes the folder a repository
	Listen     string // address of the metrics; empty: none
	// Instance names this run in claims and leases. No two runs may have the same, also not one after the other.
	Instance string
	// Workers is how many VMs are worked on at once; HostLimit bounds the backups among that, and RepositoryLimit those
	// of all instances together, for which it must be the same.
	Workers, HostLimit, RepositoryLimit int
	// LeaseTTL is how long a crashed instance blocks the VMs that it worked on.
	LeaseTTL time.Duration
	// BusyWait is how long to wait for a VM that somebody else works on, before it is put off.
	BusyWait time.Duration
	// Retry is the pause after a first failure; it doubles with each, up to an hour or the VM's next run.
	Retry time.Duration
	// Poll is how often a free worker asks for due VMs.
	Poll time.Duration
	// Grace is how long running backups may go on after SIGTERM before they are cancelled and undone.
	Grace time.Duration
}

func parseConfig(args []string, getenv func(string) string) (Config, error) {
	var c Config
	f := flag.NewFlagSet("orchestrator", flag.ContinueOnError)
	f.StringVar(&c.Connect, "connect", "qemu:///system", "libvirt `URI` of the hypervisor")
	f.StringVar(&c.Database, "database", "", "postgres://... (default $ORCHESTRATOR_DATABASE)")
	f.StringVar(&c.Repository, "repo", "", "`DIR` with the backups (default $ORCHESTRATOR_REPO)")
	f.BoolVar(&c.Init, "init", false, "make DIR a repository if it isn't one; check that the share is mounted")
	f.StringVar(&c.Listen, "listen", "127.0.0.1:9817", "`ADDRESS` for /metrics and /healthz; empty for none")
	f.StringVar(&c.Instance, "instance", newInstance(), "`NAME` of this run, different for every run")
	f.IntVar(&c.Workers, "workers", 8, "VMs that are worked on at once")
	f.IntVar(&c.HostLimit, "host-limit", 4, "backups that run at once")
	f.IntVar(&c.RepositoryLimit, "repository-limit", 4, "backups that write to the repository at once, of all instances")
	f.DurationVar(&c.LeaseTTL, "lease-ttl", 30*time.Second, "how long a crashed instance blocks its VMs")
	f.DurationVar(&c.BusyWait, "busy-wait", 5*time.Second, "how long to wait for a busy VM before it is put off")
	f.DurationVar(&c.Retry, "retry", time.Minute, "pause after a failure; it doubles with each")
	f.DurationVar(&c.Poll, "poll", 5*time.Second, "how often to ask for due VMs")
	f.DurationVar(&c.Grace, "grace", time.Minute, "how long backups may go on after SIGTERM")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	// Not as the flag's default: --help would print its password.
	c.Database = cmp.Or(c.Database, getenv("ORCHESTRATOR_DATABASE"))
	c.Repository = cmp.Or(c.Repository, getenv("ORCHESTRATOR_REPO"))
	return c, c.Validate()
}

func newInstance() string {
	name, _ := os.Hostname() // an empty name only makes it less readable
	return fmt.Sprintf("%s/%d/%.8s", name, os.Getpid(), uuid.NewString())
}

// Validate says what is wrong with it.
func (c Config) Validate() error {
	var errs []error
	if c.Database == "" || c.Repository == "" || c.Instance == "" {
		errs = append(errs, errors.New("database, repo and instance are required"))
	}
	if min(c.Workers, c.HostLimit, c.RepositoryLimit) < 1 {
		errs = append(errs, errors.New("workers and limits must be at least 1"))
	}
	if min(c.LeaseTTL, c.BusyWait, c.Retry, c.Poll) <= 0 || c.Grace < 0 {
		errs = append(errs, errors.New("lease-ttl, busy-wait, retry and poll must be above 0, grace not below"))
	}
	return errors.Join(errs...)
}
