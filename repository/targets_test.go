package repository_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// openIn returns the files of a folder that this process has open.
func openIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	const own = "/proc/self/fd"
	list, err := os.ReadDir(own)
	if err != nil {
		lab.Missing(t, err)
	}
	for _, e := range list {
		if to, err := os.Readlink(filepath.Join(own, e.Name())); err == nil && filepath.Dir(to) == dir {
			names = append(names, filepath.Base(to))
		}
	}
	return names
}

func TestOpenTargets(t *testing.T) {
	r := initRepo(t, t.TempDir(), repository.Options{})
	files := []string{"root.v1.qcow2", "datadisk.v2.qcow2"}
	for name, end := range map[string]func(m repository.Manifest, release func()) error{
		"publish": func(m repository.Manifest, _ func()) error { return r.Publish(t.Context(), m) },
		"remove partial": func(m repository.Manifest, _ func()) error {
			return r.RemovePartial(t.Context(), m.Backup)
		},
		"release": func(_ repository.Manifest, release func()) error { release(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			m := full()
			m.VM = kvmbackup.VMID(name[:3])
			m.Path = string(m.VM) + "/2026.11.23.07.04.50"
			m = prepare(t, r, m)
			dir := r.PartialDir(m.Path, m.ID)
			_, err := r.OpenTargets(t.Context(), m.Path, m.ID, files)
			want(t, err)
			release, err := r.OpenTargets(t.Context(), m.Path, m.ID, files) // takes the first one's place
			want(t, err)
			if open := openIn(t, dir); len(open) < len(files) {
				t.Errorf("open: %q", open)
			}
			want(t, end(m, release))
			release()
			final := filepath.Join(filepath.Dir(dir), filepath.Base(m.Path))
			for end := time.Now().Add(10 * time.Second); len(openIn(t, dir))+len(openIn(t, final)) > 0; runtime.Gosched() {
				if time.Now().After(end) {
					t.Fatalf("left open: %q, %q", openIn(t, dir), openIn(t, final))
				}
			}
		})
	}
}

func TestOpenTargetsRefuses(t *testing.T) {
	r := initRepo(t, t.TempDir(), repository.Options{})
	m := prepare(t, r, full())
	for file, sentinel := range map[string]error{
		"missing.qcow2": repository.ErrNotFound, "../../x": kvmbackup.ErrInvalid, "link.qcow2": repository.ErrUnsafe,
	} {
		if file == "link.qcow2" {
			want(t, os.Symlink("/etc/passwd", filepath.Join(r.PartialDir(m.Path, m.ID), file)))
		}
		_, err := r.OpenTargets(t.Context(), m.Path, m.ID, []string{"root.v1.qcow2", file})
		want(t, err, sentinel)
	}
	if open := openIn(t, r.PartialDir(m.Path, m.ID)); len(open) > 0 {
		t.Errorf("left open: %q", open)
	}
}
