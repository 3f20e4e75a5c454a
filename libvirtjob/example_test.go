package libvirtjob_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// The four things that an engine stands on, and a backup of two of a VM's volumes. The host has opened the store.
func Example() {
	_ = func(ctx context.Context, store kvmbackup.Store) (err error) {
		images, err := qcow2.New(qcow2.Config{})
		if err != nil {
			return err
		}
		repo, err := repository.Open(ctx, "/mnt/nas/backups", repository.Options{})
		if err != nil {
			return err
		}
		exec, err := libvirtjob.Open(ctx, "qemu:///system", libvirtjob.Config{Images: images})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, exec.Close()) }()
		eng, err := engine.New(engine.Config{
			Store: store, Repository: repo, Executor: exec, Images: images,
		})
		if err != nil {
			return err
		}
		b, err := eng.Backup(ctx, engine.BackupRequest{
			VM:      "i-2-17-VM",
			Volumes: []engine.Volume{{ID: "5f6c...", Device: "vda"}, {ID: "91ab...", Device: "vdb"}},
			Policy:  kvmbackup.Policy{FullEvery: 10},
			Quiesce: engine.QuiesceTry,
		})
		if err != nil {
			return err
		}
		fmt.Println(b.Kind, b.Reasons)
		return nil
	}
}
