package executortest_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/executortest"
)

// TestRulesBite breaks an executor in one way per rule of the contract, and the rule must say so. A rule without a
// broken executor fails. That histories bite is shown with one: they compare all that a user sees.
func TestRulesBite(t *testing.T) {
	unused := breakers()
	for _, rule := range executortest.Rules() {
		breaks, ok := breakers()[rule.Name]
		delete(unused, rule.Name)
		if !ok && strings.HasPrefix(rule.Name, "history/") {
			continue
		}
		t.Run(rule.Name, func(t *testing.T) {
			t.Parallel()
			if !ok {
				t.Fatal("no broken executor shows that this rule can fail")
			}
			w := brokenWorld{executortest.NewSimulator(t.TempDir()), breaks}
			if err := rule.Check(t.Context(), w); err == nil {
				t.Error("the rule doesn't notice the broken executor")
			} else if !strings.Contains(err.Error(), rule.Text) {
				t.Errorf("the failure doesn't explain itself: %v", err)
			}
		})
	}
	for name := range unused {
		t.Errorf("there is a broken executor for %s, which is no rule", name)
	}
}

// brokenWorld is the simulator under an executor that is broken.
type brokenWorld struct {
	*executortest.Simulator
	how broken
}

func (w brokenWorld) Executor() kvmbackup.Executor {
	w.how.Executor = w.Simulator.Executor()
	return w.how
}

type (
	ctxT  = context.Context
	domT  = kvmbackup.DomainRef
	specT = kvmbackup.JobSpec
)

// broken changes what goes into calls and what comes out.
type broken struct {
	kvmbackup.Executor
	before  func(method string, ctx ctxT, dom domT) (ctxT, domT)
	inspect func(*kvmbackup.DomainStatus, error) error
	after   func(method string, err error) error
	nothing string // the method that does nothing, and succeeds
	spec    func(*specT)
	result  func(*kvmbackup.JobResult)
	figures func(map[string]int64)
	define  func(*kvmbackup.Definition)
	frozen  func(*int)
	begun   func(e kvmbackup.Executor, ctx ctxT, dom domT, spec specT) error
	silent  bool // about progress
}

func (b broken) in(method string, ctx ctxT, dom domT) (ctxT, domT) {
	if b.before != nil {
		return b.before(method, ctx, dom)
	}
	return ctx, dom
}

func (b broken) out(method string, err error) error {
	if b.after != nil {
		return b.after(method, err)
	}
	return err
}

func (b broken) Inspect(ctx ctxT, dom domT) (kvmbackup.DomainStatus, error) {
	ctx, dom = b.in("Inspect", ctx, dom)
	st, err := b.Executor.Inspect(ctx, dom)
	if b.inspect != nil {
		err = b.inspect(&st, err)
	}
	return st, err
}

func (b broken) RegisterCheckpoint(ctx ctxT, dom domT, cp kvmbackup.CheckpointSpec) error {
	ctx, dom = b.in("RegisterCheckpoint", ctx, dom)
	if b.nothing == "RegisterCheckpoint" {
		return nil
	}
	return b.out("RegisterCheckpoint", b.Executor.RegisterCheckpoint(ctx, dom, cp))
}

func (b broken) DropCheckpoint(ctx ctxT, dom domT, name kvmbackup.CheckpointName) error {
	ctx, dom = b.in("DropCheckpoint", ctx, dom)
	if b.nothing == "DropCheckpoint" {
		return nil
	}
	return b.Executor.DropCheckpoint(ctx, dom, name)
}

func (b broken) changed(n map[string]int64, err error) (map[string]int64, error) {
	if b.figures != nil && err == nil {
		b.figures(n)
	}
	return n, err
}

func (b broken) DirtyBytes(ctx ctxT, dom domT, name kvmbackup.CheckpointName) (map[string]int64, error) {
	ctx, dom = b.in("DirtyBytes", ctx, dom)
	return b.changed(b.Executor.DirtyBytes(ctx, dom, name))
}

func (b broken) HeldBytes(ctx ctxT, dom domT, devices []string) (map[string]int64, error) {
	ctx, dom = b.in("HeldBytes", ctx, dom)
	return b.changed(b.Executor.HeldBytes(ctx, dom, devices))
}

func (b broken) PrepareJob(ctx ctxT, dom domT, spec specT) (kvmbackup.Job, error) {
	ctx, dom = b.in("PrepareJob", ctx, dom)
	if b.spec != nil {
		b.spec(&spec)
	}
	j, err := b.Executor.PrepareJob(ctx, dom, spec)
	if err == nil && b.nothing == "waiting for Begin" {
		err = j.Begin(ctx)
	}
	return brokenJob{j, b, dom, spec}, err
}

func (b broken) AdoptJob(ctx ctxT, dom domT, spec specT) (kvmbackup.Job, error) {
	ctx, dom = b.in("AdoptJob", ctx, dom)
	j, err := b.Executor.AdoptJob(ctx, dom, spec)
	return j, b.out("AdoptJob", err)
}

func (b broken) Freeze(ctx ctxT, dom domT) (int, error) {
	ctx, dom = b.in("Freeze", ctx, dom)
	n, err := b.Executor.Freeze(ctx, dom)
	if b.frozen != nil {
		b.frozen(&n)
	}
	return n, b.out("Freeze", err)
}

func (b broken) Thaw(ctx ctxT, dom domT) error {
	ctx, dom = b.in("Thaw", ctx, dom)
	return b.Executor.Thaw(ctx, dom)
}

func (b broken) Resume(ctx ctxT, dom domT) error {
	ctx, dom = b.in("Resume", ctx, dom)
	if b.nothing == "Resume" {
		return nil
	}
	return b.Executor.Resume(ctx, dom)
}

func (b broken) Definition(ctx ctxT, dom domT, opts kvmbackup.DefinitionOptions) (kvmbackup.Definition, error) {
	ctx, dom = b.in("Definition", ctx, dom)
	d, err := b.Executor.Definition(ctx, dom, opts)
	if b.define != nil {
		b.define(&d)
	}
	return d, err
}

type brokenJob struct {
	kvmbackup.Job
	b    broken
	dom  domT
	spec specT
}

func (j brokenJob) Begin(ctx ctxT) error {
	ctx, _ = j.b.in("Begin", ctx, j.dom)
	err := j.b.out("Begin", j.Job.Begin(ctx))
	if err == nil && j.b.begun != nil {
		err = j.b.begun(j.b.Executor, ctx, j.dom, j.spec)
	}
	return err
}

func (j brokenJob) Wait(ctx ctxT, progress func(kvmbackup.JobProgress)) (kvmbackup.JobResult, error) {
	ctx, _ = j.b.in("Wait", ctx, j.dom)
	if j.b.silent {
		progress = nil
	}
	r, err := j.Job.Wait(ctx, progress)
	if j.b.result != nil {
		j.b.result(&r)
	}
	return r, j.b.out("Wait", err)
}

func (j brokenJob) Abort(ctx ctxT) error {
	if j.b.nothing == "Abort" {
		return nil
	}
	return j.b.out("Abort", j.Job.Abort(ctx))
}

func (j brokenJob) SetBandwidth(ctx ctxT, n int64) error {
	return j.b.out("SetBandwidth", j.Job.SetBandwidth(ctx, n))
}

var errBroken = errors.New("broken")

// deaf doesn't hear that a method's context has ended.
func deaf(method string) broken {
	return broken{before: func(m string, ctx ctxT, dom domT) (ctxT, domT) {
		if m == method {
			ctx = context.WithoutCancel(ctx)
		}
		return ctx, dom
	}}
}

// answers gives a method another error; nil hides the one it has.
func answers(method string, with error) broken {
	return broken{after: func(m string, err error) error {
		if m == method {
			return with
		}
		return err
	}}
}

// sees falsifies what Inspect says.
func sees(f func(*kvmbackup.DomainStatus)) broken {
	return broken{inspect: func(st *kvmbackup.DomainStatus, err error) error { f(st); return err }}
}

// calls changes the reference of each call.
func calls(f func(*domT)) broken {
	return broken{before: func(_ string, ctx ctxT, dom domT) (ctxT, domT) { f(&dom); return ctx, dom }}
}

func volume(f func(*kvmbackup.JobVolume)) broken {
	return broken{spec: func(s *specT) { v := s.Volumes[0]; f(&v); s.Volumes = []kvmbackup.JobVolume{v} }}
}

// breakers are the broken executors, by the rule that must notice.
func breakers() map[string]broken {
	idle := func(method string) broken { return broken{nothing: method} }
	all := map[string]broken{
		"inspect/unknown":    {inspect: func(*kvmbackup.DomainStatus, error) error { return nil }},
		"inspect/other-uuid": calls(func(d *domT) { d.UUID = "" }),
		"inspect/state":      sees(func(st *kvmbackup.DomainStatus) { st.State = kvmbackup.DomainRunning }),
		"inspect/described":  calls(func(d *domT) { d.Disks = nil }),
		"inspect/disks":      sees(func(st *kvmbackup.DomainStatus) { st.Disks[0].Format = "raw" }),
		"inspect/job":        sees(func(st *kvmbackup.DomainStatus) { st.Job = kvmbackup.JobNone }),

		"checkpoint/created": {begun: func(e kvmbackup.Executor, ctx ctxT, dom domT, s specT) error {
			return e.DropCheckpoint(ctx, dom, s.Checkpoint)
		}},
		"checkpoint/drop":             idle("DropCheckpoint"),
		"checkpoint/drop-stopped":     idle("DropCheckpoint"),
		"checkpoint/register":         idle("RegisterCheckpoint"),
		"checkpoint/register-missing": idle("RegisterCheckpoint"),
		"checkpoint/register-stopped": answers("RegisterCheckpoint", errBroken),

		"bytes/dirty": {figures: func(n map[string]int64) { n["sda"] = 0 }},
		"bytes/held":  {figures: func(n map[string]int64) { n["vda"] = 0 }},

		"job/full":            {result: func(r *kvmbackup.JobResult) { r.TotalBytes = 0 }},
		"job/incremental":     volume(func(v *kvmbackup.JobVolume) { v.Kind, v.ParentFile = kvmbackup.KindFull, "" }),
		"job/stopped":         calls(func(d *domT) { d.Name += "-not" }),
		"job/compressed-push": volume(func(v *kvmbackup.JobVolume) { v.Compression = "" }),
		"job/untracked":       {spec: func(s *specT) { s.Checkpoint, s.Volumes[0].Tracked = "kvmbackup-always", true }},
		"job/unbegun":         idle("waiting for Begin"),
		"job/busy":            answers("Begin", nil),
		"job/resized":         answers("Begin", nil),
		"job/other-disk":      volume(func(v *kvmbackup.JobVolume) { v.Source = "" }),
		"job/name-taken":      answers("Begin", nil),
		"job/progress":        {silent: true},
		"job/wait-ends":       deaf("Wait"),
		"job/abort":           idle("Abort"),
		"job/abort-ended":     answers("Abort", errBroken),
		"job/bandwidth":       answers("SetBandwidth", errBroken),
		"job/killed":          answers("Wait", nil),

		"adopt/none":      answers("AdoptJob", nil),
		"adopt/running":   answers("AdoptJob", kvmbackup.ErrNoJob),
		"adopt/elsewhere": answers("AdoptJob", nil),

		"guest/no-agent":   answers("Freeze", nil),
		"guest/agent":      {frozen: func(n *int) { *n = 0 }},
		"guest/resume":     idle("Resume"),
		"guest/definition": {define: func(d *kvmbackup.Definition) { d.XML = nil }},

		"history/everyday": idle("DropCheckpoint"),
	}
	for rule, method := range map[string]string{
		"inspect": "Inspect", "register-checkpoint": "RegisterCheckpoint", "drop-checkpoint": "DropCheckpoint",
		"dirty-bytes": "DirtyBytes", "held-bytes": "HeldBytes", "prepare-job": "PrepareJob", "adopt-job": "AdoptJob",
		"freeze": "Freeze", "thaw": "Thaw", "resume": "Resume", "definition": "Definition", "begin": "Begin",
	} {
		all["context/"+rule] = deaf(method)
	}
	return all
}
