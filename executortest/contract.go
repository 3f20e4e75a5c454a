package executortest

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/kvmbackup/kvmbackup"
)

func contractRules() []Rule {
	return slices.Concat(inspectRules, checkpointRules, bytesRules, jobRules, adoptRules, guestRules, contextRules())
}

var inspectRules = []Rule{
	rule("inspect/unknown", "Inspect is an ErrNoDomain for a name that the hypervisor doesn't know and nobody "+
		"describes.", func(r *run) {
		r.make(Domain{})
		_, err := r.exec.Inspect(r.ctx, kvmbackup.DomainRef{Name: r.ref.Name + "-not"})
		r.want(err, "Inspect of an unknown domain", kvmbackup.ErrNoDomain)
	}),
	rule("inspect/other-uuid", "Inspect is an ErrNoDomain where the reference has another UUID: the name was given "+
		"again.", func(r *run) {
		r.make(Domain{})
		_, err := r.exec.Inspect(r.ctx, kvmbackup.DomainRef{Name: r.ref.Name, UUID: "00000000-0000-4000-8000-000000000001"})
		r.want(err, "Inspect under another UUID", kvmbackup.ErrNoDomain)
	}),
	rule("inspect/state", "Inspect tells a paused domain from a running and a stopped one.", func(r *run) {
		r.make(Domain{})
		state := func(want kvmbackup.DomainState) {
			if st := r.inspect(); st.State != want || !st.Defined || !st.Persistent || st.Job != kvmbackup.JobNone {
				r.fatalf("the domain is %v, defined %v, persistent %v, job %v; want %v, a defined, persistent one without a job",
					st.State, st.Defined, st.Persistent, st.Job, want)
			}
		}
		state(kvmbackup.DomainPaused)
		must(r.Resume())
		state(kvmbackup.DomainRunning)
		must(r.Stop())
		state(kvmbackup.DomainStopped)
	}),
	rule("inspect/described", "A domain that is off and not defined is what its reference describes, with the "+
		"bitmaps of its images.", func(r *run) {
		r.make(Domain{Transient: true})
		spec := r.full()
		must(r.Stop())
		if st := r.inspect(); st.Defined || st.State != kvmbackup.DomainStopped || len(st.Disks) != 2 {
			r.fatalf("got defined %v, %v, %d disks", st.Defined, st.State, len(st.Disks))
		}
		r.bitmap("vda", spec.Checkpoint, kvmbackup.BitmapUsable)
	}),
	rule("inspect/disks", "Inspect has each disk's source, format and size.", func(r *run) {
		r.make(Domain{})
		source, err := r.Source("vda")
		must(err)
		if d := r.disk("vda"); d.Source != source || d.Format != "qcow2" || d.VirtualSize != r.size || d.Skip != "" ||
			d.Untrackable != "" {
			r.fatalf("got %+v", d)
		}
	}),
	rule("inspect/job", "Inspect tells of a backup job, and doesn't wait for it.", func(r *run) {
		r.onLargeDisks()
		r.make(Domain{})
		spec, j := r.slow()
		if st := r.inspect(); st.Job != kvmbackup.JobBackup || st.JobDetail == "" {
			r.fatalf("got %v, %q", st.Job, st.JobDetail)
		}
		r.abort(spec, j)
	}),
}

var checkpointRules = []Rule{
	rule("checkpoint/created", "A job makes its checkpoint, with a persistent bitmap on each volume that it tracks "+
		"and on no other.", func(r *run) {
		r.make(Domain{})
		spec := r.full()
		if !r.listed(spec.Checkpoint) {
			r.fatalf("the checkpoint isn't listed")
		}
		r.bitmap("vda", spec.Checkpoint, kvmbackup.BitmapUsable)
		r.bitmap("sda", spec.Checkpoint, kvmbackup.BitmapMissing)
	}),
	rule("checkpoint/drop", "DropCheckpoint removes the checkpoint and its bitmaps, and no other; a second time "+
		"there is nothing to do.", func(r *run) {
		r.make(Domain{})
		first, second := r.full(), r.full()
		for range 2 {
			r.want(r.exec.DropCheckpoint(r.ctx, r.ref, first.Checkpoint), "DropCheckpoint")
			r.noJob(first)
			r.bitmap("vda", second.Checkpoint, kvmbackup.BitmapUsable)
		}
		r.take(on(second, r.spec()))
	}),
	rule("checkpoint/drop-stopped", "DropCheckpoint removes the bitmaps of a stopped domain's images.", func(r *run) {
		r.make(Domain{})
		spec := r.full()
		must(r.Stop())
		r.want(r.exec.DropCheckpoint(r.ctx, r.ref, spec.Checkpoint), "DropCheckpoint")
		r.bitmap("vda", spec.Checkpoint, kvmbackup.BitmapMissing)
	}),
	rule("checkpoint/register", "RegisterCheckpoint makes known again what the hypervisor forgot and the images "+
		"have: an incremental can start from it.", func(r *run) {
		r.make(Domain{Transient: true})
		parent := r.full()
		must(r.Stop())
		must(r.Start())
		if r.listed(parent.Checkpoint) {
			r.fatalf("a transient domain's checkpoint outlived its end")
		}
		r.want(r.exec.RegisterCheckpoint(r.ctx, r.ref, kvmbackup.CheckpointSpec{Name: parent.Checkpoint,
			CreatedAt: parent.CreatedAt, Devices: []string{"vda"}}), "RegisterCheckpoint")
		must(r.Write("vda", 0x33, cluster, cluster))
		spec := on(parent, r.spec())
		r.take(spec)
		r.holds(spec, 0x11, 0x33, 0)
	}),
	rule("checkpoint/register-missing", "RegisterCheckpoint is an ErrCheckpointInconsistent where a device doesn't "+
		"have the bitmap.", func(r *run) {
		r.make(Domain{})
		err := r.exec.RegisterCheckpoint(r.ctx, r.ref, kvmbackup.CheckpointSpec{Name: "kvmbackup-none",
			Devices: []string{"vda"}})
		r.want(err, "RegisterCheckpoint without a bitmap", kvmbackup.ErrCheckpointInconsistent)
	}),
	rule("checkpoint/register-stopped", "RegisterCheckpoint does nothing on a stopped domain.", func(r *run) {
		r.make(Domain{})
		parent := r.full()
		must(r.Stop())
		r.want(r.exec.RegisterCheckpoint(r.ctx, r.ref, kvmbackup.CheckpointSpec{Name: parent.Checkpoint,
			Devices: []string{"vda"}}), "RegisterCheckpoint")
	}),
}

var bytesRules = []Rule{
	rule("bytes/dirty", "DirtyBytes is what was written since the checkpoint, and leaves out the devices without its "+
		"bitmap.", func(r *run) {
		r.make(Domain{})
		spec := r.full()
		must(r.Write("vda", 0x33, 3*cluster, 2*cluster))
		dirty, err := r.exec.DirtyBytes(r.ctx, r.ref, spec.Checkpoint)
		r.want(err, "DirtyBytes")
		if _, other := dirty["sda"]; other || dirty["vda"] != 2*cluster {
			r.fatalf("got %v, want 2 clusters of vda", dirty)
		}
	}),
	rule("bytes/held", "HeldBytes is at least what a full of each named device copies; the image's own tables may "+
		"count too.", func(r *run) {
		r.size = 64 * cluster
		r.make(Domain{})
		held, err := r.exec.HeldBytes(r.ctx, r.ref, []string{"vda"})
		r.want(err, "HeldBytes")
		if _, other := held["sda"]; other || held["vda"] < 2*cluster || held["vda"] > 10*cluster {
			r.fatalf("got %v, want 2 clusters of vda, and at most 8 of tables", held)
		}
	}),
}

var jobRules = []Rule{
	rule("job/full", "A full has what the disk had when the job began, and says how much it copied.", func(r *run) {
		r.make(Domain{})
		spec := r.spec()
		if result := r.take(spec); result.TotalBytes <= 0 {
			r.fatalf("got %+v", result)
		}
		r.holds(spec, 0x11, 0x11, 0)
		if st := r.inspect(); st.Job != kvmbackup.JobNone {
			r.fatalf("after Wait there is still a job: %v", st.Job)
		}
	}),
	rule("job/incremental", "An incremental has what changed since its base, on its parent's file.", func(r *run) {
		r.make(Domain{})
		parent := r.full()
		must(r.Write("vda", 0x33, cluster, cluster))
		spec := on(parent, r.spec())
		if result := r.take(spec); result.TotalBytes != cluster {
			r.fatalf("copied %d bytes, want one cluster", result.TotalBytes)
		}
		r.holds(spec, 0x11, 0x33, 0)
	}),
	rule("job/stopped", "A stopped domain's job is the same: a full, and an incremental that starts from its bitmap.",
		func(r *run) {
			r.make(Domain{})
			must(r.Stop())
			parent := r.full()
			must(r.Start())
			must(r.Write("vda", 0x33, cluster, cluster))
			must(r.Stop())
			spec := on(parent, r.spec())
			r.take(spec)
			r.holds(spec, 0x11, 0x33, 0)
		}),
	rule("job/compressed-push", "A push that is to be compressed is an ErrUnsupported, and not copied as it is: the "+
		"domain may have been started since it was decided.", func(r *run) {
		r.make(Domain{})
		spec := r.spec()
		spec.Transfer, spec.Volumes[0].Compression = kvmbackup.TransferOffline, kvmbackup.CompressionZstd
		_, err := r.exec.PrepareJob(r.ctx, r.ref, spec)
		r.want(err, "PrepareJob of a compressed push", kvmbackup.ErrUnsupported)
	}),
	rule("job/untracked", "A job without a checkpoint leaves none.", func(r *run) {
		r.make(Domain{})
		spec := r.spec()
		spec.Checkpoint, spec.Volumes[0].Tracked = "", false
		r.take(spec)
		if names := r.inspect().CheckpointNames(); len(names) > 0 {
			r.fatalf("there are %q", names)
		}
	}),
	rule("job/unbegun", "A job that is closed without Begin leaves nothing on the domain.", func(r *run) {
		r.make(Domain{})
		spec := r.spec()
		j := r.prepare(spec)
		r.want(j.Close(r.ctx), "Close")
		r.want(j.Close(r.ctx), "Close again")
		r.noJob(spec)
	}),
	rule("job/busy", "Begin is an ErrBusy at once while the domain has another job, which goes on.", func(r *run) {
		r.onLargeDisks()
		r.make(Domain{})
		first, running := r.slow()
		second := r.spec()
		j := r.prepare(second)
		r.want(j.Begin(r.ctx), "Begin beside another job", kvmbackup.ErrBusy)
		r.want(j.Close(r.ctx), "Close")
		if st := r.inspect(); st.Job != kvmbackup.JobBackup ||
			slices.Contains(st.CheckpointNames(), string(second.Checkpoint)) {
			r.fatalf("afterwards the domain has job %v and checkpoints %q", st.Job, st.CheckpointNames())
		}
		r.abort(first, running)
	}),
	rule("job/resized", "Begin is an ErrBusy when a disk has another size than the spec says, and leaves nothing.",
		func(r *run) {
			r.make(Domain{})
			spec := r.spec()
			must(r.World.(Grower).Grow("vda", r.size+cluster))
			j := r.prepare(spec)
			r.want(j.Begin(r.ctx), "Begin on a resized disk", kvmbackup.ErrBusy)
			r.want(j.Close(r.ctx), "Close")
			r.noJob(spec)
		}, canGrow),
	rule("job/other-disk", "Begin is an ErrNoVolume when a device has another disk than Inspect found, and leaves "+
		"nothing.", func(r *run) {
		r.make(Domain{})
		spec := r.spec()
		spec.Volumes[0].Source += "-other"
		j := r.prepare(spec)
		r.want(j.Begin(r.ctx), "Begin on another disk", kvmbackup.ErrNoVolume)
		r.want(j.Close(r.ctx), "Close")
		r.noJob(spec)
	}),
	rule("job/name-taken", "Begin is an ErrCheckpointExists when the checkpoint's name is taken.", func(r *run) {
		r.make(Domain{})
		first := r.full()
		spec := r.spec()
		spec.Checkpoint = first.Checkpoint
		j := r.prepare(spec)
		r.want(j.Begin(r.ctx), "Begin with a name that is taken", kvmbackup.ErrCheckpointExists)
		r.want(j.Close(r.ctx), "Close")
		r.bitmap("vda", first.Checkpoint, kvmbackup.BitmapUsable)
	}),
	rule("job/progress", "Wait tells its progress, by volume.", func(r *run) {
		r.make(Domain{})
		j := r.begin(r.spec())
		var last kvmbackup.JobProgress
		_, err := j.Wait(r.ctx, func(p kvmbackup.JobProgress) { last = p })
		r.want(err, "Wait")
		if last.TotalBytes <= 0 || len(last.Volumes) != 1 || last.Volumes[0].Device != "vda" ||
			last.Volumes[0].VolumeID != "vol-vda" {
			r.fatalf("the last progress is %+v", last)
		}
		r.want(j.Close(r.ctx), "Close")
	}),
	rule("job/wait-ends", "When the context of Wait ends it returns with the cause and leaves the job running; a "+
		"pull ends with its reader.", func(r *run) {
		r.onLargeDisks()
		r.make(Domain{})
		spec, j := r.slow()
		ctx, cancel := context.WithCancelCause(r.ctx)
		_, err := j.Wait(ctx, func(kvmbackup.JobProgress) { cancel(errEnough) })
		r.want(err, "Wait that is ended", errEnough)
		if st := r.inspect(); st.Job != kvmbackup.JobBackup && r.room == "" {
			r.fatalf("afterwards the domain's job is %v", st.Job)
		}
		r.abort(spec, j)
		r.noJob(spec)
	}),
	rule("job/abort", "Abort ends the job and leaves its checkpoint; the parent's bitmap has lost nothing.", func(r *run) {
		r.onLargeDisks()
		r.make(Domain{})
		parent := r.full()
		must(r.Write("vda", 0x33, cluster, cluster))
		spec, j := r.slow()
		r.want(j.Abort(r.ctx), "Abort")
		if st := r.inspect(); st.Job != kvmbackup.JobNone {
			r.fatalf("after Abort the job is %v", st.Job)
		}
		r.bitmap("vda", spec.Checkpoint, kvmbackup.BitmapUsable)
		r.abort(spec, j)
		next := on(parent, r.spec())
		r.take(next)
		r.holds(next, 0x11, 0x33, 0)
	}),
	rule("job/abort-ended", "Abort of a job that has ended is no error.", func(r *run) {
		r.make(Domain{})
		j := r.begin(r.spec())
		_, err := j.Wait(r.ctx, nil)
		r.want(err, "Wait")
		r.want(j.Abort(r.ctx), "Abort after the end")
		r.want(j.Close(r.ctx), "Close")
	}),
	rule("job/bandwidth", "SetBandwidth with 0 lifts the limit of a running job.", func(r *run) {
		r.onLargeDisks()
		r.make(Domain{})
		spec, j := r.slow()
		r.want(j.SetBandwidth(r.ctx, 0), "SetBandwidth")
		_, err := j.Wait(r.ctx, nil)
		r.want(err, "Wait")
		r.want(j.Close(r.ctx), "Close")
		r.holds(spec, 0x11, 0x11, 0)
	}),
	rule("job/killed", "When the domain's process is killed in mid-job Wait is an ErrJobFailed: success is proved or "+
		"isn't.", func(r *run) {
		r.onLargeDisks()
		r.make(Domain{})
		_, j := r.slow()
		must(r.Kill())
		_, err := j.Wait(r.ctx, nil)
		r.want(err, "Wait of a job whose QEMU was killed", kvmbackup.ErrJobFailed)
		r.want(j.Close(r.ctx), "Close")
	}),
}

var adoptRules = []Rule{
	rule("adopt/none", "AdoptJob is an ErrNoJob when the domain has no job.", func(r *run) {
		r.make(Domain{})
		_, err := r.exec.AdoptJob(r.ctx, r.ref, r.spec())
		r.want(err, "AdoptJob without a job", kvmbackup.ErrNoJob)
	}),
	rule("adopt/running", "AdoptJob finds by its spec the running job that a process had begun which is gone, and "+
		"follows it to its proved end; "+
		"a pull has ended with its reader.", func(r *run) {
		r.onLargeDisks()
		r.make(Domain{})
		spec, j := r.slow()
		r.want(j.Close(r.ctx), "Close")
		adopted, err := r.exec.AdoptJob(r.ctx, r.ref, spec)
		if r.room != "" {
			r.want(err, "AdoptJob", kvmbackup.ErrNoJob)
			return
		}
		r.want(err, "AdoptJob")
		r.want(adopted.SetBandwidth(r.ctx, 0), "SetBandwidth")
		_, err = adopted.Wait(r.ctx, nil)
		r.want(err, "Wait")
		r.want(adopted.Close(r.ctx), "Close")
		r.holds(spec, 0x11, 0x11, 0)
	}),
	rule("adopt/elsewhere", "AdoptJob is an ErrNoJob when the domain's job writes elsewhere.", func(r *run) {
		r.onLargeDisks()
		r.make(Domain{})
		spec, j := r.slow()
		_, err := r.exec.AdoptJob(r.ctx, r.ref, r.spec())
		r.want(err, "AdoptJob of another job", kvmbackup.ErrNoJob)
		r.abort(spec, j)
	}),
}

var guestRules = []Rule{
	rule("guest/no-agent", "Freeze is an ErrNoAgent without an agent; Thaw of a domain that is off is no error.",
		func(r *run) {
			r.make(Domain{})
			must(r.Resume())
			_, err := r.exec.Freeze(r.ctx, r.ref)
			r.want(err, "Freeze", kvmbackup.ErrNoAgent)
			must(r.Stop())
			r.want(r.exec.Thaw(r.ctx, r.ref), "Thaw")
		}),
	rule("guest/agent", "Freeze says how many file systems it froze; Thaw undoes it, and what isn't frozen is thawed "+
		"without an error.", func(r *run) {
		var err error
		r.ref.Name, err = r.World.(AgentSwitch).MakeWithAgent(Domain{Disks: []Disk{{"vda", 1 << 30}}})
		must(err)
		for range 2 {
			n, err := r.exec.Freeze(r.ctx, r.ref)
			r.want(err, "Freeze")
			if n < 1 {
				r.fatalf("froze %d file systems", n)
			}
			r.want(r.exec.Thaw(r.ctx, r.ref), "Thaw")
			r.want(r.exec.Thaw(r.ctx, r.ref), "Thaw again")
		}
		must(r.Pause())
		_, err = r.exec.Freeze(r.ctx, r.ref)
		r.want(err, "Freeze of a paused domain", kvmbackup.ErrDomainStopped)
		r.want(r.exec.Thaw(r.ctx, r.ref), "Thaw of a paused domain", kvmbackup.ErrDomainStopped)
	}, canAgent),
	rule("guest/resume", "Resume lets a paused guest run on.", func(r *run) {
		r.make(Domain{})
		r.want(r.exec.Resume(r.ctx, r.ref), "Resume")
		if st := r.inspect(); st.State != kvmbackup.DomainRunning {
			r.fatalf("it is %v", st.State)
		}
	}),
	rule("guest/definition", "Definition has the domain's XML, and none for a domain that isn't defined.", func(r *run) {
		r.make(Domain{Transient: true})
		d, err := r.exec.Definition(r.ctx, r.ref, kvmbackup.DefinitionOptions{})
		r.want(err, "Definition")
		if !bytes.Contains(d.XML, []byte(r.ref.Name)) {
			r.fatalf("the XML doesn't name the domain: %.80q", d.XML)
		}
		must(r.Stop())
		d, err = r.exec.Definition(r.ctx, r.ref, kvmbackup.DefinitionOptions{})
		r.want(err, "Definition of a domain that is gone")
		if d.XML != nil {
			r.fatalf("got XML of a domain that isn't defined: %.80q", d.XML)
		}
	}),
}

var errGone = errors.New("the caller is gone")

// contextRules are one per method.
func contextRules() (rules []Rule) {
	const text = "A context that has ended makes the call return with its cause, and without an effect that can't be " +
		"undone."
	for _, c := range []struct {
		name string
		call func(ctx context.Context, r *run) error
	}{
		{"inspect", func(ctx context.Context, r *run) error { _, err := r.exec.Inspect(ctx, r.ref); return err }},
		{"register-checkpoint", func(ctx context.Context, r *run) error {
			return r.exec.RegisterCheckpoint(ctx, r.ref, kvmbackup.CheckpointSpec{Name: "kvmbackup-1", Devices: []string{"vda"}})
		}},
		{"drop-checkpoint", func(ctx context.Context, r *run) error {
			return r.exec.DropCheckpoint(ctx, r.ref,
				"kvmbackup-1")
		}},
		{"dirty-bytes", func(ctx context.Context, r *run) error {
			_, err := r.exec.DirtyBytes(ctx, r.ref, "kvmbackup-1")
			return err
		}},
		{"held-bytes", func(ctx context.Context, r *run) error {
			_, err := r.exec.HeldBytes(ctx, r.ref, []string{"vda"})
			return err
		}},
		{"prepare-job", func(ctx context.Context, r *run) error {
			_,
				err := r.exec.PrepareJob(ctx, r.ref, r.spec())
			return err
		}},
		{"adopt-job", func(ctx context.Context, r *run) error {
			_,
				err := r.exec.AdoptJob(ctx, r.ref, r.spec())
			return err
		}},
		{"freeze", func(ctx context.Context, r *run) error { _, err := r.exec.Freeze(ctx, r.ref); return err }},
		{"thaw", func(ctx context.Context, r *run) error { return r.exec.Thaw(ctx, r.ref) }},
		{"resume", func(ctx context.Context, r *run) error { return r.exec.Resume(ctx, r.ref) }},
		{"definition", func(ctx context.Context, r *run) error {
			_, err := r.exec.Definition(ctx, r.ref, kvmbackup.DefinitionOptions{})
			return err
		}},
		{"begin", func(ctx context.Context, r *run) error {
			spec := r.spec()
			j := r.prepare(spec)
			err := j.Begin(ctx)
			r.want(j.Close(r.ctx), "Close")
			r.noJob(spec)
			return err
		}},
	} {
		rules = append(rules, rule("context/"+c.name, text, func(r *run) {
			r.make(Domain{})
			ctx, cancel := context.WithCancelCause(r.ctx)
			cancel(errGone)
			r.want(c.call(ctx, r), c.name+" with a context that has ended", errGone)
		}))
	}
	return rules
}
