package libvirtjob_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// domain is the guest as other users of libvirt have it.
func (b *bench) domain() *libvirt.Domain {
	b.Helper()
	dom, err := realguest.Need(b.T).Conn.LookupDomainByName(b.guest.Name)
	b.must(err)
	b.Cleanup(func() { _ = dom.Free() })
	return dom
}

// ended waits until libvirt says that the domain has no job.
func (b *bench) ended(dom *libvirt.Domain) {
	b.Helper()
	lab.Eventually(b.T, "the job has ended", func() bool {
		info, err := dom.GetJobStats(0)
		b.must(err)
		return info.Type == libvirt.DOMAIN_JOB_NONE
	})
}

// take reads the last job's outcome as domjobinfo --completed does: libvirt has it no more then.
func (b *bench) take(dom *libvirt.Domain) libvirt.DomainJobType {
	b.Helper()
	info, err := dom.GetJobStats(libvirt.DOMAIN_JOB_STATS_COMPLETED)
	b.must(err)
	return info.Type
}

// TestOutcomesTakenByAnother has somebody else read the outcomes of all jobs, all the time.
func TestOutcomesTakenByAnother(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda", "vdb")})
	dom := b.domain()
	stop, taken := make(chan struct{}), 0
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if info, err := dom.GetJobStats(libvirt.DOMAIN_JOB_STATS_COMPLETED); err == nil &&
				info.Type == libvirt.DOMAIN_JOB_COMPLETED {
				taken++
			}
		}
	})
	b.backup("c0", "", full("vda"), full("vdb"))
	for i := range 9 {
		b.guest.Write("vda", byte(i+1), int64(i)<<20, 1<<20)
		name := fmt.Sprintf("c%d", i)
		b.backup(fmt.Sprintf("c%d", i+1), name, incr("vda"), incr("vdb"))
		b.drop(name)
	}
	close(stop)
	reader.Wait()
	if taken == 0 {
		t.Error("nobody else has read an outcome")
	}
	t.Logf("%d of 10 outcomes were taken", taken)
}

// TestOutcomeTaken: where the record is gone what the event said counts, success or not; without events nothing is
// proved.
func TestOutcomeTaken(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: bigDisks("vda")})
	dom := b.domain()
	b.guest.Write("vda", 0x11, 0, 1<<20)
	job, _ := b.slow("failed", "", full("vda"))
	b.must(dom.AbortJob())
	b.ended(dom)
	if got := b.take(dom); got != libvirt.DOMAIN_JOB_CANCELLED {
		t.Errorf("the outcome that was taken is %v", got)
	}
	_, err := job.Wait(b.ctx, nil)
	b.wantErr(err, kvmbackup.ErrJobFailed)
	if err == nil || !strings.Contains(err.Error(), "Operation canceled") {
		t.Errorf("error is %v, want what the event says", err)
	}
	b.drop("failed")

	spec := b.spec("c1", "", full("vda"))
	job = b.begin(spec)
	b.ended(dom)
	if got := b.take(dom); got != libvirt.DOMAIN_JOB_COMPLETED {
		t.Errorf("the outcome that was taken is %v", got)
	}
	result, err := job.Wait(b.ctx, nil)
	b.must(err)
	if result.TotalBytes != big || result.CopiedBytes["id-vda"] != big {
		t.Errorf("result is %+v", result)
	}
	b.keep(spec)

	b.exec.PollOnly()
	job = b.begin(b.spec("c2", "c1", incr("vda")))
	b.ended(dom)
	b.take(dom)
	_, err = job.Wait(b.ctx, nil)
	b.wantErr(err, kvmbackup.ErrJobFailed)
}

// TestOutcomeReplaced has another program's job run, and end, before anybody looks at how ours ended.
func TestOutcomeReplaced(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, runs := range []bool{true, false} {
		t.Run(fmt.Sprintf("runs=%v", runs), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, realguest.Config{Disks: bigDisks("vda")})
			dom := b.domain()
			b.guest.Write("vda", 0x11, 0, 1<<20)
			spec := b.spec("c1", "", full("vda"))
			job := b.begin(spec)
			b.ended(dom)
			var theirs kvmbackup.Job
			if runs {
				theirs, _ = b.slow("theirs", "", full("vda"))
			} else {
				theirs = b.begin(b.spec("theirs", "", full("vda")))
				b.ended(dom)
			}
			_, err := job.Wait(b.ctx, nil)
			b.must(err)
			b.must(theirs.Abort(b.ctx))
			b.keep(spec)
		})
	}
}

// TestEndedUnobserved adopts jobs that have ended: those whose targets prove that libvirt's record is theirs, and no
// others.
func TestEndedUnobserved(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: append(disks("vda"), bigDisks("vdb")...)})
	dom := b.domain()
	adopted := func(spec kvmbackup.JobSpec) error {
		b.Helper()
		job, err := b.exec.AdoptJob(b.ctx, b.ref, spec)
		if err != nil {
			return err
		}
		defer func() { b.must(job.Close(b.ctx)) }()
		_, err = job.Wait(b.ctx, nil)
		return err
	}
	unobserved := func(spec kvmbackup.JobSpec) kvmbackup.JobSpec {
		b.Helper()
		b.begin(spec)
		b.ended(dom)
		return spec
	}
	b.guest.Write("vda", 0x11, 0, 4<<20)
	first := unobserved(b.spec("c1", "", full("vda"), full("vdb")))
	b.must(adopted(first))
	b.keep(first)

	b.guest.Write("vda", 0x22, 1<<20, 1<<20)
	second := unobserved(b.spec("c2", "c1", incr("vda"), incr("vdb")))
	b.must(adopted(second))
	b.keep(second)
	// the base's bitmap marks more than was copied now: the record's figure decides
	b.guest.Write("vda", 0x33, 8<<20, 1<<20)
	b.must(adopted(second))

	// What was never begun, and what was and isn't whole, with another job's success on record.
	prepared := b.spec("c3", "c2", incr("vda"), incr("vdb"))
	job, err := b.exec.PrepareJob(b.ctx, b.ref, prepared)
	b.must(err)
	b.must(job.Close(b.ctx))
	b.wantErr(adopted(prepared), kvmbackup.ErrNoJob)
	b.spread("vdb", 0x04)
	third, aborted := b.slow("c4", "c2", incr("vda"), incr("vdb"))
	b.must(third.Abort(b.ctx))
	b.wantErr(adopted(aborted), kvmbackup.ErrNoJob)
	unobserved(b.spec("theirs", "", full("vda"), full("vdb")))
	b.wantErr(adopted(aborted), kvmbackup.ErrNoJob)
	b.take(dom)
	b.wantErr(adopted(second), kvmbackup.ErrNoJob)
}

// TestHeard: an event names no job, so that only one which can be no other job's counts.
func TestHeard(t *testing.T) {
	t.Parallel()
	event := func(ms uint64, success bool) libvirt.DomainJobInfo {
		return libvirt.DomainJobInfo{
			Operation: libvirt.DOMAIN_JOB_OPERATION_BACKUP, OperationSet: true, TimeElapsed: ms, JobSuccessSet: true,
			JobSuccess: success,
		}
	}
	migration := event(150, true)
	migration.Operation = libvirt.DOMAIN_JOB_OPERATION_MIGRATION_OUT
	for name, c := range map[string]struct {
		events []libvirt.DomainJobInfo
		want   string
	}{
		"none":                             {nil, "nothing"},
		"ours":                             {[]libvirt.DomainJobInfo{event(150, true)}, "success"},
		"ours, failed":                     {[]libvirt.DomainJobInfo{event(150, false)}, "failure"},
		"an earlier job's, late":           {[]libvirt.DomainJobInfo{event(9000, false), event(150, true)}, "success"},
		"an earlier job's alone":           {[]libvirt.DomainJobInfo{event(9000, true)}, "nothing"},
		"a later job's":                    {[]libvirt.DomainJobInfo{event(150, false), event(20, true)}, "failure"},
		"of a job that nobody saw the end": {[]libvirt.DomainJobInfo{event(0, true)}, "nothing"},
		"a migration's":                    {[]libvirt.DomainJobInfo{migration}, "nothing"},
		"two that fit": {
			[]libvirt.DomainJobInfo{event(150, true), event(160, false), event(170, true)}, "failure",
		},
	} {
		got := "nothing"
		if info := libvirtjob.Heard(100*time.Millisecond, 200*time.Millisecond, c.events...); info != nil {
			got = map[bool]string{true: "success", false: "failure"}[info.JobSuccess]
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
