package repository_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/repository"
)

func TestRemoveReportsBytesAndThenThatItIsGone(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	got, err := r.Remove(t.Context(), m.Target())
	want(t, err)
	if got.Bytes < 8192 || got.AlreadyGone {
		t.Fatalf("%+v", got)
	}
	empty(t, r, m)
	got, err = r.Remove(t.Context(), m.Target())
	if err != nil || got != (repository.Removed{AlreadyGone: true}) {
		t.Fatalf("%+v %v", got, err)
	}
}

func TestRemoveKeepsForeignFiles(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	before := tree(t, r)
	put(t, r.FilePath(m.Path, "overlay.qcow2"), "someone's work on top of the backup")
	_, err := r.Remove(t.Context(), m.Target())
	want(t, err, repository.ErrForeignFiles)
	var detail *repository.ForeignFilesError
	if !errors.As(err, &detail) || detail.Folder != m.Path {
		t.Fatal(err)
	}
	same(t, detail.Names, []string{"overlay.qcow2"})
	want(t, os.Remove(r.FilePath(m.Path, "overlay.qcow2")))
	same(t, tree(t, r), before)
	_, err = r.Remove(t.Context(), m.Target())
	want(t, err)
}

// A foreign file that comes after the removal has begun keeps its folder, and the rest is removed.
func TestRemoveMeetsForeignFileOnTheWay(t *testing.T) {
	dir := t.TempDir()
	m := publish(t, initRepo(t, dir, repository.Options{NoSync: true}), full())
	f := &faults{at: 2, dead: true}
	broken, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: f.before})
	want(t, err)
	_, err = broken.Remove(t.Context(), m.Target())
	want(t, err, errInjected)
	deleting := filepath.Join(dir, m.Path+".deleting-"+m.ID)
	put(t, filepath.Join(deleting, "foreign"), "")
	r := initRepo(t, dir, repository.Options{NoSync: true})
	_, err = r.Remove(t.Context(), m.Target())
	want(t, err, repository.ErrForeignFiles)
	base := filepath.Base(deleting)
	same(t, tree(t, r), []string{vm, vm + "/" + base, vm + "/" + base + "/backup.json", vm + "/" + base + "/foreign"})
	want(t, os.Remove(filepath.Join(deleting, "foreign")))
	_, err = r.Remove(t.Context(), m.Target())
	want(t, err)
	empty(t, r, m)
}

func TestRemoveRefusesWhatIsNotTheBackups(t *testing.T) {
	target := full().Target()
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
		"no manifest": {func(t *testing.T, r *repository.Repository) {
			want(t, os.Remove(r.FilePath(fullPath, repository.ManifestName)))
		}, repository.ErrNotFound},
		"corrupt manifest": {func(t *testing.T, r *repository.Repository) {
			put(t, r.FilePath(fullPath, repository.ManifestName), "{")
		}, repository.ErrManifest},
		"later manifest": {func(t *testing.T, r *repository.Repository) {
			put(t, r.FilePath(fullPath, repository.ManifestName), seal(`{"version": 2, "id": 7, "checksum": "`+strings.Repeat("0", 64)+`"}`))
		}, repository.ErrManifestVersion},
		"volume is a link": {func(t *testing.T, r *repository.Repository) {
			link(t, "/etc/passwd", r.FilePath(fullPath, "root.v1.qcow2"))
		}, repository.ErrUnsafe},
		"volume is a folder": {func(t *testing.T, r *repository.Repository) {
			want(t, os.Remove(r.FilePath(fullPath, "root.v1.qcow2")))
			want(t, os.Mkdir(r.FilePath(fullPath, "root.v1.qcow2"), 0o755))
		}, repository.ErrUnsafe},
		"foreign folder": {func(t *testing.T, r *repository.Repository) {
			want(t, os.Mkdir(r.FilePath(fullPath, "sub"), 0o755))
		}, repository.ErrForeignFiles},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := quick(t)
			publish(t, r, full())
			tc.spoil(t, r)
			before := tree(t, r)
			_, err := r.Remove(t.Context(), target)
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

func TestRemoveUnproven(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	put(t, r.FilePath(m.Path, repository.ManifestName), "")
	target := m.Target()
	target.Unproven = true
	short := target
	short.Files = target.Files[:1]
	_, err := r.Remove(t.Context(), short)
	want(t, err, repository.ErrForeignFiles)
	_, err = r.Remove(t.Context(), target)
	want(t, err)
	empty(t, r, m)
}

func TestRemoveLeavesOthersOfTheVM(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	other := publish(t, r, incremental())
	_, err := r.Remove(t.Context(), other.Target())
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
	got, err := r.Remove(t.Context(), repository.Target{Path: fullPath, ID: fullID})
	if err != nil || got.AlreadyGone {
		t.Fatal(got, err)
	}
	published(t, r, m)
	_, err = r.Remove(t.Context(), repository.Target{Path: fullPath, ID: fullID})
	want(t, err, repository.ErrForeign)
}

func TestRemovePartial(t *testing.T) {
	r := quick(t)
	m := prepare(t, r, full())
	files := []string{"root.v1.qcow2", "notes.json", "never-made.qcow2"}
	err := r.RemovePartial(t.Context(), m.Path, m.ID, files)
	want(t, err, repository.ErrForeignFiles) // datadisk.v2.qcow2 was not named
	want(t, r.RemovePartial(t.Context(), m.Path, m.ID, append(files, "datadisk.v2.qcow2")))
	empty(t, r, m)
	want(t, r.RemovePartial(t.Context(), m.Path, m.ID, files))
	want(t, r.RemovePartial(t.Context(), m.Path, m.ID, []string{"../../x"}), repository.ErrName)
}

func TestRemovePartialLeavesThePublished(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	want(t, r.RemovePartial(t.Context(), m.Path, m.ID, []string{"root.v1.qcow2"}))
	published(t, r, m)
}

// What appears between the last file and the folder itself: NFS's remains of open files go by themselves, others don't.
func TestRemoveFindsTheFolderNotEmpty(t *testing.T) {
	for name, class := range map[string]error{".nfs0000000000a1": repository.ErrInUse, "new": repository.ErrForeignFiles} {
		dir := t.TempDir()
		m := publish(t, initRepo(t, dir, repository.Options{NoSync: true}), full())
		late := filepath.Join(dir, m.Path+".deleting-"+m.ID, name)
		r, err := repository.Open(t.Context(), dir, repository.Options{NoSync: true, BeforeStep: func(step string) error {
			if step == "rmdir "+m.Path+".deleting-"+m.ID {
				put(t, late, "")
			}
			return nil
		}})
		want(t, err)
		_, err = r.Remove(t.Context(), m.Target())
		want(t, err, class)
		want(t, os.Remove(late))
		r = initRepo(t, dir, repository.Options{NoSync: true})
		_, err = r.Remove(t.Context(), m.Target())
		want(t, err)
		empty(t, r, m)
	}
}

func TestDenied(t *testing.T) {
	const mark = "KVMBACKUP_TEST_WITHOUT_DAC"
	if os.Geteuid() == 0 && os.Getenv(mark) == "" { // root may read everything, but for one without these capabilities
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
