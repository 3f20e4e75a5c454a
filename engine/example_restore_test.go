package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// One volume of a backup as a raw file.
func ExampleEngine_Restore() {
	d := newDemo()
	defer d.close()
	b := d.night()
	restored, err := d.Restore(context.Background(), engine.RestoreRequest{
		Backup:  b.ID,
		Dir:     filepath.Join(d.dir, "restored"),
		Format:  qcow2.FormatRaw,
		Volumes: []engine.RestoreVolume{{ID: "data"}},
	})
	must(err)
	file := restored.Volumes[0].Path
	has, err := kvmbackuptest.ReadRaw(file)
	must(err)
	now, err := d.hypervisor.Content("web1", "vdb")
	must(err)
	fmt.Println(filepath.Base(file), has.Equal(now))
	// Output:
	// vdb.data.raw true
}

// Over the disks of the VM itself, which has to be off.
func ExampleEngine_Restore_inPlace() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	first := d.night()
	then, err := d.hypervisor.Content("web1", "vda")
	must(err)
	d.night()

	req := engine.RestoreRequest{Backup: first.ID, InPlace: &engine.InPlace{Volumes: d.request().Volumes}}
	_, err = d.Restore(ctx, req)
	fmt.Println(kvmbackup.Code(err))
	must(d.hypervisor.Shutdown("web1"))
	_, err = d.Restore(ctx, req)
	must(err)
	must(d.hypervisor.Start("web1"))
	now, err := d.hypervisor.Content("web1", "vda")
	must(err)
	fmt.Println(now.Equal(then))
	// Output:
	// domain-running
	// true
}

// With digests, a verification finds also what leaves an image's structure sound.
func ExampleEngine_Verify() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	b := d.night()
	must(d.AddDigests(ctx, b.ID)) // or BackupRequest.Digests
	report, err := d.Verify(ctx, b.ID, engine.VerifyOptions{Content: true})
	must(err)
	fmt.Println("whole:", report.OK(), report.Files, "files,", report.Digests, "digests")

	file := d.config.Repository.FilePath(b.Path, b.Volumes[0].File)
	info, err := os.Stat(file)
	must(err)
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	must(err)
	_, err = f.WriteAt([]byte("?"), info.Size()-kvmbackuptest.ClusterBytes)
	must(errors.Join(err, f.Close()))
	report, err = d.Verify(ctx, b.ID, engine.VerifyOptions{Content: true})
	fmt.Println("whole:", report.OK(), kvmbackup.Code(err), report.Problems[0].Code)
	// Output:
	// whole: true 2 files, 4 digests
	// whole: false damaged content
}

// Digests of a backup that was taken without.
func ExampleEngine_AddDigests() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	b := d.night()
	report, err := d.Verify(ctx, b.ID, engine.VerifyOptions{Content: true})
	must(err)
	fmt.Println("nothing to compare with:", report.NoDigests)
	must(d.AddDigests(ctx, b.ID))
	report, err = d.Verify(ctx, b.ID, engine.VerifyOptions{Content: true})
	must(err)
	fmt.Println(report.Digests)
	// Output:
	// nothing to compare with: true
	// 4
}

// A restore point that a guest runs from while it is copied elsewhere. Nothing is copied to open it.
func ExampleEngine_Open() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	b := d.night()
	opened, err := d.Open(ctx, engine.OpenRequest{
		Backup: b.ID, Dir: filepath.Join(d.dir, "restored"), Purpose: "look at last night",
	})
	must(err)
	for _, v := range opened.Volumes {
		fmt.Println(v.Device, filepath.Base(v.Path))
	}
	_, err = d.Delete(ctx, b.ID, kvmbackup.DeleteOptions{})
	must(err)
	held, err := d.Get(ctx, b.ID)
	must(err)
	fmt.Println(held.Status, "while held to", held.Holds[0].Purpose)
	must(opened.Close(ctx)) // and what waited for it goes
	_, err = d.Get(ctx, b.ID)
	fmt.Println(kvmbackup.Code(err))
	// Output:
	// vda vda.root.overlay.qcow2
	// vdb vdb.data.overlay.qcow2
	// delete-pending while held to look at last night
	// no-backup
}

// The host's process has died while a restore point was open. Its hold is on record.
func ExampleEngine_CloseRestorePoint() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	b := d.night()
	_, err := d.Open(ctx, engine.OpenRequest{Backup: b.ID, Dir: filepath.Join(d.dir, "restored"), Purpose: "test restore"})
	must(err)
	d.start()
	b, err = d.Get(ctx, b.ID)
	must(err)
	for _, hold := range b.Holds {
		must(d.CloseRestorePoint(ctx, b.ID, hold.ID))
	}
	b, err = d.Get(ctx, b.ID)
	must(err)
	fmt.Println(len(b.Holds))
	// Output:
	// 0
}

// The engine serves a volume over NBD, for programs that take single files out of it: guestmount, for instance.
func ExampleEngine_Browse() {
	d := newDemo()
	defer d.close()
	browsed, err := d.Browse(context.Background(), d.night().ID, "data", filepath.Join(d.dir, "socket"))
	must(err)
	client, err := net.Dial("unix", browsed.Socket)
	must(err)
	greeting := make([]byte, 8)
	_, err = io.ReadFull(client, greeting)
	must(err)
	fmt.Printf("%s\n", greeting)
	must(client.Close())
	must(browsed.Close(context.Background()))
	// Output:
	// NBDMAGIC
}

// A script to keep beside the backups, for the day on which nothing else is left.
func ExampleEngine_Recipe() {
	d := newDemo()
	defer d.close()
	d.night()
	script, err := d.Recipe(context.Background(), d.night().ID)
	must(err)
	fmt.Print(script)
	// Output:
	// # Restores backup 2026.11.25.22.00.00 of web1. Run it with bash in the VM's folder of the repository.
	// set -eu
	// umask 077
	// out=${1:?where to}
	//
	// # The disk vda: root.
	// qemu-img convert -W -m 16 -f qcow2 -O qcow2 2026.11.25.22.00.00/root.root.qcow2 "$out/"vda.qcow2
	//
	// # The disk vdb: data.
	// qemu-img convert -W -m 16 -f qcow2 -O qcow2 2026.11.25.22.00.00/datadisk.data.qcow2 "$out/"vdb.qcow2
}

// A backup that another stands on is marked, and goes with its last child.
func ExampleEngine_Delete() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	full, inc := d.night(), d.night()
	plan, err := d.Delete(ctx, full.ID, kvmbackup.DeleteOptions{})
	must(err)
	fmt.Println("removed:", len(plan.Remove), "waiting:", len(plan.Pending))
	plan, err = d.Delete(ctx, inc.ID, kvmbackup.DeleteOptions{})
	must(err)
	fmt.Println("removed:", len(plan.Remove), "waiting:", len(plan.Pending))
	// Output:
	// removed: 0 waiting: 1
	// removed: 2 waiting: 0
}

// A plan says what Delete would do, and changes nothing.
func ExampleEngine_PlanDelete() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	full := d.night()
	d.night()
	plan, err := d.PlanDelete(ctx, full.ID, kvmbackup.DeleteOptions{})
	must(err)
	fmt.Println("now:", plan.FreeBytes, "later:", plan.LaterBytes == full.StoredBytes())
	plan, err = d.PlanDelete(ctx, full.ID, kvmbackup.DeleteOptions{Subtree: true})
	must(err)
	fmt.Println("with its subtree:", len(plan.Remove), "the next is full:", plan.ClearsActive)
	// Output:
	// now: 0 later: true
	// with its subtree: 2 the next is full: true
}

// The backups of the last two days stay. What they stand on waits for them.
func ExampleEngine_Retain() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	for range 3 {
		d.night()
	}
	plan, err := d.Retain(ctx, web1, kvmbackup.RetentionPolicy{Daily: 2})
	must(err)
	for _, b := range plan.Backups {
		fmt.Println(b.Backup.Path, b.Backup.Kind, b.Action, b.KeptBy)
	}
	// Output:
	// web1/2026.11.26.22.00.00 incremental keep [daily]
	// web1/2026.11.25.22.00.00 incremental keep [daily]
	// web1/2026.11.24.22.00.00 full pending []
}

// A dry run: it changes nothing.
func ExampleEngine_PlanRetain() {
	d := newDemo()
	defer d.close()
	d.night()
	d.night()
	plan, err := d.PlanRetain(context.Background(), web1, kvmbackup.RetentionPolicy{Last: 1})
	must(err)
	fmt.Println("now:", len(plan.RemoveNow), "once nothing needs them:", len(plan.Pending))
	// Output:
	// now: 0 once nothing needs them: 1
}

// A pinned backup stays, whatever the policy.
func ExampleEngine_Pin() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	full := d.night()
	d.night()
	must(d.Pin(ctx, full.ID))
	_, err := d.Retain(ctx, web1, kvmbackup.RetentionPolicy{Last: 1})
	must(err)
	full, err = d.Get(ctx, full.ID)
	must(err)
	fmt.Println(full.Status)
	// Output:
	// completed
}

func ExampleEngine_Unpin() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	b := d.night()
	must(d.Pin(ctx, b.ID))
	must(d.Unpin(ctx, b.ID))
	b, err := d.Get(ctx, b.ID)
	must(err)
	fmt.Println(b.Pinned)
	// Output:
	// false
}

// A user's quota gets back what a removed backup was charged with, once, whatever dies in between.
func ExampleEngine_Accounting() {
	ctx := context.Background()
	d := newDemo()
	defer d.close()
	b := d.night()
	quota := b.StoredBytes()
	_, err := d.Delete(ctx, b.ID, kvmbackup.DeleteOptions{})
	must(err)
	for range 2 { // the second call finds nothing
		must(d.Accounting(ctx, func(r kvmbackup.Removal) error {
			quota -= r.Bytes
			return nil
		}))
	}
	fmt.Println(quota)
	// Output:
	// 0
}
