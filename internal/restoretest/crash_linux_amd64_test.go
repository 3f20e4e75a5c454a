package restoretest_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// crash is a VM that is off and can be put back into its state before a restore, as often as wanted.
type crash struct {
	*world
	folder string
	job    childJob
	before map[string][]byte // by path; those that are lost are not in it
	old    contents
	want   contents
}

func newCrash(t *testing.T, lost ...string) *crash {
	t.Helper()
	l := newWorld(t, "vda", "vdb", "vdc")
	c := &crash{world: l, folder: filepath.Join(l.dir, "images"), before: map[string][]byte{}, old: contents{}}
	b := l.chain(2)[1]
	l.ok(l.h.Shutdown(vm))
	c.want = l.held[b.ID]
	older := l.restore(engine.RestoreRequest{Backup: l.first().ID})
	c.job = childJob{NAS: l.nas, Backup: b.ID, Volumes: l.volumes}
	for _, v := range older.Volumes {
		path := l.source(v.Device)
		c.job.Disks = append(c.job.Disks, kvmbackup.DiskRef{Device: v.Device, Source: path, Format: "qcow2"})
		if slices.Contains(lost, v.Device) {
			continue
		}
		data, err := os.ReadFile(v.Path)
		l.ok(err)
		c.before[path], c.old[v.VolumeID] = data, l.held[l.first().ID][v.VolumeID]
	}
	c.reset()
	return c
}

func (l *world) first() kvmbackup.Backup {
	l.Helper()
	all, err := l.engine.List(l.Context(), kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted},
	})
	l.ok(err)
	return all[0]
}

func (c *crash) reset() {
	c.Helper()
	c.ok(os.RemoveAll(c.folder))
	c.ok(os.Mkdir(c.folder, 0o755))
	for path, data := range c.before {
		c.ok(os.WriteFile(path, data, 0o640))
	}
}

// child runs the job in another process with a fault.
func (c *crash) child(j childJob, f fault) (int, error) {
	c.Helper()
	data, err := json.Marshal(j)
	c.ok(err)
	file := filepath.Join(c.dir, "job.json")
	c.ok(os.WriteFile(file, data, 0o600))
	n, err := runTraced(file, f)
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) {
		lab.Missing(c, "processes can't be traced here")
	}
	return n, err
}

// state says of every disk whether its image is the old one, the new one, or missing.
func (c *crash) state() string {
	c.Helper()
	var states []string
	for _, d := range c.job.Disks {
		s := "missing"
		if _, err := os.Stat(d.Source); err == nil {
			got, err := kvmbackuptest.ReadFiles(d.Source)
			c.ok(err)
			old, had := c.old[volume(d.Device).ID]
			switch {
			case got.Equal(c.want[volume(d.Device).ID]):
				s = "new"
			case had && got.Equal(old):
				s = "old"
			default:
				s = "neither"
			}
		}
		states = append(states, s)
	}
	return strings.Join(states, " ")
}

const allNew = "new new new"

func (c *crash) allOld() string {
	var states []string
	for _, d := range c.job.Disks {
		s := "missing"
		if c.before[d.Source] != nil {
			s = "old"
		}
		states = append(states, s)
	}
	return strings.Join(states, " ")
}

// startable wants no mixture with which a VM could start.
func (c *crash) startable(when string) {
	c.Helper()
	if s := c.state(); !strings.Contains(s, "missing") && s != allNew && s != c.allOld() ||
		strings.Contains(s, "neither") {
		c.Fatalf("%s the VM can start with: %s", when, s)
	}
}

// settled recovers in a process that stays alive, and wants all old or all new and nothing else in the folder.
func (c *crash) settled(when string) {
	c.Helper()
	c.startable(when)
	j := c.job
	j.Backup = ""
	e, err := j.engine(c.Context())
	c.ok(err)
	c.ok(j.do(c.Context(), e))
	if s := c.state(); s != allNew && s != c.allOld() {
		c.Fatalf("%s, recovered to: %s", when, s)
	}
	files, err := os.ReadDir(c.folder)
	c.ok(err)
	for _, f := range files {
		if strings.Contains(f.Name(), "kvmbackup") {
			c.Fatalf("%s, left after recovery: %s", when, f.Name())
		}
	}
}

// TestKilledAtEveryStepOfTheSwap kills the process before each change that a swap makes, and its recovery at some
// change of its own.
func TestKilledAtEveryStepOfTheSwap(t *testing.T) {
	for name, lost := range map[string][]string{"all there": nil, "first lost": {"vda"},
		"all lost": {"vda", "vdb", "vdc"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCrash(t, lost...)
			recovery := c.job
			recovery.Backup = ""
			for nth := 1; ; nth++ {
				c.reset()
				n, err := c.child(c.job, fault{nth: nth})
				if err == nil {
					t.Logf("%d changes", n)
					if s := c.state(); s != allNew {
						t.Fatalf("restored to %s", s)
					}
					break
				}
				c.fails(err, errKilled)
				c.startable("killed")
				if _, err := c.child(recovery, fault{nth: 1 + rand.IntN(8)}); err != nil { //nolint:gosec // any step will do
					c.fails(err, errKilled)
				}
				c.settled("killed")
			}
			c.settled("restored")
		})
	}
}

// TestEveryStepOfTheSwapFails lets each change fail instead: the old images are back at once.
func TestEveryStepOfTheSwapFails(t *testing.T) {
	lab.Further(t)
	for name, lost := range map[string][]string{"all there": nil, "last lost": {"vdc"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCrash(t, lost...)
			for nth := 1; ; nth++ {
				c.reset()
				n, err := c.child(c.job, fault{nth: nth, errno: syscall.EIO})
				if err == nil && n < nth {
					break
				}
				want := allNew // what fails when all have their names is cleaning up
				if err != nil {
					c.fails(err, errChildFailed)
					want = c.allOld()
				}
				if s := c.state(); s != want {
					t.Fatalf("change %d failed (%v): %s", nth, err, s)
				}
				c.settled("failed")
			}
		})
	}
}

// TestKilledWhileCopying: the old images are there all the time, and recovery removes what was written aside.
func TestKilledWhileCopying(t *testing.T) {
	t.Parallel()
	c := newCrash(t)
	for copies := range int32(3) {
		c.reset()
		j := c.job
		j.KillAtCopy = copies + 1
		_, err := c.child(j, fault{})
		c.fails(err, errKilled)
		if s := c.state(); s != c.allOld() {
			t.Fatalf("killed after %d copies: %s", copies+1, s)
		}
		c.settled("killed while copying")
	}
}

// TestEveryStepOfRecoveryFails stops a swap half-way and lets each change of its recovery fail, and then be killed.
func TestEveryStepOfRecoveryFails(t *testing.T) {
	t.Parallel()
	c := newCrash(t, "vdb")
	recovery := c.job
	recovery.Backup = ""
	for _, errno := range []syscall.Errno{syscall.EIO, 0} {
		first, stride := lab.Every(t, 4)
		for nth := 1 + first; ; nth += stride {
			c.reset()
			_, err := c.child(c.job, fault{nth: 20})
			c.fails(err, errKilled)
			n, err := c.child(recovery, fault{nth: nth, errno: errno})
			if err == nil && n < nth {
				break
			}
			c.settled("recovery broken off")
		}
	}
}
