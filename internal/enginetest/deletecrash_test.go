package enginetest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// jsonStore keeps one VM's state in one file, replaced as a whole: what a killed process leaves is what its last write
// made. It is for one process at a time.
type jsonStore struct {
	rules.StateStore
	file string
	now  func() time.Time
	step func(string) error // asked before each change
}

func newJSONStore(file string) *jsonStore {
	s := &jsonStore{file: file, now: time.Now}
	s.StateStore = rules.NewStateStore(s.update, func(context.Context, kvmbackup.VMID) (*rules.State, error) {
		return s.load()
	},
		func(context.Context) ([]*rules.State, error) {
			state, err := s.load()
			return []*rules.State{state}, err
		})
	return s
}

var _ kvmbackup.Store = (*jsonStore)(nil)

func (s *jsonStore) load() (*rules.State, error) {
	state := rules.NewState(lab.VM)
	data, err := os.ReadFile(s.file)
	if errors.Is(err, os.ErrNotExist) {
		return state, nil
	}
	if err != nil {
		return nil, err
	}
	return state, json.Unmarshal(data, state)
}

func (s *jsonStore) update(_ context.Context, _ kvmbackup.VMID, fn func(rules.Tx) error) error {
	state, err := s.load()
	if err != nil {
		return err
	}
	err = fn(state.Tx(s.now(), func(id kvmbackup.BackupID) (kvmbackup.Backup, error) {
		return kvmbackup.Backup{}, rules.NotFound(id)
	}))
	if err != nil {
		return err
	}
	return s.save(state)
}

func (s *jsonStore) save(state *rules.State) error {
	if s.step != nil {
		if err := s.step("store"); err != nil {
			return err
		}
	}
	data, err := json.Marshal(state)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(s.file+".new", s.file)
}

// The child process of TestDeleteKilledCrash is told by its environment what to delete, and at which step to die.
const (
	envKillDir    = "KVMBACKUP_TEST_KILL_DIR"
	envKillDelete = "KVMBACKUP_TEST_KILL_DELETE"
	envKillForce  = "KVMBACKUP_TEST_KILL_FORCE"
	envKillAt     = "KVMBACKUP_TEST_KILL_AT"
)

// TestDeleteKilledChild is that process, and does nothing in a normal run.
func TestDeleteKilledChild(t *testing.T) {
	dir := os.Getenv(envKillDir)
	if dir == "" {
		return
	}
	at, err := strconv.Atoi(os.Getenv(envKillAt))
	lab.OK(t, err)
	n := 0
	dieAt := func(string) error {
		if n == at {
			lab.OK(t, syscall.Kill(os.Getpid(), syscall.SIGKILL))
			select {} // until the signal arrives
		}
		n++
		return nil
	}
	store := newJSONStore(filepath.Join(dir, "store.json"))
	store.step = dieAt
	repo, err := repository.Open(t.Context(), filepath.Join(dir, "repo"), repository.Options{
		NoSync: true, BeforeStep: dieAt,
	})
	lab.OK(t, err)
	e, err := engine.New(engine.Config{Store: store, Repository: repo})
	lab.OK(t, err)
	_, err = e.Delete(t.Context(), kvmbackup.BackupID(os.Getenv(envKillDelete)), kvmbackup.DeleteOptions{
		Subtree: os.Getenv(envKillForce) == "true",
	})
	lab.OK(t, err)
}

// TestDeleteKilledCrash kills a deleting process with SIGKILL before each of its file steps and store writes.
func TestDeleteKilledCrash(t *testing.T) {
	for _, d := range deletions {
		t.Run(d.name, func(t *testing.T) {
			first, stride := lab.Every(t, 4*lab.Sparse(3))
			for i := first; ; i += stride {
				dir := t.TempDir()
				root := filepath.Join(dir, "repo")
				lab.OK(t, os.Mkdir(root, 0o700))
				_, err := repository.Init(t.Context(), root, repository.Options{NoSync: true})
				lab.OK(t, err)
				store := newJSONStore(filepath.Join(dir, "store.json"))
				w := openWorld(t, root, store)
				w.build(d.backups)
				for _, name := range strings.Fields(d.first) {
					w.deleteAsPlanned(name, false)
				}
				killed := deleteKilledAt(t, dir, d.last, d.force, i)
				w.whole()
				if !killed {
					lab.Equal(t, "state", w.state(), d.want)
					t.Logf("%d steps", i)
					return
				}
				store.now = func() time.Time { return time.Now().Add(time.Hour) } // the dead process's lease is over
				if i%2 == 0 {
					all, err := w.engine.RecoverAll(t.Context())
					lab.OK(t, errors.Join(err, errOf(all)))
					w.settled()
				}
				w.deleteAgain(d.last, d.force)
				lab.Equal(t, fmt.Sprintf("state after a kill at step %d", i), w.state(), d.want)
				w.settled()
				w.accountedOnce()
			}
		})
	}
}

// deleteKilledAt runs the deleting process and says whether it was killed.
func deleteKilledAt(t *testing.T, dir, name string, force bool, at int) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDeleteKilledChild$", "-test.count=1")
	cmd.Env = append(os.Environ(), envKillDir+"="+dir, envKillDelete+"="+lab.BackupID(name).String(),
		envKillForce+"="+strconv.FormatBool(force), envKillAt+"="+strconv.Itoa(at))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if status, is := cmd.ProcessState.Sys().(syscall.WaitStatus); !is || !status.Signaled() ||
		status.Signal() != syscall.SIGKILL {
		t.Fatalf("the deleting process ended by itself: %v\n%s", err, out)
	}
	return true
}
