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
	_, err = r.Probe(ctx)
	check(err)

	now := time.Date(2026, 11, 23, 7, 4, 50, 0, time.UTC)
	newest := kvmbackup.Stamp{} // none yet
	taken, err := r.Stamps(ctx, "web1")
	check(err)
	stamp := kvmbackup.NextStamp(now, newest, func(s kvmbackup.Stamp) bool { return slices.Contains(taken, s) })
	m := repository.Manifest{
		ID: "0b2f4d53-1c1f-4c9b-9a57-0d4a3b1f7a01", VM: "web1", Kind: repository.KindFull,
		ChainID:   "0b2f4d53-1c1f-4c9b-9a57-0d4a3b1f7aff",
		StartedAt: now, CompletedAt: now, Consistency: repository.ConsistencyCrash,
		Volumes: []repository.Volume{{VolumeID: "7f2d", Kind: repository.KindFull, File: "root.7f2d.qcow2"}},
	}
	m.Path = "web1/" + stamp.String()
	partial, err := r.CreatePartial(ctx, m.Path, m.ID)
	check(err)
	check(os.WriteFile(filepath.Join(partial, "root.7f2d.qcow2"), []byte("QEMU writes here"), 0o600))
	xml, err := r.WriteFile(ctx, m.Path, m.ID, repository.DomainXMLName, []byte("<domain/>"))
	check(err)
	m.Files = append(m.Files, xml)
	err = r.Publish(ctx, m)
	check(err)

	entries, err := r.List(ctx, "")
	check(err)
	for _, e := range entries {
		fmt.Println(e.Path, e.Kind)
	}
	_, err = r.Remove(ctx, m.Target())
	check(err)
	gone, err := r.Remove(ctx, m.Target())
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
