package repository_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

func TestInitIsIdempotent(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "other"), "stays")
	r := initRepo(t, dir, repository.Options{})
	again := initRepo(t, dir, repository.Options{})
	opened, err := repository.Open(t.Context(), dir, repository.Options{})
	want(t, err)
	if r.ID() == "" || r.ID() != again.ID() || r.ID() != opened.ID() || r.Root() != dir {
		t.Fatal(r.ID(), again.ID(), opened.ID(), r.Root())
	}
	same(t, tree(t, r), []string{"other"})
}

func TestConcurrentInit(t *testing.T) {
	dir := t.TempDir()
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			if r, err := repository.Init(t.Context(), dir, repository.Options{}); err == nil {
				ids[i] = r.ID()
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatal(ids)
		}
	}
	same(t, tree(t, initRepo(t, dir, repository.Options{})), nil)
}

func TestOpenRefuses(t *testing.T) {
	tests := map[string]struct {
		marker string
		want   error
	}{
		"corrupt":        {"{", repository.ErrNotRepository},
		"empty":          {"", repository.ErrNotRepository},
		"another format": {`{"format":"x","version":1,"id":"y"}`, repository.ErrNotRepository},
		"no id":          {`{"format":"kvmbackup-repository","version":1}`, repository.ErrNotRepository},
		"later":          {`{"format":"kvmbackup-repository","version":2}`, repository.ErrVersion},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, filepath.Join(dir, repository.MarkerName), tc.marker)
			_, err := repository.Open(t.Context(), dir, repository.Options{})
			want(t, err, tc.want)
			_, err = repository.Init(t.Context(), dir, repository.Options{})
			want(t, err, tc.want) // and doesn't overwrite it
		})
	}
	_, err := repository.Open(t.Context(), "", repository.Options{})
	want(t, err, kvmbackup.ErrInvalid)
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "file")
	put(t, file, "")
	for _, dir := range []string{dir, filepath.Join(dir, "none"), file} {
		_, err = repository.Open(t.Context(), dir, repository.Options{})
		want(t, err, repository.ErrNotRepository)
		if !strings.Contains(err.Error(), "mounted") {
			t.Error(err)
		}
	}
	_, err = repository.Init(t.Context(), filepath.Join(dir, "none"), repository.Options{})
	want(t, err, repository.ErrNotRepository)
	link(t, "/etc/hostname", filepath.Join(dir, repository.MarkerName))
	_, err = repository.Open(t.Context(), dir, repository.Options{})
	want(t, err, repository.ErrUnsafe)
}

// TestErrorsNameTheFolder: a host may have several repositories, and the storage's own messages don't say which.
func TestErrorsNameTheFolder(t *testing.T) {
	for step, c := range map[string]struct {
		cause error
		want  []string
	}{
		"create": {syscall.EROFS, []string{"mount it for writing"}},
		"write":  {syscall.ENOSPC, []string{"delete backups or enlarge it"}},
		"remove": {syscall.EIO, nil},
	} {
		failing := false
		r := initRepo(t, t.TempDir(), repository.Options{NoSync: true, BeforeStep: func(s string) error {
			if failing && strings.HasPrefix(s, step+" ") {
				return c.cause
			}
			return nil
		}})
		failing = true
		_, err := r.Probe(t.Context(), "")
		want(t, err, c.cause)
		for _, text := range append(c.want, strconv.Quote(r.Root())) {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%q isn't in %q", text, err)
			}
		}
	}
}

// Another share that is mounted at the same place later on must not be taken for the one that was opened.
func TestAnotherRepositoryAtThePlace(t *testing.T) {
	r := quick(t)
	m := publish(t, r, full())
	want(t, os.Remove(filepath.Join(r.Root(), repository.MarkerName)))
	_, err := r.Probe(t.Context(), "")
	want(t, err, repository.ErrUnavailable, repository.ErrNotRepository)
	initRepo(t, r.Root(), repository.Options{})
	_, err = r.Probe(t.Context(), "")
	want(t, err, repository.ErrUnavailable, repository.ErrOtherRepository)
	_, err = r.Remove(t.Context(), m.Backup)
	want(t, err, repository.ErrOtherRepository)
}

func TestProbe(t *testing.T) {
	r := quick(t)
	put(t, filepath.Join(r.Root(), ".kvmbackup-tmp-"+vm+"-probe"), "left by a crash")
	space, err := r.Probe(t.Context(), vm)
	want(t, err)
	if space.FreeBytes <= 0 || space.TotalBytes < space.FreeBytes {
		t.Fatalf("%+v", space)
	}
	same(t, tree(t, r), nil)
}

// TestConcurrentVMs works on several VMs at once through one Repository.
func TestConcurrentVMs(t *testing.T) {
	r := quick(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			m := full()
			m.VM = kvmbackup.VMID(fmt.Sprintf("vm%d", i))
			m.Path = string(m.VM) + "/2026.11.23.07.04.50"
			if err := cycle(t, r, m); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	same(t, tree(t, r), nil)
}

func cycle(t *testing.T, r *repository.Repository, m repository.Manifest) error {
	dir, err := r.CreatePartial(t.Context(), m.Path, m.ID)
	if err != nil {
		return err
	}
	for _, v := range m.Volumes {
		if err := os.WriteFile(filepath.Join(dir, v.File), []byte("x"), 0o600); err != nil {
			return err
		}
	}
	if err := r.Publish(t.Context(), m); err != nil {
		return err
	}
	if _, err := r.List(t.Context(), ""); err != nil {
		return err
	}
	_, err = r.Remove(t.Context(), m.Backup)
	return err
}

// TestRestoresWithQemuImgAlone follows docs/format.md: a chain made in partial folders, with relative links, is read by
// qemu-img without this package.
func TestRestoresWithQemuImgAlone(t *testing.T) {
	lab.Need(t, "qemu-img")
	r := quick(t)
	base, top := full(), incremental()
	base.Volumes, top.Volumes = base.Volumes[:1], top.Volumes[:1]
	size := "1M"
	for _, m := range []repository.Manifest{base, top} {
		dir, err := r.CreatePartial(t.Context(), m.Path, m.ID)
		want(t, err)
		args := []string{"create", "-q", "-f", "qcow2"}
		if link := m.Volumes[0].ParentFile; link != "" {
			args = append(args, "-F", "qcow2", "-b", link)
		}
		image := filepath.Join(dir, m.Volumes[0].File)
		run(t, "qemu-img", append(args, image, size)...)
		pattern, at := "0x11", "0"
		if m.Position > 0 {
			pattern, at = "0x22", "64k"
		}
		run(t, "qemu-io", "-f", "qcow2", "-c", "write -P "+pattern+" "+at+" 64k", image)
		want(t, r.Publish(t.Context(), m))
	}
	out := filepath.Join(t.TempDir(), "restored.raw")
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", r.FilePath(top.Path, top.Volumes[0].File), out)
	got, err := os.ReadFile(out)
	want(t, err)
	disk := make([]byte, 1<<20)
	copy(disk, bytes.Repeat([]byte{0x11}, 64<<10))
	copy(disk[64<<10:], bytes.Repeat([]byte{0x22}, 64<<10))
	if !bytes.Equal(got, disk) {
		t.Fatal("restored differently")
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatal(name, args, err, string(out))
	}
}

// An empty name, as of a variable that isn't set, must not make the working directory a repository.
func TestNoFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	if _, err := repository.Init(t.Context(), "", repository.Options{}); err == nil {
		t.Error("the working directory was taken")
	}
	if _, err := os.Stat(repository.MarkerName); err == nil {
		t.Error("it has a marker")
	}
}
