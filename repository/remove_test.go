package repository_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

func TestRemoveReportsBytesAndThenThatItIsGone(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	got, err := r.Remove(t.Context(), m.Backup)
	want(t, err)
	if got.Bytes < 8192 || got.AlreadyGone {
		t.Fatalf("%+v", got)
	}
	empty(t, r, m)
	got, err = r.Remove(t.Context(), m.Backup)
	if err != nil || got != (kvmbackup.Removed{AlreadyGone: true}) {
		t.Fatalf("%+v %v", got, err)
	}
}

// leftOf is the folder in which a removal of full leaves what is foreign.
const leftOf = fullPath + ".left-" + fullID

// indexed puts into a folder what indexers, desktops, NFS and repairs of file systems leave there, and a folder and a
// link under names of the backup's files. It returns the names.
func indexed(t *testing.T, dir string, of ...string) []string {
	t.Helper()
	names := []string{".DS_Store", ".nfs0000000000a1", "@eaDir", "Thumbs.db", "lost+found", "overlay.qcow2"}
	for _, name := range names {
		if name == "@eaDir" || name == "lost+found" {
			want(t, os.Mkdir(filepath.Join(dir, name), 0o700))
			put(t, filepath.Join(dir, name, "root.v1.qcow2"), "an index")
			continue
		}
		put(t, filepath.Join(dir, name), "theirs")
	}
	for _, name := range of {
		link(t, "/etc/passwd", filepath.Join(dir, name))
	}
	names = append(names, of...)
	slices.Sort(names)
	return names
}

// toldOf wants the error that names what is left, and that to be all there is of the VM.
func toldOf(t *testing.T, r *repository.Repository, err error, names []string) {
	t.Helper()
	var left *kvmbackup.ForeignFilesError
	if !errors.As(err, &left) || left.Folder != leftOf {
		t.Fatal(err)
	}
	files, err := r.Files(t.Context(), left.Folder)
	want(t, err)
	var there []string
	for _, f := range files {
		there = append(there, f.Name)
	}
	same(t, there, names)
	if b, err := os.ReadFile(r.FilePath(leftOf, "overlay.qcow2")); string(b) != "theirs" {
		t.Error(string(b), err)
	}
	all, err := r.List(t.Context(), "")
	want(t, err)
	if len(all) != 1 || all[0].Kind != repository.FolderLeft || all[0].ID != fullID {
		t.Errorf("%+v", all)
	}
}

func TestRemoveLeavesForeignFiles(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	names := indexed(t, filepath.Join(r.Root(), m.Path), "root.v1.qcow2")
	got, err := r.Remove(t.Context(), m.Backup)
	toldOf(t, r, err, names)
	if got.Bytes < 4096 || got.AlreadyGone {
		t.Errorf("%+v", got)
	}
	again, err := r.Remove(t.Context(), m.Backup)
	if err != nil || !again.AlreadyGone {
		t.Errorf("%+v %v", again, err)
	}
	// What is left stands in nobody's way, not even of a backup at the same place.
	m = full()
	m.ID = incID
	publish(t, r, m)
	_, err = r.Remove(t.Context(), m.Backup)
	want(t, err)
	if stamps, err := r.Stamps(t.Context(), vm); err != nil || len(stamps) > 0 {
		t.Error(stamps, err)
	}
}

func TestRemovePartialLeavesForeignFiles(t *testing.T) {
	r := quick(t)
	m := prepare(t, r, full())
	names := indexed(t, r.PartialDir(m.Path, m.ID), "root.v1.qcow2", repository.ManifestName)
	toldOf(t, r, r.RemovePartial(t.Context(), m.Backup), names)
	want(t, r.RemovePartial(t.Context(), m.Backup))
}

// TestPublishTakesForeignFilesAlong: they don't keep a backup from being taken, nor from being removed.
func TestPublishTakesForeignFilesAlong(t *testing.T) {
	r := quick(t)
	m := prepare(t, r, full())
	names := indexed(t, r.PartialDir(m.Path, m.ID))
	want(t, r.Publish(t.Context(), m))
	_, err := r.Remove(t.Context(), m.Backup)
	toldOf(t, r, err, names)
}

// TestForeignFilesThatCannotBeMoved stay where they are; the backup's own are gone all the same, and a later call tries
// again.
func TestForeignFilesThatCannotBeMoved(t *testing.T) {
	dir := t.TempDir()
	m := publish(t, initRepo(t, dir, repository.Options{NoSync: true}), full())
	put(t, filepath.Join(dir, m.Path, "foreign"), "")
	deleting := m.Path + ".deleting-" + fullID
	r, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: func(step string) error {
		if step == "rename "+deleting {
			return repository.ErrInUse // as SMB says while the file is open somewhere
		}
		return nil
	}})
	want(t, err)
	_, err = r.Remove(t.Context(), m.Backup)
	want(t, err, kvmbackup.ErrForeignFiles)
	same(t, tree(t, r), []string{vm, deleting, deleting + "/foreign"})
	_, err = initRepo(t, dir, repository.Options{NoSync: true}).Remove(t.Context(), m.Backup)
	want(t, err, kvmbackup.ErrForeignFiles)
	same(t, tree(t, r), []string{vm, leftOf, leftOf + "/foreign"})
}

func TestRemoveRefusesWhatIsNotTheBackups(t *testing.T) {
	record := full().Backup
	tests := map[string]struct {
		spoil func(t *testing.T, r *repository.Repository)
		want  error
	}{
		"another id": {func(t *testing.T, r *repository.Repository) {
			m := full()
			m.ID = incID
			b, _ := m.Encode()
			put(t, r.FilePath(fullPath, repository.ManifestName), string(b))
		}, repository.ErrForeign},
		"later manifest": {func(t *testing.T, r *repository.Repository) {
			put(t, r.FilePath(fullPath, repository.ManifestName),
				seal(`{"version": 3, "id": 7, "checksum": "`+strings.Repeat("0", 64)+`"}`))
		}, repository.ErrManifestVersion},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := quick(t)
			publish(t, r, full())
			tc.spoil(t, r)
			before := tree(t, r)
			_, err := r.Remove(t.Context(), record)
			want(t, err, tc.want)
			same(t, tree(t, r), before)
		})
	}
}

// link replaces a file by a symbolic link.
func link(t *testing.T, to, name string) {
	t.Helper()
	want(t, os.RemoveAll(name))
	want(t, os.Symlink(to, name))
}

// TestRemoveWithoutAManifest: the record alone says then what is the backup's.
func TestRemoveWithoutAManifest(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, file string){
		"missing": func(t *testing.T, file string) { want(t, os.Remove(file)) },
		"empty":   func(t *testing.T, file string) { put(t, file, "") },
		"corrupt": func(t *testing.T, file string) { put(t, file, "{") },
	} {
		t.Run(name, func(t *testing.T) {
			r := quick(t)
			m := publish(t, r, full())
			spoil(t, r.FilePath(m.Path, repository.ManifestName))
			put(t, r.FilePath(m.Path, "notes.txt"), "")
			_, err := r.Remove(t.Context(), m.Backup)
			want(t, err, kvmbackup.ErrForeignFiles)
			same(t, tree(t, r), []string{vm, leftOf, leftOf + "/notes.txt"})
		})
	}
	r := quick(t)
	m := publish(t, r, full())
	link(t, "/etc/passwd", r.FilePath(m.Path, repository.ManifestName))
	_, err := r.Remove(t.Context(), m.Backup)
	want(t, err, kvmbackup.ErrForeignFiles)
	same(t, tree(t, r), []string{vm, leftOf, leftOf + "/" + repository.ManifestName})
}

// TestRemoveKnowsSideFilesByTheManifest: they may have names of the caller's own.
func TestRemoveKnowsSideFilesByTheManifest(t *testing.T) {
	r := quick(t)
	m := prepare(t, r, full())
	e, err := r.WriteFile(t.Context(), m.Path, m.ID, "notes.json", []byte("{}"))
	want(t, err)
	m.Files = append(m.Files, e)
	want(t, r.Publish(t.Context(), m))
	_, err = r.Remove(t.Context(), m.Backup)
	want(t, err)
	empty(t, r, m)
}

func TestRemoveLeavesOthersOfTheVM(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	other := publish(t, r, incremental())
	_, err := r.Remove(t.Context(), other.Backup)
	want(t, err)
	if _, ok, err := r.Published(t.Context(), m.Path, m.ID); !ok || err != nil {
		t.Fatal(ok, err)
	}
}

// The stamp of a half-removed backup is not given again, but if it was, a second removal must not take the new one.
func TestRemoveFinishesBesideAnotherOfTheSameStamp(t *testing.T) {
	r := quick(t)
	m := full()
	m.ID = incID
	m = publish(t, r, m)
	want(t, os.Mkdir(filepath.Join(r.Root(), fullPath+".deleting-"+fullID), 0o755))
	got, err := r.Remove(t.Context(), kvmbackup.Backup{Path: fullPath, ID: fullID})
	if err != nil || got.AlreadyGone {
		t.Fatal(got, err)
	}
	published(t, r, m)
	_, err = r.Remove(t.Context(), kvmbackup.Backup{Path: fullPath, ID: fullID})
	want(t, err, repository.ErrForeign)
}

func TestRemovePartial(t *testing.T) {
	r := quick(t)
	m := prepare(t, r, full())
	m.Volumes = append(m.Volumes, kvmbackup.VolumeBackup{File: "never-made.qcow2"})
	want(t, r.RemovePartial(t.Context(), m.Backup))
	empty(t, r, m)
	want(t, r.RemovePartial(t.Context(), m.Backup))
	m.Volumes[2].File = "../../x"
	want(t, r.RemovePartial(t.Context(), m.Backup), kvmbackup.ErrInvalid)
}

func TestRemovePartialLeavesThePublished(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	want(t, r.RemovePartial(t.Context(), m.Backup))
	published(t, r, m)
}

// What appears between the last file and the folder itself is set aside, too. When it is gone by itself, as NFS's
// remains of open files are, its folder goes with the next removal.
func TestRemoveFindsTheFolderNotEmpty(t *testing.T) {
	for _, name := range []string{".nfs0000000000a1", "new"} {
		dir := t.TempDir()
		m := publish(t, initRepo(t, dir, repository.Options{NoSync: true}), full())
		r, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: func(step string) error {
			if deleting := m.Path + ".deleting-" + fullID; step == "rmdir "+deleting {
				put(t, filepath.Join(dir, deleting, name), "")
			}
			return nil
		}})
		want(t, err)
		_, err = r.Remove(t.Context(), m.Backup)
		want(t, err, kvmbackup.ErrForeignFiles)
		same(t, tree(t, r), []string{vm, leftOf, leftOf + "/" + name})
		_, err = r.Remove(t.Context(), m.Backup)
		want(t, err)
		same(t, tree(t, r), []string{vm, leftOf, leftOf + "/" + name})
		want(t, os.Remove(filepath.Join(dir, leftOf, name)))
		other := publish(t, r, incremental())
		_, err = r.Remove(t.Context(), other.Backup)
		want(t, err)
		empty(t, r, m)
	}
}

func TestDenied(t *testing.T) {
	const mark = "KVMBACKUP_TEST_WITHOUT_DAC"
	if os.Geteuid() == 0 && os.Getenv(mark) == "" { // root may read everything, except when it lacks these capabilities
		again := exec.CommandContext(t.Context(), "setpriv", "--bounding-set", "-dac_override,-dac_read_search",
			os.Args[0], "-test.run=^TestDenied$", "-test.count=1")
		again.Env = append(os.Environ(), mark+"=1")
		if out, err := again.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	r := quick(t)
	m := prepare(t, r, full())
	want(t, os.Chmod(filepath.Join(r.PartialDir(m.Path, m.ID), "root.v1.qcow2"), 0))
	want(t, r.Publish(t.Context(), m), repository.ErrDenied)
	want(t, os.Chmod(r.PartialDir(m.Path, m.ID), 0o500))
	_, err := r.WriteFile(t.Context(), m.Path, m.ID, "x", nil)
	want(t, err, repository.ErrReadOnly)
	want(t, os.Chmod(r.PartialDir(m.Path, m.ID), 0o700))
}
