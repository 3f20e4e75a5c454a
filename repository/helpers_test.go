package repository_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

const (
	vm      = "i-2-7-VM"
	fullID  = "0b2f4d53-1c1f-4c9b-9a57-0d4a3b1f7a01"
	incID   = "0b2f4d53-1c1f-4c9b-9a57-0d4a3b1f7a02"
	chainID = "0b2f4d53-1c1f-4c9b-9a57-0d4a3b1f7aff"

	fullPath = vm + "/2026.11.23.07.04.50"
	incPath  = vm + "/2026.11.23.08.04.50"
)

var t0 = time.Date(2026, 11, 23, 7, 4, 50, 0, time.UTC)

// full is a valid manifest of a full backup of two volumes, without side files.
func full() repository.Manifest {
	return repository.Manifest{Backup: kvmbackup.Backup{
		ID: fullID, VM: vm, Domain: vm, Kind: kvmbackup.KindFull, ChainID: chainID, Path: fullPath,
		Checkpoint: "2026.11.23.07.04.50", Sequence: 1, StartedAt: t0, CompletedAt: t0.Add(time.Minute),
		Consistency: kvmbackup.ConsistencyCrash,
		Reasons:     []kvmbackup.Reason{{Code: "no-active-checkpoint", Detail: "first backup"}},
		Volumes: []kvmbackup.VolumeBackup{
			{
				VolumeID: "v1", Device: "vda", Kind: kvmbackup.KindFull, File: "root.v1.qcow2", VirtualSize: 1 << 30,
				StoredSize: 4096,
			},
			{
				VolumeID: "v2", Device: "vdb", Kind: kvmbackup.KindFull, File: "datadisk.v2.qcow2", VirtualSize: 1 << 20,
				StoredSize: 4096,
			},
		},
	}}
}

// incremental is a valid manifest on top of full.
func incremental() repository.Manifest {
	m := full()
	m.ID, m.Path, m.Kind, m.Position, m.ParentID = incID, incPath, kvmbackup.KindIncremental, 1, fullID
	m.Checkpoint = "2026.11.23.08.04.50"
	m.Volumes[0].Kind, m.Volumes[0].ParentFile = kvmbackup.KindIncremental, "../2026.11.23.07.04.50/root.v1.qcow2"
	return m
}

func initRepo(t *testing.T, dir string, o repository.Options) *repository.Repository {
	t.Helper()
	r, err := repository.Init(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// quick is a repository without flushing.
func quick(t *testing.T) *repository.Repository {
	t.Helper()
	return initRepo(t, t.TempDir(), repository.Options{NoSync: true})
}

// prepare makes the partial folder of m with its volumes and side files, and returns m with the latter.
func prepare(t *testing.T, r *repository.Repository, m repository.Manifest) repository.Manifest {
	t.Helper()
	dir, err := r.CreatePartial(t.Context(), m.Path, m.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range m.Volumes {
		put(t, filepath.Join(dir, v.File), strings.Repeat("x", 4096))
	}
	for _, name := range []string{repository.DomainXMLName, repository.NVRAMName} {
		e, err := r.WriteFile(t.Context(), m.Path, m.ID, name, []byte("<domain/>"))
		if err != nil {
			t.Fatal(err)
		}
		m.Files = append(m.Files, e)
	}
	return m
}

// publish prepares and publishes m.
func publish(t *testing.T, r *repository.Repository, m repository.Manifest) repository.Manifest {
	t.Helper()
	m = prepare(t, r, m)
	if err := r.Publish(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return m
}

// fileNames are those of a manifest's volumes and side files.
func fileNames(m repository.Manifest) []string {
	var names []string
	for _, v := range m.Volumes {
		names = append(names, v.File)
	}
	for _, f := range m.Files {
		names = append(names, f.Name)
	}
	return names
}

func put(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tree is all that is in the repository, sorted, without the marker.
func tree(t *testing.T, r *repository.Repository) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(r.Root(), func(path string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(r.Root(), path)
		if rel != "." && rel != repository.MarkerName {
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func want(t *testing.T, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Fatalf("got %v, want %v", err, target)
		}
	}
	if len(targets) == 0 && err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
}

var errInjected = errors.New("injected")

// faults fails the step number at (from 0), and if dead all after it, like a machine that has stopped.
type faults struct {
	at    int
	dead  bool
	steps []string
}

func (f *faults) before(step string) error {
	f.steps = append(f.steps, step)
	if n := len(f.steps) - 1; n == f.at || f.dead && n > f.at {
		return fmt.Errorf("step %d: %w", n, errInjected)
	}
	return nil
}
