package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

// The second backup of a VM copies what has changed since the first.
func ExampleEngine_Backup() {
	d := newDemo()
	defer d.close()
	for range 2 {
		b, err := d.Backup(context.Background(), engine.BackupRequest{
			VM:      web1,
			Volumes: []engine.Volume{{ID: "root", Device: "vda", Root: true}, {ID: "data", Device: "vdb"}},
			Policy:  kvmbackup.Policy{FullEvery: 7},
			Quiesce: engine.QuiesceTry,
		})
		must(err)
		fmt.Printf("%v, %v consistent: %s\n", b.Kind, b.Consistency, b.Reasons[0].Code)
		must(d.hypervisor.Write("web1", "vdb", 0, []byte("new")))
	}
	// Output:
	// full, crash consistent: no-active-checkpoint
	// incremental, crash consistent: incremental
}

// A context that ends cancels. Nothing is left over, and the error has the cause.
func ExampleEngine_Backup_cancel() {
	d := newDemo()
	defer d.close()
	ctx, cancel := context.WithCancelCause(context.Background())
	shutdown := errors.New("the host shuts down")
	req := d.request()
	req.OnJob = func(engine.JobControl) { cancel(shutdown) }
	_, err := d.Backup(ctx, req)
	fmt.Println(kvmbackup.Code(err), errors.Is(err, shutdown))
	var op *kvmbackup.OpError
	fmt.Println(errors.As(err, &op), op.Op, "of", op.VM)
	// Output:
	// interrupted true
	// true backup of web1
}

// The bandwidth of a job can be changed while it runs, from any goroutine.
func ExampleJobControl() {
	d := newDemo()
	defer d.close()
	req := d.request()
	req.BandwidthBytes = 200 << 20
	req.OnJob = func(job engine.JobControl) { must(job.SetBandwidth(20 << 20)) }
	_, err := d.Backup(context.Background(), req)
	fmt.Println(err)
	// Output:
	// <nil>
}

// A plan says what Backup would do, and changes nothing.
func ExampleEngine_Plan() {
	d := newDemo()
	defer d.close()
	d.night()
	plan, err := d.Plan(context.Background(), d.request())
	must(err)
	fmt.Println(plan.Kind, plan.Reasons[0].Code, plan.Blocked)
	for _, v := range plan.Volumes {
		fmt.Println(v.Device, v.Kind, v.Reason.Code)
	}
	// Output:
	// incremental incremental <nil>
	// vda incremental volume-incremental
	// vdb incremental volume-incremental
}

// A manager without a hypervisor plans from what its inventory says.
func ExampleEngine_PlanWith() {
	d := newDemo(func(c *engine.Config) { c.Executor = nil })
	defer d.close()
	plan, err := d.PlanWith(context.Background(), d.request(), kvmbackup.DomainStatus{
		State: kvmbackup.DomainRunning,
		Disks: []kvmbackup.DiskStatus{
			{Device: "vda", Source: "/images/vda.qcow2", Format: "qcow2", VirtualSize: 1 << 30},
			{Device: "vdb", Source: "/images/vdb.qcow2", Format: "qcow2", VirtualSize: 8 << 30},
		},
	})
	must(err)
	fmt.Println(plan.Kind, plan.Reasons[0].Code, plan.Assumed)
	// Output:
	// full no-active-checkpoint [no job runs on the domain]
}

// What can be restored.
func ExampleEngine_List() {
	d := newDemo()
	defer d.close()
	d.night()
	d.night()
	completed := []kvmbackup.Status{kvmbackup.StatusCompleted}
	list, err := d.List(context.Background(), kvmbackup.Query{VM: web1, Statuses: completed})
	must(err)
	for _, b := range list {
		fmt.Println(b.Sequence, b.Kind, b.Path)
	}
	// Output:
	// 1 full web1/2026.11.24.22.00.00
	// 2 incremental web1/2026.11.25.22.00.00
}

// Every record of every VM, in memory that doesn't grow with their number.
func ExampleEngine_All() {
	d := newDemo()
	defer d.close()
	d.night()
	d.night()
	var bytes int64
	for b, err := range d.All(context.Background(), kvmbackup.Query{}) {
		must(err)
		fmt.Println(b.VM, b.Sequence, b.Kind)
		bytes += b.StoredBytes()
	}
	fmt.Println(bytes > 0)
	// Output:
	// web1 1 full
	// web1 2 incremental
	// true
}

func ExampleEngine_Get() {
	d := newDemo()
	defer d.close()
	b, err := d.Get(context.Background(), d.night().ID)
	must(err)
	fmt.Println(b.Status, b.Path)
	// Output:
	// completed web1/2026.11.24.22.00.00
}

func ExampleEngine_Newest() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	_, err := d.Newest(ctx, web1)
	fmt.Println(kvmbackup.Code(err))
	d.night()
	b, err := d.Newest(ctx, web1)
	must(err)
	fmt.Println(b.Path)
	// Output:
	// no-backup
	// web1/2026.11.24.22.00.00
}

// What a backup stands on.
func ExampleEngine_Chain() {
	d := newDemo()
	defer d.close()
	d.night()
	d.night()
	chain, err := d.Chain(context.Background(), d.night().ID)
	must(err)
	for _, b := range chain {
		fmt.Println(b.Position, b.Kind)
	}
	// Output:
	// 0 full
	// 1 incremental
	// 2 incremental
}

// What a process that starts calls first. Its predecessor died while QEMU copied. The job has gone on, and the engine
// follows it to its end.
func ExampleEngine_RecoverAll() {
	d := newDemo()
	defer d.close()
	d.night()
	d.crash()
	vms, err := d.RecoverAll(context.Background())
	must(err)
	for _, r := range vms {
		switch {
		case errors.Is(r.Err, kvmbackup.ErrBusy):
			fmt.Println(r.VM, "is being settled by another process: ask again later")
		default:
			fmt.Println(r.VM, r.Found[0].Outcome, r.Err)
		}
	}
	// Output:
	// web1 followed <nil>
}

// Recover is RecoverAll for one VM, and says more of how to reach it.
func ExampleEngine_Recover() {
	d := newDemo(func(c *engine.Config) { c.AbortLeftJobs = true })
	defer d.close()
	d.crash()
	found, err := d.Recover(context.Background(), engine.Target{VM: web1})
	must(err)
	fmt.Println(len(found), found[0].Outcome)
	// Output:
	// 1 undone
}

// Something has changed a disk behind QEMU's back, such as a rollback of the storage: no bitmap can know.
func ExampleEngine_RequireFull() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	d.night()
	must(d.RequireFull(ctx, engine.Target{VM: web1}))
	b := d.night()
	fmt.Println(b.Kind, b.Reasons[0].Code)
	// Output:
	// full no-active-checkpoint
}

// The feature is switched off: its checkpoints and bitmaps go, the backups stay.
func ExampleEngine_Forget() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	d.night()
	must(d.Forget(ctx, engine.Target{VM: web1}))
	checkpoints, err := d.hypervisor.Checkpoints("web1")
	must(err)
	_, err = d.Newest(ctx, web1)
	fmt.Println(len(checkpoints), err)
	// Output:
	// 0 <nil>
}

// A bitmap was lost. Inspect says so, and what it means for the next backup.
func ExampleEngine_Inspect() {
	d := newDemo()
	defer d.close()
	b := d.night()
	must(d.hypervisor.RemoveBitmap("web1", "vdb", b.Checkpoint.String()))
	diagnosis, err := d.Inspect(context.Background(), d.request().Target())
	must(err)
	fmt.Println("healthy:", diagnosis.Healthy())
	for _, f := range diagnosis.Findings {
		fmt.Println(f.Code, f.Device, f.Effect)
	}
	// Output:
	// healthy: false
	// bitmap-missing vdb volume data is backed up in full
}

// A process died while QEMU copied. Repair settles it, and mends what else is safe to mend.
func ExampleEngine_Repair() {
	ctx := context.Background()
	d := newDemo(func(c *engine.Config) { c.AbortLeftJobs = true })
	defer d.close()
	d.crash()
	before, err := d.Inspect(ctx, d.request().Target())
	must(err)
	after, err := d.Repair(ctx, d.request().Target())
	must(err)
	fmt.Println("healthy before:", before.Healthy(), "after:", after.Healthy())
	// Output:
	// healthy before: false after: true
}

// Several subscribers for one stream of events.
func ExampleTee() {
	steps := 0
	ends := func(e engine.Event) {
		if e.Type == engine.EventCompleted || e.Type == engine.EventFailed {
			fmt.Println(e.Op, e.VM, e.Type)
		}
	}
	d := newDemo(func(c *engine.Config) {
		c.OnEvent = engine.Tee(ends, func(e engine.Event) {
			if e.Type == engine.EventStep {
				steps++
			}
		})
	})
	defer d.close()
	d.night()
	fmt.Println("several steps:", steps > 5)
	// Output:
	// backup web1 completed
	// several steps: true
}

// At most two backups at a time on this host, whatever engine takes them.
func ExampleNewLimiter() {
	two := engine.NewLimiter(2)
	d := newDemo(func(c *engine.Config) { c.HostLimit = two })
	defer d.close()
	fmt.Println(d.night().Status)
	// Output:
	// completed
}

// What a VM was defined as when it was backed up.
func ExampleEngine_Definition() {
	d := newDemo()
	defer d.close()
	def, err := d.Definition(context.Background(), d.night().ID)
	must(err)
	fmt.Println(strings.HasPrefix(string(def.XML), "<domain"))
	// Output:
	// true
}

// The records are lost. The folders have all that is needed to make them again.
func ExampleEngine_Import() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	d.night()
	d.night()
	lost := newDemo(func(c *engine.Config) { c.Repository = d.config.Repository })
	defer lost.close()
	imported, err := lost.Import(ctx, "") // of all VMs
	must(err)
	for _, i := range imported {
		fmt.Println(i.Path, "added:", i.Added)
	}
	// Output:
	// web1/2026.11.24.22.00.00 added: true
	// web1/2026.11.25.22.00.00 added: true
}

// Manifests are written again from the records, such as with pins that were set since.
func ExampleEngine_Export() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	b := d.night()
	must(d.Pin(ctx, b.ID))
	n, err := d.Export(ctx, web1)
	must(err)
	manifest, err := os.ReadFile(d.config.Repository.FilePath(b.Path, "backup.json"))
	must(err)
	fmt.Println(n, strings.Contains(string(manifest), `"pinned": true`))
	// Output:
	// 1 true
}
