package differential_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// simulatedHost is a guest of the simulator.
type simulatedHost struct {
	h    *kvmbackuptest.Hypervisor
	vm   string
	dir  string // with files that stand for the images, for restores to replace
	made int
}

func newSimulated(dir, vm string, size int64, transient bool) *simulatedHost {
	s := &simulatedHost{h: kvmbackuptest.NewHypervisor(), vm: vm, dir: dir}
	d := kvmbackuptest.Domain{Name: vm, Transient: transient}
	for _, device := range []string{"vda", "sda"} {
		d.Disks = append(d.Disks, kvmbackuptest.Disk{Device: device, Source: filepath.Join(dir, device+".qcow2"), SizeBytes: size})
	}
	must(s.h.Define(d))
	s.start()
	return s
}

func (s *simulatedHost) vmName() string               { return s.vm }
func (s *simulatedHost) executor() kvmbackup.Executor { return s.h.Executor() }
func (s *simulatedHost) images() engine.Images        { return kvmbackuptest.Images{} }
func (s *simulatedHost) start()                       { must(errors.Join(s.h.Start(s.vm), s.h.Pause(s.vm))) }
func (s *simulatedHost) destroy()                     { must(s.h.Destroy(s.vm)) }
func (s *simulatedHost) crash()                       { must(s.h.Crash(s.vm)) }
func (s *simulatedHost) pause()                       { must(s.h.Pause(s.vm)) }
func (s *simulatedHost) resume()                      { must(s.h.Resume(s.vm)) }
func (s *simulatedHost) mount(string)                 {}
func (s *simulatedHost) end()                         {}

func (s *simulatedHost) fill(string) {
	must(s.h.SetTarget(s.vm, kvmbackuptest.Target{State: kvmbackuptest.TargetFull}))
}

func (s *simulatedHost) free(string) { must(s.h.SetTarget(s.vm, kvmbackuptest.Target{})) }

func (s *simulatedHost) finishJob() {
	if err := s.h.RunJob(s.vm); !errors.Is(err, kvmbackup.ErrNoJob) {
		must(err)
	}
}

// awake runs f while the guest runs: one that is paused doesn't write.
func (s *simulatedHost) awake(f func() error) {
	state, _, err := s.h.State(s.vm)
	must(err)
	must(s.h.Resume(s.vm))
	must(f())
	if state == kvmbackup.DomainPaused {
		must(s.h.Pause(s.vm))
	}
}

func (s *simulatedHost) write(device string, pattern byte, offset, length int64) {
	s.awake(func() error { return s.h.Write(s.vm, device, offset, bytes.Repeat([]byte{pattern}, int(length))) })
}

func (s *simulatedHost) zero(device string, offset, length int64) {
	s.awake(func() error { return s.h.Discard(s.vm, device, offset, length) })
}

func (s *simulatedHost) attach(device, source string) {
	if source == "" {
		s.made++
		source = filepath.Join(s.dir, fmt.Sprintf("new-%d.qcow2", s.made))
	}
	must(s.h.Attach(s.vm, kvmbackuptest.Disk{Device: device, Source: source, SizeBytes: diskSize}))
}

func (s *simulatedHost) detach(device string) string {
	source := s.source(device)
	must(s.h.Detach(s.vm, device))
	return source
}

func (s *simulatedHost) source(device string) string {
	path, err := s.h.Source(s.vm, device)
	must(err)
	return path
}

func (s *simulatedHost) grow(device string, size int64) error { return s.h.Resize(s.vm, device, size) }
func (s *simulatedHost) snapshot(device string)               { must(s.h.Snapshot(s.vm, device)) }
func (s *simulatedHost) commit(device string)                 { must(s.h.Commit(s.vm, device)) }

func (s *simulatedHost) checkpoint(name string, devices ...string) {
	must(s.h.CreateCheckpoint(s.vm, name, devices...))
}

func (s *simulatedHost) bitmap(device, name string, _ bool) {
	must(s.h.CreateBitmap(s.vm, device, name))
}
func (s *simulatedHost) dropBitmap(device, name string) { must(s.h.RemoveBitmap(s.vm, device, name)) }

func (s *simulatedHost) dropCheckpoint(name string, metadataOnly bool) {
	st, err := s.executor().Inspect(context.Background(), kvmbackup.DomainRef{Name: s.vm})
	must(err)
	at := slices.IndexFunc(st.Checkpoints, func(c kvmbackup.CheckpointStatus) bool { return c.Name == name })
	must(s.h.ForgetCheckpoint(s.vm, name))
	if metadataOnly {
		return
	}
	for _, device := range st.Checkpoints[at].Devices {
		must(s.h.RemoveBitmap(s.vm, device, name))
	}
}
