package crash_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// TestCrashOfTheMachine cuts the power before each step of the repository: the process and QEMU are killed, and of the
// repository only what was flushed is left. Files that were not flushed are empty, or half of them is; and names that
// were not flushed are there in one run and lost in the next. What a removal took away doesn't come back.
func TestCrashOfTheMachine(t *testing.T) {
	t.Parallel()
	needHost(t)
	names := []string{"incremental", "delete", "first full", "sealed pulled incremental", "rekey"}
	if lab.Thorough() {
		names = append(names, "compared by pull", "sealed compared by pull")
	}
	n, stride := lab.Every(t, lab.Sparse(4))
	for i, name := range names {
		for j, l := range []loss{{names: true}, {half: true}, {}, {names: true, half: true}} {
			if sealed := i - 3; !lab.Thorough() && i+j > 1 && j != sealed {
				continue
			}
			if n++; n%stride != 0 {
				continue
			}
			t.Run(fmt.Sprintf("%s, %s", name, l), func(t *testing.T) {
				t.Parallel()
				cutPower(t, caseNamed(name), l)
			})
		}
	}
}

// cutPower cuts the power at every step, or at some.
func cutPower(t *testing.T, c crashCase, l loss) {
	t.Helper()
	points := pointsOf(t, c)
	s := newSequence(t, c)
	s.Power = true
	tried := 0
	first, stride := lab.Every(t, 9)
	for i, n := range changes(points) {
		if i%stride != first {
			continue
		}
		s.Kill = n
		died, point, out := s.run(t)
		if s.Died && s.report(t, out).Failed {
			t.Errorf("power cut before point %d:\n%s", n, out)
		}
		if s.Died = died; !died {
			t.Errorf("point %d was not reached", n)
			continue
		}
		tried++
		s.Cut, s.Recover = true, i%2 == 0
		killQEMU(t, s.Root)
		lost := l.apply(t, filepath.Join(s.Dir, fmt.Sprintf("run-%d", s.Run), "repository"), s.steps(t, point))
		t.Logf("%s: lost %q", point, lost)
	}
	s.Stop = true
	_, _, out := s.run(t)
	if s.report(t, out).Failed {
		t.Errorf("last power cut:\n%s", out)
	}
	t.Logf("%d power cuts", tried)
}

// changes returns the points at which the repository's folder is about to be changed.
func changes(points []string) (at []int) {
	for i, p := range points {
		if strings.HasPrefix(p, "step ") {
			at = append(at, i+1)
		}
	}
	return at
}

// steps returns the steps that were done: all that were noted, except the one that the process died before.
func (s *sequence) steps(t *testing.T, died string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Dir, "steps"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	steps := strings.Split(strings.TrimSpace(string(text)), "\n")
	if "step "+steps[len(steps)-1] == died {
		steps = steps[:len(steps)-1]
	}
	return steps
}

func killQEMU(t *testing.T, root string) {
	t.Helper()
	pids, err := filepath.Glob(filepath.Join(root, "run", "qemu", "guest.pid"))
	if err != nil || len(pids) != 1 {
		t.Fatalf("pid files: %q, %v", pids, err)
	}
	g := guest{t: t, name: "guest"}
	pid := g.pid(&host{Root: root})
	g.must("kill", syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "QEMU is gone", func() bool { return syscall.Kill(pid, 0) != nil })
}

// loss is what a power cut takes.
type loss struct {
	names bool // new and changed names, too
	half  bool // the second half of files that were not flushed; otherwise all of them
}

func (l loss) String() string {
	what := "unflushed files are empty"
	if l.half {
		what = "unflushed files are cut in half"
	}
	if l.names {
		what += ", unflushed names lost"
	}
	return what
}

// apply takes from the folder what was not flushed after the steps.
func (l loss) apply(t *testing.T, dir string, steps []string) (lost []string) {
	t.Helper()
	flushed, names := replay(steps)
	err := filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == repository.MarkerName {
			return err
		}
		rel, _ := filepath.Rel(dir, file)
		if flushed[plain(rel)] {
			return nil
		}
		lost = append(lost, rel)
		info, err := e.Info()
		if err != nil {
			return err
		}
		size := int64(0)
		if l.half {
			size = info.Size() / 2
		}
		return os.Truncate(file, size)
	})
	for i := len(names) - 1; err == nil && l.names && i >= 0; i-- {
		lost = append(lost, names[i].verb+" of "+names[i].path)
		err = names[i].undo(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return lost
}

// change is a name that was made or changed.
type change struct{ verb, path string }

// replay returns the files that were flushed, by their plain names, and the changes of names that were not.
func replay(steps []string) (flushed map[string]bool, names []change) {
	flushed = map[string]bool{}
	for _, step := range steps {
		verb, name, _ := strings.Cut(step, " ")
		switch verb {
		case "sync":
			flushed[plain(name)] = true
		case "place":
			if path.Base(name) == repository.ManifestName && !inFlight.MatchString(path.Dir(name)) {
				continue // it replaces a published one: after a cut either is there, and the old one is the cut before
			}
			fallthrough
		case "mkdir", "rename", "link":
			names = append(names, change{verb, name})
		case "syncdir":
			names = slices.DeleteFunc(names, func(c change) bool { return path.Dir(c.path) == name })
		}
	}
	return flushed, names
}

var inFlight = regexp.MustCompile(`\.(partial|deleting)-[0-9a-f-]+|\.kvmbackup-tmp-[A-Z0-9]+-`)

// plain is a file's name in the end, whatever it is now.
func plain(name string) string { return inFlight.ReplaceAllString(name, "") }

func (c change) undo(dir string) error {
	name := filepath.Join(dir, filepath.FromSlash(c.path))
	switch c.verb {
	case "mkdir":
		return os.RemoveAll(name)
	case "place":
		return os.Remove(name)
	case "rename":
		now, err := filepath.Glob(inFlight.ReplaceAllString(name, "") + "*")
		if err != nil || len(now) != 1 {
			return errors.Join(err, fmt.Errorf("%s is now any of %q", name, now))
		}
		return os.Rename(now[0], name)
	}
	return nil
}
