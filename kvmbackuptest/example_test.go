package kvmbackuptest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// TestFirst is the package comment's.
func TestFirst(t *testing.T) {
	ctx := t.Context()
	h := kvmbackuptest.NewHypervisor()
	lab.OK(t, h.Define(kvmbackuptest.Domain{
		Name: "vm1", Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 20}},
	}))
	lab.OK(t, h.Start("vm1"))
	lab.OK(t, h.Write("vm1", "vda", 0, []byte("hello")))

	repo, err := repository.Init(ctx, t.TempDir(), repository.Options{NoSync: true})
	lab.OK(t, err)
	eng, err := engine.New(engine.Config{
		Store: memstore.New(), Repository: repo, Executor: h.Executor(), Images: kvmbackuptest.Images{},
	})
	lab.OK(t, err)
	b, err := eng.Backup(ctx, engine.BackupRequest{VM: "vm1"})
	lab.OK(t, err)

	backedUp, err := kvmbackuptest.ReadChain(repo.FilePath(b.Path, b.Volumes[0].File))
	lab.OK(t, err)
	now, err := h.Content("vm1", "vda")
	lab.OK(t, err)
	if !backedUp.Equal(now) {
		t.Error(backedUp.Diff(now))
	}
}

// A VM is backed up three times; the second time only what has changed, and the third time in full, because QEMU
// crashed and lost its bitmap. Then the second backup is compared with what the disk held at its time.
func Example() {
	ctx := context.Background()
	h := kvmbackuptest.NewHypervisor()
	must(h.Define(kvmbackuptest.Domain{Name: "vm1", Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 20}}}))
	must(h.Start("vm1"))
	must(h.Write("vm1", "vda", 0, kvmbackuptest.Pattern(1, 300_000)))

	dir, err := os.MkdirTemp("", "example-")
	must(err)
	defer func() { must(os.RemoveAll(dir)) }()
	repo, err := repository.Init(ctx, dir, repository.Options{NoSync: true})
	must(err)
	eng, err := engine.New(engine.Config{
		Store: memstore.New(), Repository: repo, Executor: h.Executor(), Images: kvmbackuptest.Images{},
	})
	must(err)

	backup := func() kvmbackup.Backup {
		b, err := eng.Backup(ctx, engine.BackupRequest{VM: "vm1", Volumes: []engine.Volume{{ID: "disk-1", Device: "vda"}}})
		must(err)
		fmt.Printf("%v, %d bytes copied: %s\n", b.Kind, b.Volumes[0].DirtyBytes, b.Reasons[0].Code)
		return b
	}
	backup()

	must(h.Write("vm1", "vda", 500_000, []byte("changed")))
	then, err := h.Content("vm1", "vda")
	must(err)
	second := backup()

	must(h.Write("vm1", "vda", 0, []byte("changed again")))
	must(errors.Join(h.Crash("vm1"), h.Start("vm1")))
	backup()

	restored, err := kvmbackuptest.ReadChain(repo.FilePath(second.Path, second.Volumes[0].File))
	must(err)
	fmt.Println("the second backup is what the disk held:", restored.Equal(then))

	// Output:
	// full, 1048576 bytes copied: no-active-checkpoint
	// incremental, 65536 bytes copied: incremental
	// full, 1048576 bytes copied: no-volume-incremental
	// the second backup is what the disk held: true
}

// A host process dies while QEMU copies. The next one finds the job, follows it to its end and commits the backup.
func ExampleHypervisor_KillHost() {
	ctx := context.Background()
	h := kvmbackuptest.NewHypervisor()
	must(h.Define(kvmbackuptest.Domain{Name: "vm1", Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 20}}}))
	must(h.Start("vm1"))
	must(h.Write("vm1", "vda", 0, kvmbackuptest.Pattern(1, 300_000)))

	dir, err := os.MkdirTemp("", "example-")
	must(err)
	defer func() { must(os.RemoveAll(dir)) }()
	repo, err := repository.Init(ctx, dir, repository.Options{NoSync: true})
	must(err)
	config := engine.Config{Store: memstore.New(), Repository: repo, Images: kvmbackuptest.Images{}}

	h.OnStep(func(string, int64, int64) { h.KillHost(); h.OnStep(nil) })
	config.Executor = h.Executor()
	first, err := engine.New(config)
	must(err)
	_, err = first.Backup(ctx, engine.BackupRequest{VM: "vm1"})
	fmt.Println("the process was killed:", errors.Is(err, kvmbackuptest.ErrHostKilled))

	config.Executor = h.Executor()
	second, err := engine.New(config)
	must(err)
	found, err := second.RecoverAll(ctx)
	must(err)
	fmt.Println(len(found), found[0].VM, found[0].Found[0].Outcome)

	// Output:
	// the process was killed: true
	// 1 vm1 followed
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
