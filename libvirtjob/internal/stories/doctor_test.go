package stories_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// found returns the codes that the doctor reports, sorted, each once.
func found(d engine.Diagnosis) []engine.FindingCode {
	var codes []engine.FindingCode
	for _, f := range d.Findings {
		codes = append(codes, f.Code)
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// finds checks what the doctor reports, and that looking has changed nothing.
func (s *story) finds(want ...engine.FindingCode) engine.Diagnosis {
	s.Helper()
	before := s.everything()
	d, err := s.engine.Inspect(s.ctx, s.request().Target())
	s.must(err)
	if after := s.everything(); !slices.Equal(before, after) {
		s.Errorf("the inspection has changed something: %q, was %q", after, before)
	}
	s.wantCodes("Inspect finds", d, want...)
	return d
}

// repair repairs and checks what the doctor still reports afterwards.
func (s *story) repair(left ...engine.FindingCode) {
	s.Helper()
	d, err := s.engine.Repair(s.ctx, s.request().Target())
	s.must(err)
	s.wantCodes("Repair leaves", d, left...)
}

func (s *story) wantCodes(what string, d engine.Diagnosis, want ...engine.FindingCode) {
	s.Helper()
	slices.Sort(want)
	if got := found(d); !slices.Equal(got, want) {
		s.Errorf("%s %q, want %q", what, got, want)
	}
}

// lease gives the store to a test that plays a process which crashes: it is released, and what was written stays.
func (s *story) lease(write func(kvmbackup.Store, kvmbackup.Lease)) {
	s.Helper()
	store := s.consumer.cfg.Store
	l, err := store.AcquireLease(s.ctx, s.vm(), "a process that crashes", time.Minute)
	s.must(err)
	write(store, l)
	s.must(store.ReleaseLease(s.ctx, l))
}

// begun is a record as a backup begins with.
func (s *story) begun(last kvmbackup.Backup, stamp string) kvmbackup.Backup {
	b := last
	b.ID, b.ChainID, b.Kind, b.Status = kvmbackup.NewBackupID(), kvmbackup.NewChainID(), kvmbackup.KindFull,
		kvmbackup.StatusRunning
	b.Position, b.ParentID, b.CompletedAt = 0, "", time.Time{}
	b.Path = string(s.vm()) + "/" + stamp
	b.Checkpoint = kvmbackup.CheckpointName(s.prefix + "-" + stamp)
	b.Volumes = slices.Clone(last.Volumes)
	for i := range b.Volumes {
		b.Volumes[i].Kind, b.Volumes[i].ParentFile = kvmbackup.KindFull, ""
	}
	return b
}

// What a process left that crashed between recording its backup and the end of its job.
func TestDoctorOnLeftBackups(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	last := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.finds()

	running := s.begun(last, "2030.01.01.00.00.00")
	s.lease(func(store kvmbackup.Store, l kvmbackup.Lease) {
		_, err := store.Begin(s.ctx, l, running)
		s.must(err)
	})
	_, err := s.repo.CreatePartial(s.ctx, running.Path, running.ID)
	s.must(err)
	s.checkpoint(running.Checkpoint.String(), "vda", "vdb")
	s.finds(engine.FindingRunningRecord)
	s.repair()
	s.inOrder()

	failed := s.begun(last, "2030.01.02.00.00.00")
	s.lease(func(store kvmbackup.Store, l kvmbackup.Lease) {
		_, err := store.Begin(s.ctx, l, failed)
		s.must(err)
		s.must(store.Fail(s.ctx, l, failed.ID, "it was not to be"))
	})
	_, err = s.repo.CreatePartial(s.ctx, failed.Path, failed.ID)
	s.must(err)
	s.finds(engine.FindingLeftPartial)
	s.repair()
	s.inOrder()

	s.write("vda", 0x21, 0, 1)
	s.incremental()
	s.restoreAll()
}

// Checkpoints and bitmaps that don't fit the records.
func TestDoctorOnCheckpoints(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.checkpoint("virtnbdbackup.0", "vda")
	s.bitmap("add", "vdb", "theirs")
	theirs := s.foreign()
	const foreign = engine.FindingForeignCheckpoint
	active := s.full(kvmbackup.ReasonNoActiveCheckpoint).Checkpoint.String()
	s.finds(foreign)

	s.checkpoint(s.prefix+"-2020.01.01.00.00.00", "vda", "vdb")
	s.bitmap("add", "vdb", s.prefix+"-2020.01.02.00.00.00")
	s.finds(foreign, engine.FindingStaleCheckpoint)
	s.repair(foreign)
	s.inOrder()

	s.deleteCheckpoint(active, metadataOnly)
	s.finds(foreign, engine.FindingActiveUnlisted)
	s.repair(foreign, engine.FindingActiveUnlisted)
	active = s.incremental().Checkpoint.String()

	s.bitmap("remove", "vda", active)
	s.bitmap("disable", "vdb", active)
	d := s.finds(foreign, engine.FindingBitmapMissing, engine.FindingBitmapBroken)
	if d.Healthy() {
		t.Error("the doctor calls it healthy")
	}
	s.full(kvmbackup.ReasonNoVolumeIncremental)
	s.finds(foreign)

	s.lease(func(store kvmbackup.Store, l kvmbackup.Lease) {
		s.must(store.SetActive(s.ctx, l, kvmbackup.CheckpointName(s.prefix+"-2020.01.03.00.00.00")))
	})
	s.finds(foreign, engine.FindingActiveNotNewest, engine.FindingStaleCheckpoint)
	s.repair(foreign)
	s.inOrder()
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.incremental()
	s.wantForeign(theirs)
	s.restoreAll()
}

// The same on a stopped domain.
func TestDoctorOnStoppedDomain(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Stopped: true})
	s.policy.OfflineIncremental = true
	bitmap := func(verb, device, name string) {
		t.Helper()
		s.run("qemu-img", "bitmap", "--"+verb, s.guest.Image(device), name)
	}
	bitmap("add", "vda", "theirs")
	theirs := s.foreign()
	active := s.full(kvmbackup.ReasonNoActiveCheckpoint).Checkpoint.String()
	bitmap("add", "vdb", s.prefix+"-2020.01.02.00.00.00")
	bitmap("remove", "vda", active)
	s.finds(engine.FindingForeignCheckpoint, engine.FindingStaleCheckpoint, engine.FindingBitmapMissing)
	s.repair(engine.FindingForeignCheckpoint, engine.FindingBitmapMissing)
	s.inOrder()
	s.incremental("vol-vda: volume-bitmap-missing")
	s.incremental()
	s.wantForeign(theirs)
	s.restoreAll()
}

// Disks that are not what they were at the last backup.
func TestDoctorOnDisks(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.guest.Resize("vdb", 8*mib)
	s.guest.Destroy()
	moved := t.TempDir() + "/moved.qcow2"
	s.run("mv", s.guest.Image("vda"), moved)
	s.rebuild(part{"vol-vda", disk{Device: "vda", Path: moved}}, part{"vol-vdb", disk{Device: "vdb"}})
	s.start()
	s.write("vda", 0x21, 1, 1)
	s.repair(engine.FindingBitmapMoved, engine.FindingShrank)
	s.finds(engine.FindingBitmapMoved, engine.FindingShrank)
	s.wantReasons(s.full(kvmbackup.ReasonNoVolumeIncremental), "vol-vda: volume-bitmap-moved", "vol-vdb: volume-shrank")
	s.finds()
	s.guest.Destroy()
	s.must(os.Rename(moved, moved+".away"))
	d, err := s.engine.Inspect(s.ctx, s.request().Target())
	s.must(err)
	s.wantCodes("without an image", d, engine.FindingUnreadable)
	s.must(s.engine.Forget(s.ctx, s.request().Target())) // what is left of it
	s.must(os.Rename(moved+".away", moved))
	s.finds(engine.FindingStaleCheckpoint)
	s.repair()
	s.inOrder()
	s.restoreAll()
}

// Folders and files that don't fit the records.
func TestDoctorOnFolders(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	first := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 0, 4)
	second := s.incremental()
	vm := filepath.Join(s.dir, string(s.vm()))

	// Foreign things stay.
	s.must(os.MkdirAll(filepath.Join(vm, "notes"), 0o755))
	s.must(os.WriteFile(filepath.Join(vm, "notes", "read.me"), []byte("precious"), 0o644))
	_, err := s.repo.CreatePartial(s.ctx, string(s.vm())+"/2030.01.01.00.00.00", kvmbackup.NewBackupID())
	s.must(err)
	s.finds(engine.FindingForeignFolder, engine.FindingForeignPartial)
	before := s.everything()
	s.repair(engine.FindingForeignFolder, engine.FindingForeignPartial)
	if after := s.everything(); !slices.Equal(before, after) {
		t.Errorf("Repair has touched what is foreign: %q, was %q", after, before)
	}
	s.must(os.RemoveAll(filepath.Join(vm, "notes")))
	partials, err := filepath.Glob(filepath.Join(vm, "*.partial-*"))
	s.must(err)
	s.must(os.Remove(partials[0]))

	// A deletion that was marked, and one whose removal was begun.
	s.lease(func(store kvmbackup.Store, l kvmbackup.Lease) { s.must(store.MarkDeletePending(s.ctx, l, second.ID)) })
	s.finds(engine.FindingDeletePending, engine.FindingStaleCheckpoint)
	s.removeAndCrash(second)
	s.finds(engine.FindingDeletePending, engine.FindingLeftDeleting, engine.FindingMissingFile,
		engine.FindingStaleCheckpoint)
	s.repair()
	s.taken = s.taken[:1]
	s.inOrder()
	s.write("vda", 0x31, 1, 4)
	third := s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.restoreAll()

	// A file is lost: its backup can't be restored, and is no parent.
	lost := filepath.Join(s.dir, third.Path, third.Volumes[0].File)
	s.must(os.Rename(lost, lost+".aside"))
	s.finds(engine.FindingMissingFile)
	s.repair(engine.FindingMissingFile)
	_, err = s.engine.Restore(s.ctx, engine.RestoreRequest{Backup: third.ID, Dir: t.TempDir()})
	if !errors.Is(err, kvmbackup.ErrMissingFile) {
		t.Errorf("restore: %v", err)
	}
	b, err := s.engine.Backup(s.ctx, s.request())
	if s.must(err); b.Reasons[0].Code != kvmbackup.ReasonParentFileMissing {
		t.Errorf("backup is %v because %v", b.Kind, b.Reasons)
	}
	s.must(os.Rename(lost+".aside", lost))
	s.finds()
	s.incremental()
	s.restoreAll()

	// The store is lost: Import makes the records from the folders, and the backup after that is full.
	s.consumers = nil
	old := s.taken
	s.consumer = s.newConsumer("", s.dir, s.TempDir()+"/new.db")
	s.finds(engine.FindingUnrecorded, engine.FindingForeignCheckpoint) // another store's, for all that this one knows
	done, err := s.engine.Import(s.ctx, s.vm())
	s.must(err)
	if len(done) != 4 || !done[3].Added {
		t.Errorf("imported are %+v", done)
	}
	s.taken = old
	s.restoreAll()
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.incremental()
	if _, err := s.engine.Delete(s.ctx, first.ID, kvmbackup.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	s.taken = s.taken[1:]
	s.inOrder()
	s.restoreAll()
}

// removeAndCrash begins to remove a backup's folder and is interrupted.
func (s *story) removeAndCrash(b kvmbackup.Backup) {
	s.Helper()
	repo, err := repository.Open(s.ctx, s.dir, repository.Options{NoSync: true, BeforeStep: func(step string) error {
		if filepath.Base(step) == b.Volumes[0].File {
			return errEnough
		}
		return nil
	}})
	s.must(err)
	m, err := repo.ReadManifest(s.ctx, b.Path)
	s.must(err)
	if _, err := repo.Remove(s.ctx, m.Backup); !errors.Is(err, errEnough) {
		s.Fatalf("the removal was not interrupted: %v", err)
	}
}
