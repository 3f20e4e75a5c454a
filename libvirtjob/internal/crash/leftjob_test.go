package crash_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// slow has a job run until somebody lifts its limit.
func slow(r *engine.BackupRequest) {
	r.BandwidthBytes = 64 << 10
	r.Policy.OfflineIncremental = true
}

func abortLeft(c *engine.Config) { c.AbortLeftJobs = true }

// leftCases are killed while their job is running.
var leftCases = []crashCase{
	{
		name: "first full, followed", big: true, act: takeBackup(slow), outcome: engine.RecoveryFollowed,
		after: wantCompleted(1),
	},
	{
		name: "incremental, followed", prepare: earlier(running, 1), big: true, act: takeBackup(slow),
		outcome: engine.RecoveryFollowed, after: wantCompleted(2),
	},
	{name: "first full, aborted", big: true, act: takeBackup(slow), config: abortLeft, outcome: engine.RecoveryUndone,
		after: wantCompleted(0)},
	{name: "incremental, aborted", prepare: earlier(running, 1), big: true, act: takeBackup(slow), config: abortLeft,
		outcome: engine.RecoveryUndone, after: wantCompleted(1)},
	// That of a pull dies with its reader.
	{
		name: "pulled", pull: true, prepare: earlier(running, 1), big: true, act: takeBackup(slow),
		outcome: engine.RecoveryUndone, after: wantCompleted(1),
	},
	{
		name: "pulled, the scratch moved", pull: true, moved: true, big: true, act: takeBackup(slow),
		outcome: engine.RecoveryUndone, after: wantCompleted(0),
	},
	// The job of a stopped VM is a process of its own, which dies with the one that began it.
	{
		name: "stopped", stopped: true, prepare: earlier(offline, 1), big: true, act: takeBackup(slow),
		outcome: engine.RecoveryUndone, after: wantCompleted(1),
	},
}

// wantCompleted wants n completed backups, and one more.
func wantCompleted(n int) func(*app, kvmbackup.Backup) {
	return func(a *app, next kvmbackup.Backup) {
		a.Helper()
		if got := a.records(kvmbackup.StatusCompleted); len(got) != n+1 {
			a.Errorf("%d backups are completed, want %d and the next", len(got), n)
		}
		incremental := n > 0 && next.Reasons[0].Code != kvmbackup.ReasonStopped
		if incremental != (next.Kind == kvmbackup.KindIncremental) {
			a.Errorf("next backup is %v: %v", next.Kind, next.Reasons)
		}
	}
}

// TestCrashDuringAJob kills the process while its job runs, and lets the next one follow or abort that, by Recover and
// by taking a backup.
func TestCrashDuringAJob(t *testing.T) {
	t.Parallel()
	needHost(t)
	first, stride := lab.Every(t, lab.Sparse(4))
	for i, c := range leftCases {
		if i%stride != first {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSequence(t, c)
			s.KillAt = "before Job.Wait"
			for _, recover := range []bool{true, false} {
				died, _, out := s.run(t)
				if !died || s.Died && s.report(t, out).Failed {
					t.Error(out)
				}
				s.Died, s.Recover = died, recover
			}
			s.killAt(t, nil)
		})
	}
}
