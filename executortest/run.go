package executortest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// run is one rule of the contract on its way. What is wrong ends it with a panic of failure.
type run struct {
	World
	ctx   context.Context //nolint:containedctx // a run is one call, and ends with it
	exec  kvmbackup.Executor
	ref   kvmbackup.DomainRef
	size  int64 // of each disk
	share string
	room  string // for scratches; empty: jobs go by push
	jobs  int
}

// rule makes one of the contract.
func rule(name, text string, check func(r *run), abilities ...ability) Rule {
	return Rule{Name: name, Text: text, abilities: abilities, check: func(ctx context.Context, w World) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		return caught(func() { check(&run{World: w, ctx: ctx, exec: w.Executor(), size: diskSize}) })
	}}
}

func (r *run) fatalf(format string, args ...any) { panic(failure{fmt.Sprintf(format, args...)}) }

// want ends the rule unless err is one of the targets; without targets unless it is nil.
func (r *run) want(err error, what string, targets ...error) {
	if len(targets) == 0 && err == nil || slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) }) {
		return
	}
	r.fatalf("%s: got the error %v, want %v", what, err, targets)
}

// make makes the domain, with something on its disks: two clusters on vda, one on sda.
func (r *run) make(d Domain) {
	d.Disks = []Disk{{"vda", r.size}, {"sda", r.size}}
	var err error
	r.ref.Name, err = r.Make(d)
	must(err)
	must(r.Write("vda", 0x11, 0, 2*cluster))
	must(r.Write("sda", 0x22, cluster, cluster))
	r.share, err = r.Share()
	must(err)
	r.room, err = scratchOf(r.World)
	must(err)
	if d.Transient {
		r.describe()
	}
}

// scratchOf makes one where the world has them.
func scratchOf(w World) (string, error) {
	p, ok := w.(Puller)
	if !ok {
		return "", nil
	}
	return p.Scratch()
}

// describe has the reference describe the disks.
func (r *run) describe() {
	for _, device := range []string{"vda", "sda"} {
		source, err := r.Source(device)
		must(err)
		r.ref.Disks = append(r.ref.Disks, kvmbackup.DiskRef{Device: device, Source: source, Format: "qcow2"})
	}
}

func (r *run) inspect() kvmbackup.DomainStatus {
	st, err := r.exec.Inspect(r.ctx, r.ref)
	r.want(err, "Inspect")
	return st
}

// disk is what Inspect says of a device.
func (r *run) disk(device string) kvmbackup.DiskStatus {
	for _, d := range r.inspect().Disks {
		if d.Device == device {
			return d
		}
	}
	r.fatalf("Inspect doesn't list %s", device)
	return kvmbackup.DiskStatus{}
}

// spec describes a full of vda, with a checkpoint on it, to a new folder.
func (r *run) spec() kvmbackup.JobSpec {
	r.jobs++
	dir := filepath.Join(r.share, fmt.Sprint(r.jobs))
	must(os.Mkdir(dir, 0o755))
	must(os.Chmod(dir, 0o777))
	d := r.disk("vda")
	spec := kvmbackup.JobSpec{
		ID: kvmbackup.NewBackupID(), Dir: dir, CreatedAt: time.Now().UTC(),
		Checkpoint: kvmbackup.CheckpointName(fmt.Sprintf("kvmbackup-%d", r.jobs)),
		Volumes: []kvmbackup.JobVolume{{
			VolumeID: "vol-vda", Device: "vda", Source: d.Source, Kind: kvmbackup.KindFull, File: "vda.qcow2",
			VirtualSize: d.VirtualSize, Tracked: true,
		}},
	}
	if r.room != "" && r.inspect().State != kvmbackup.DomainStopped {
		spec.Transfer, spec.Scratch = kvmbackup.TransferPull, filepath.Join(r.room, string(spec.ID))
	}
	return spec
}

// on makes a spec the incremental on another one.
func on(parent, spec kvmbackup.JobSpec) kvmbackup.JobSpec {
	spec.Base = parent.Checkpoint
	v := &spec.Volumes[0]
	v.Kind, v.ParentFile = kvmbackup.KindIncremental, "../"+filepath.Base(parent.Dir)+"/"+v.File
	return spec
}

func (r *run) prepare(spec kvmbackup.JobSpec) kvmbackup.Job {
	j, err := r.exec.PrepareJob(r.ctx, r.ref, spec)
	r.want(err, "PrepareJob")
	return j
}

func (r *run) begin(spec kvmbackup.JobSpec) kvmbackup.Job {
	j := r.prepare(spec)
	r.want(j.Begin(r.ctx), "Begin")
	return j
}

// take runs a job to its end.
func (r *run) take(spec kvmbackup.JobSpec) kvmbackup.JobResult {
	j := r.begin(spec)
	result, err := j.Wait(r.ctx, nil)
	r.want(err, "Wait")
	r.want(j.Close(r.ctx), "Close")
	return result
}

// full takes a full, whose checkpoint is then on the domain.
func (r *run) full() kvmbackup.JobSpec {
	spec := r.spec()
	r.take(spec)
	return spec
}

// slow begins a job that doesn't end by itself in the time of a rule.
func (r *run) slow() (kvmbackup.JobSpec, kvmbackup.Job) {
	spec := r.spec()
	spec.BandwidthBytes = cluster
	return spec, r.begin(spec)
}

// onLargeDisks has slow jobs last: a hypervisor may limit a job only when it has begun.
func (r *run) onLargeDisks() { r.size = bigSize }

// abort ends a job and its checkpoint.
func (r *run) abort(spec kvmbackup.JobSpec, j kvmbackup.Job) {
	r.want(j.Abort(r.ctx), "Abort")
	r.want(j.Close(r.ctx), "Close")
	r.want(r.exec.DropCheckpoint(r.ctx, r.ref, spec.Checkpoint), "DropCheckpoint")
}

// noJob wants nothing on the domain that a job leaves.
func (r *run) noJob(spec kvmbackup.JobSpec) {
	st := r.inspect()
	if st.Job != kvmbackup.JobNone {
		r.fatalf("there is a job: %v (%s)", st.Job, st.JobDetail)
	}
	if slices.Contains(st.CheckpointNames(), string(spec.Checkpoint)) {
		r.fatalf("there is the checkpoint %s or a bitmap of it", spec.Checkpoint)
	}
}

// bitmap wants the state of a bitmap on a device.
func (r *run) bitmap(device string, name kvmbackup.CheckpointName, want kvmbackup.BitmapState) {
	if got := r.disk(device).BitmapState(name); got != want {
		r.fatalf("the bitmap %s on %s is %v, want %v", name, device, got, want)
	}
}

// listed says whether the hypervisor lists the checkpoint.
func (r *run) listed(name kvmbackup.CheckpointName) bool {
	return slices.ContainsFunc(r.inspect().Checkpoints, func(c kvmbackup.CheckpointStatus) bool {
		return c.Name == string(name)
	})
}

// holds compares the first clusters of a target, through its chain, with patterns.
func (r *run) holds(spec kvmbackup.JobSpec, patterns ...byte) {
	c, err := kvmbackuptest.ReadChain(filepath.Join(spec.Dir, spec.Volumes[0].File))
	must(err)
	got := make([]byte, len(patterns)*cluster)
	_, err = c.ReadAt(got, 0)
	must(err)
	for n, p := range patterns {
		if !bytes.Equal(got[n*cluster:(n+1)*cluster], bytes.Repeat([]byte{p}, cluster)) {
			r.fatalf("cluster %d of the target isn't what the disk had, %#x throughout", n, p)
		}
	}
}
