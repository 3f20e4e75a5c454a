package engine_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// An engine over a store, a repository, a hypervisor and images. Here the last two are simulated; package libvirtjob
// has the Executor for real ones, package qcow2 the images.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "nas-")
	must(err)
	defer func() { must(os.RemoveAll(dir)) }()
	repo, err := repository.Init(ctx, dir, repository.Options{NoSync: true}) // once; then repository.Open
	must(err)
	h := kvmbackuptest.NewHypervisor()
	must(h.Define(kvmbackuptest.Domain{Name: "web1", Disks: []kvmbackuptest.Disk{{Device: "vda", SizeBytes: 1 << 30}}}))
	must(h.Start("web1"))
	eng, err := engine.New(engine.Config{
		Store: memstore.New(), Repository: repo, Executor: h.Executor(), Images: kvmbackuptest.Images{},
	})
	must(err)

	b, err := eng.Backup(ctx, engine.BackupRequest{VM: "web1"})
	must(err)
	fmt.Println(b.Status, b.Kind, b.Reasons[0].Code)
	// Output:
	// completed full no-active-checkpoint
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// demo is what the examples begin with: a host with an engine, and the running VM web1 with the volumes root and data.
type demo struct {
	*engine.Engine
	config     engine.Config
	hypervisor *kvmbackuptest.Hypervisor
	dir        string // of the repository, the VM's images and what is restored
	now        time.Time
}

const web1 = kvmbackup.VMID("web1")

// newDemo makes one. The option, if any, changes the engine's configuration.
func newDemo(options ...func(*engine.Config)) *demo {
	dir, err := os.MkdirTemp("", "example-")
	must(err)
	for _, sub := range []string{"nas", "images", "restored"} {
		must(os.Mkdir(filepath.Join(dir, sub), 0o700))
	}
	d := &demo{dir: dir, hypervisor: kvmbackuptest.NewHypervisor(), now: time.Date(2026, 11, 23, 22, 0, 0, 0, time.UTC)}
	must(d.hypervisor.Define(kvmbackuptest.Domain{Name: "web1", Disks: []kvmbackuptest.Disk{
		{Device: "vda", SizeBytes: 1 << 20, Source: filepath.Join(dir, "images", "vda.qcow2")},
		{Device: "vdb", SizeBytes: 2 << 20, Source: filepath.Join(dir, "images", "vdb.qcow2")},
	}}))
	must(d.hypervisor.Start("web1"))
	repo, err := repository.Init(context.Background(), filepath.Join(dir, "nas"), repository.Options{NoSync: true})
	must(err)
	clock := func() time.Time { return d.now }
	store := memstore.New(memstore.WithClock(clock))
	d.config = engine.Config{Store: store, Repository: repo, Images: kvmbackuptest.Images{}, Now: clock}
	for _, o := range options {
		o(&d.config)
	}
	d.start()
	return d
}

// start makes the engine, of a process that has just started.
func (d *demo) start() {
	d.config.Executor = d.hypervisor.Executor()
	var err error
	d.Engine, err = engine.New(d.config)
	must(err)
}

func (d *demo) close() { must(os.RemoveAll(d.dir)) }

func (d *demo) request() engine.BackupRequest {
	return engine.BackupRequest{
		VM: web1, Volumes: []engine.Volume{{ID: "root", Device: "vda", Root: true}, {ID: "data", Device: "vdb"}},
	}
}

// night lets the guest write a cluster to each disk, and takes the backup of that day.
func (d *demo) night() kvmbackup.Backup {
	d.now = d.now.AddDate(0, 0, 1)
	at := int64(d.now.Day()%8) * kvmbackuptest.ClusterBytes
	must(d.hypervisor.Write("web1", "vda", at, []byte(d.now.String())))
	must(d.hypervisor.Write("web1", "vdb", at, []byte(d.now.String())))
	b, err := d.Backup(context.Background(), d.request())
	must(err)
	return b
}

// crash is the end of the host's process while QEMU copies. Another process starts when the dead one's lease is over.
func (d *demo) crash() {
	must(d.hypervisor.Write("web1", "vda", 0, kvmbackuptest.Pattern(1, 8*kvmbackuptest.ClusterBytes)))
	d.hypervisor.OnStep(func(string, int64, int64) { d.hypervisor.KillHost(); d.hypervisor.OnStep(nil) })
	if _, err := d.Backup(context.Background(), d.request()); !errors.Is(err, kvmbackuptest.ErrHostKilled) {
		log.Fatal("the process lives: ", err)
	}
	d.now = d.now.Add(time.Minute)
	d.start()
}
