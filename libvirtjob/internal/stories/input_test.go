package stories_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// What is wrong with a request is said by its type, before anything is done.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	s.write("vda", 0x11, 0, 1)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 0, 1)
	for name, c := range map[string]struct {
		change func(*engine.BackupRequest)
		want   error
		says   string // the object or the way out
	}{
		"unknown domain": {func(r *engine.BackupRequest) { r.Domain = "nobody" }, kvmbackup.ErrNoDomain,
			`has to be described`},
		"another UUID": {func(r *engine.BackupRequest) { r.DomainUUID = string(kvmbackup.NewBackupID()) },
			kvmbackup.ErrNoDomain, `has UUID`},
		"unknown device": {func(r *engine.BackupRequest) { r.Volumes[1].Device = "vdz" }, kvmbackup.ErrNoVolume,
			`it has vda, vdb`},
		"device twice": {func(r *engine.BackupRequest) { r.Volumes[1].Device = "vda" }, kvmbackup.ErrInvalid,
			`device "vda"`},
		"identity twice": {func(r *engine.BackupRequest) { r.Volumes[1].ID = r.Volumes[0].ID }, kvmbackup.ErrInvalid,
			`volume "vol-vda"`},
		"identity with slash": {func(r *engine.BackupRequest) { r.Volumes[1].ID = "../../etc/passwd" }, kvmbackup.ErrInvalid,
			`"../../etc/passwd"`},
		"empty identity": {func(r *engine.BackupRequest) { r.Volumes[1].ID = "" }, kvmbackup.ErrInvalid, `device "vdb"`},
		"VM with slash": {func(r *engine.BackupRequest) { r.VM, r.Domain = "a/b", s.guest.Name }, kvmbackup.ErrInvalid,
			`give it another one`},
		"VM above": {func(r *engine.BackupRequest) { r.VM, r.Domain = "..", s.guest.Name }, kvmbackup.ErrInvalid,
			`give it another one`},
		"VM as the marker": {func(r *engine.BackupRequest) { r.VM, r.Domain = repository.MarkerName, s.guest.Name },
			kvmbackup.ErrInvalid, `marker`},
		"no VM": {func(r *engine.BackupRequest) { r.VM, r.Domain = "", s.guest.Name },
			kvmbackup.ErrInvalid, `is empty`},
		"negative bandwidth": {func(r *engine.BackupRequest) { r.BandwidthBytes = -1 }, kvmbackup.ErrInvalid, `bandwidth -1`},
	} {
		t.Run(name, func(*testing.T) {
			req := s.request()
			req.Volumes = slices.Clone(req.Volumes)
			c.change(&req)
			if err := s.refuses(req, c.want); err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q isn't in %q", c.says, err)
			}
		})
	}
	s.incremental()
	s.restoreAll()
}

// Disks that share a serial are told apart by their paths.
func TestSerialTwice(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: []disk{
		{Device: "vda", SizeBytes: 16 * mib, Serial: "same"}, {Device: "vdb", SizeBytes: 16 * mib, Serial: "same"},
		{Device: "vdc", SizeBytes: 16 * mib, Serial: "single"},
	}})
	s.volumes = nil
	s.write("vdb", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 0, 4)
	if b := s.incremental(); b.Volumes[2].VolumeID != "single" {
		t.Errorf("volumes are %+v", b.Volumes)
	}
	s.restoreAll()
}

// A VM without anything that can be backed up.
func TestNothingToBackUp(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Persistent: true, Disks: []disk{
		{Device: "sda", Kind: "cdrom", Empty: true}, {Device: "vda", SizeBytes: 16 * mib, ReadOnly: true},
	}})
	s.refuses(s.request(), kvmbackup.ErrNothingToBackUp)
	s.guest.Destroy()
	s.refuses(s.request(), kvmbackup.ErrNothingToBackUp)
}

// Another process works on an image of the stopped VM.
func TestImageInUse(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true, Stopped: true})
	s.full(kvmbackup.ReasonStopped)
	before := s.everything()
	release := s.hold(s.guest.Image("vdb"))
	_, err := s.engine.Backup(s.ctx, s.request())
	s.wantErr(err, kvmbackup.ErrImageLocked)
	s.Log(err)
	release()
	if after := s.everything(); !slices.Equal(before, after) {
		t.Errorf("the refused backup has changed something: %q, was %q", after, before)
	}
	s.full(kvmbackup.ReasonStopped)
	s.start()
	s.write("vdb", 0x21, 1, 2)
	s.incremental()
	s.restoreAll()
}

// hold has another process open an image for writing.
func (s *story) hold(image string) (release func()) {
	s.Helper()
	cmd := exec.CommandContext(s.ctx, "qemu-io", "-f", "qcow2", image)
	stdin, err := cmd.StdinPipe()
	s.must(err)
	stdout, err := cmd.StdoutPipe()
	s.must(err)
	s.must(cmd.Start())
	tell := func(command string) {
		_, err := io.WriteString(stdin, command+"\n")
		s.must(err)
	}
	tell("length") // it answers when it has the image open; a look from outside could keep it from that
	if _, err := stdout.Read(make([]byte, 64)); err != nil {
		s.Fatalf("qemu-io doesn't open the image: %v", err)
	}
	return func() {
		tell("quit")
		_, _ = io.Copy(io.Discard, stdout)
		s.must(cmd.Wait())
	}
}

// The image of a stopped VM is gone.
func TestImageMissing(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true, Stopped: true})
	s.full(kvmbackup.ReasonStopped)
	image := s.guest.Image("vdb")
	s.must(os.Rename(image, image+".away"))
	s.without(s.request(), []string{"vda"}, map[string]kvmbackup.ReasonCode{"vdb": engine.ReasonDiskUnreadable})
	s.requireAll(s.request(), kvmbackup.ErrDiskLeftOut)
	s.must(os.Rename(image+".away", image))
	s.finds(engine.FindingStaleCheckpoint) // its bitmap of the first backup
	s.full(kvmbackup.ReasonStopped)
	s.restoreAll()
}

// IDs that nobody has given.
func TestUnknownBackup(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Stopped: true})
	nobody := kvmbackup.NewBackupID()
	dir := t.TempDir()
	_, restore := s.engine.Restore(s.ctx, engine.RestoreRequest{Backup: nobody, Dir: dir})
	_, verify := s.engine.Verify(s.ctx, nobody, engine.VerifyOptions{Content: true})
	_, remove := s.engine.Delete(s.ctx, nobody, kvmbackup.DeleteOptions{})
	_, get := s.engine.Get(s.ctx, nobody)
	_, chain := s.engine.Chain(s.ctx, nobody)
	for name, err := range map[string]error{"restore": restore, "verify": verify, "delete": remove, "get": get,
		"chain": chain} {
		if !errors.Is(err, kvmbackup.ErrNotFound) {
			t.Errorf("%s: error is %v, want %q", name, err, kvmbackup.ErrNotFound)
		}
	}
	if got := s.files(dir); len(got) != 1 {
		t.Errorf("restore has left %q", got)
	}
	s.inOrder()
}

// A manifest, or a file, that is not what it was is refused before anything is restored from it; other chains are not
// concerned.
func TestDamagedBackups(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true})
	s.policy.FullEvery = 2
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 1, 4)
	child := s.incremental()
	for name, damage := range map[string]func(dir string) (undo func()){
		"corrupt manifest": func(dir string) func() { return s.overwrite(filepath.Join(dir, "backup.json"), []byte("{")) },
		"no manifest":      func(dir string) func() { return s.overwrite(filepath.Join(dir, "backup.json"), nil) },
		"corrupt image": func(dir string) func() {
			return s.overwrite(filepath.Join(dir, child.Volumes[0].File), []byte("QFI?"))
		},
		"no image":          func(dir string) func() { return s.overwrite(filepath.Join(dir, child.Volumes[0].File), nil) },
		"link to elsewhere": func(dir string) func() { return s.link(filepath.Join(dir, child.Volumes[0].File)) },
	} {
		for _, of := range s.taken {
			undo := damage(filepath.Join(s.dir, of.Path))
			dir := t.TempDir()
			_, err := s.engine.Restore(s.ctx, engine.RestoreRequest{Backup: child.ID, Dir: dir})
			if !errors.Is(err, kvmbackup.ErrDamaged) && !errors.Is(err, kvmbackup.ErrMissingFile) {
				t.Errorf("%s of backup %d: restore: %v", name, of.Sequence, err)
			}
			if got := s.files(dir); len(got) != 1 {
				t.Errorf("%s: restore has left %q", name, got)
			}
			report, err := s.engine.Verify(s.ctx, child.ID, engine.VerifyOptions{})
			if !errors.Is(err, kvmbackup.ErrDamaged) || report.OK() {
				t.Errorf("%s of backup %d: verify: %v, %v", name, of.Sequence, report.Problems, err)
			}
			undo()
		}
	}
	s.inOrder()
	s.restoreAll()
	// The record says damaged until a verification has found that it isn't any more.
	report, err := s.engine.Verify(s.ctx, child.ID, engine.VerifyOptions{})
	if s.must(err); !report.OK() {
		t.Errorf("mended: %v", report.Problems)
	}
	s.full(kvmbackup.ReasonChainComplete)
	s.incremental()
	s.restoreAll()
}

// overwrite replaces a file, or removes it, until undo is called.
func (s *story) overwrite(path string, data []byte) (undo func()) {
	s.Helper()
	kept := s.TempDir() + "/kept"
	s.run("cp", "--sparse=always", path, kept)
	s.must(os.Remove(path))
	if data != nil {
		s.must(os.WriteFile(path, data, 0o644))
	}
	return func() { s.run("cp", "--sparse=always", kept, path) }
}

// link replaces an image by one on a backing file outside of the repository.
func (s *story) link(path string) (undo func()) {
	s.Helper()
	undo = s.overwrite(path, nil)
	s.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", s.blank("raw"), "-F", "raw", path, "16M")
	return undo
}
