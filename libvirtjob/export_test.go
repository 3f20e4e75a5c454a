package libvirtjob

import (
	"context"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// OpenWithin is Open that waits for libvirt for less long, also when it connects again.
func OpenWithin(ctx context.Context, limit time.Duration, uri string, cfg Config) (*Executor, error) {
	return open(ctx, uri, cfg, limit)
}

// PollOnly makes the executor do without events, as in a process without an event loop.
func (e *Executor) PollOnly() { e.conn.cancelEvents() }

// References counts who holds the executor's connection.
func (e *Executor) References() (int, error) {
	if err := e.conn.Ref(); err != nil {
		return 0, err
	}
	return e.conn.Close()
}

// BeginAtOnce is Begin without the look at the domain that comes before libvirt's call.
func BeginAtOnce(ctx context.Context, begun kvmbackup.Job) error {
	j, ok := begun.(*job)
	if !ok {
		j = begun.(*pullJob).job
	}
	done, err := j.enter()
	if err != nil {
		return err
	}
	j.listen(time.Now())
	return j.start(ctx, done)
}

// BeginUnforeseen is Begin of a push without the look at the domain and at the targets that comes before libvirt's
// call: what happens in between, and what comes after it.
func BeginUnforeseen(ctx context.Context, begun kvmbackup.Job) error {
	j := begun.(*job)
	done, err := j.enter()
	if err != nil {
		return err
	}
	return j.launch(ctx, done)
}

// CountOf is how many file systems an agent froze that says so.
func CountOf(said any) int { return countOf(said) }

// Stage is the name of the node that stands in for a target in a rehearsal.
const Stage = stage

// Heard is what is made of the events that came while a job is followed, of which it is known how long it may have
// taken.
func Heard(shortest, longest time.Duration, events ...libvirt.DomainJobInfo) *libvirt.DomainJobInfo {
	ev := newEvents(nil)
	l := ev.listen("guest")
	defer l.close()
	for _, info := range events {
		ev.tell("guest", info)
		ev.tell("another", libvirt.DomainJobInfo{
			Operation: libvirt.DOMAIN_JOB_OPERATION_BACKUP, TimeElapsed: info.TimeElapsed,
		})
	}
	return l.outcome(shortest, longest)
}

// Copied is how many bytes a pull job has seen to.
func Copied(j kvmbackup.Job) int64 { return j.(*pullJob).begun().progress().DoneBytes }

// DaemonPID is the process of a pull job's targets.
func DaemonPID(j kvmbackup.Job) int { return j.(*pullJob).targets.PID() }

// EditXML changes what libvirt is asked for.
func EditXML(j kvmbackup.Job, edit func(string) string) {
	p := j.(*pullJob)
	p.backup = edit(p.backup)
}
