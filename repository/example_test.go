package repository_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// One backup from the first name to its removal.
func Example() {
	dir, err := os.MkdirTemp("", "nas")
	check(err)
	defer os.RemoveAll(dir)
	ctx := context.Background()

	_, err = repository.Init(ctx, dir, repository.Options{}) // once
	check(err)
	r, err := repository.Open(ctx, dir, repository.Options{})
	check(err)
	_, err = r.Probe(ctx, "")
	check(err)

	now := time.Date(2026, 11, 23, 7, 4, 50, 0, time.UTC)
	newest := kvmbackup.Stamp{} // none yet
	taken, err := r.Stamps(ctx, "web1")
	check(err)
	stamp := newest.Next(now, func(s kvmbackup.Stamp) bool { return slices.Contains(taken, s) })
	b := kvmbackup.Backup{
		ID: "0b2f4d53-1c1f-4c9b-9a57-0d4a3b1f7a01", VM: "web1", Kind: kvmbackup.KindFull,
		ChainID:   "0b2f4d53-1c1f-4c9b-9a57-0d4a3b1f7aff",
		StartedAt: now, CompletedAt: now, Consistency: kvmbackup.ConsistencyCrash,
		Volumes: []kvmbackup.VolumeBackup{{VolumeID: "7f2d", Kind: kvmbackup.KindFull, File: "root.7f2d.qcow2"}},
	}
	b.Path = "web1/" + stamp.String()
	partial, err := r.CreatePartial(ctx, b.Path, b.ID)
	check(err)
	check(os.WriteFile(filepath.Join(partial, "root.7f2d.qcow2"), []byte("QEMU writes here"), 0o600))
	xml, err := r.WriteFile(ctx, b.Path, b.ID, repository.DomainXMLName, []byte("<domain/>"))
	check(err)
	b.Files = []kvmbackup.SideFile{xml}
	err = r.Publish(ctx, repository.NewManifest(b))
	check(err)

	entries, err := r.List(ctx, "")
	check(err)
	for _, e := range entries {
		fmt.Println(e.Path, e.Kind)
	}
	_, err = r.Remove(ctx, b)
	check(err)
	gone, err := r.Remove(ctx, b)
	fmt.Println("gone:", gone.AlreadyGone, err)
	// Output:
	// web1/2026.11.23.07.04.50 published
	// gone: true <nil>
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
