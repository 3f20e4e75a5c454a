package executortest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// Simulator is a World of package kvmbackuptest: the one that other worlds are compared with.
type Simulator struct {
	h     *kvmbackuptest.Hypervisor
	vm    string
	dir   string // with files that stand for the images, for restores to replace
	disks int
	share int
}

var (
	_ World       = (*Simulator)(nil)
	_ Grower      = (*Simulator)(nil)
	_ Snapshotter = (*Simulator)(nil)
	_ Plugger     = (*Simulator)(nil)
	_ Meddler     = (*Simulator)(nil)
	_ Filler      = (*Simulator)(nil)
	_ AgentSwitch = (*Simulator)(nil)
)

// NewSimulator makes the world. It keeps its images and shares in the folder, which is empty.
func NewSimulator(dir string) *Simulator {
	return &Simulator{h: kvmbackuptest.NewHypervisor(), vm: "simulated", dir: dir}
}

// Hypervisor is what the world stands on.
func (s *Simulator) Hypervisor() *kvmbackuptest.Hypervisor { return s.h }

// Executor implements World. A job with a limit of its bandwidth takes its time, in which it can be stopped.
func (s *Simulator) Executor() kvmbackup.Executor { return pacedExecutor{s.h.Executor(), s} }

// Images implements World.
func (s *Simulator) Images() engine.Images { return kvmbackuptest.Images{} }

// Share implements World.
func (s *Simulator) Share() (string, error) {
	s.share++
	dir := filepath.Join(s.dir, fmt.Sprintf("share-%d", s.share))
	return dir, os.Mkdir(dir, 0o755)
}

// Make implements World.
func (s *Simulator) Make(d Domain) (string, error) {
	return s.vm, errors.Join(s.define(d, kvmbackuptest.AgentMissing), s.Start())
}

// MakeWithAgent implements AgentSwitch.
func (s *Simulator) MakeWithAgent(d Domain) (string, error) {
	return s.vm, errors.Join(s.define(d, kvmbackuptest.AgentPresent), s.h.Start(s.vm))
}

func (s *Simulator) define(d Domain, agent kvmbackuptest.Agent) error {
	spec := kvmbackuptest.Domain{Name: s.vm, Transient: d.Transient, Agent: agent}
	for _, disk := range d.Disks {
		spec.Disks = append(spec.Disks, s.disk(disk, ""))
	}
	return s.h.Define(spec)
}

func (s *Simulator) disk(d Disk, source string) kvmbackuptest.Disk {
	if source == "" {
		s.disks++
		source = filepath.Join(s.dir, fmt.Sprintf("disk-%d.qcow2", s.disks))
	}
	return kvmbackuptest.Disk{Device: d.Device, Source: source, SizeBytes: d.SizeBytes}
}

// Start implements World.
func (s *Simulator) Start() error { return errors.Join(s.h.Start(s.vm), s.h.Pause(s.vm)) }

// Stop implements World.
func (s *Simulator) Stop() error { return s.h.Destroy(s.vm) }

// Kill implements World.
func (s *Simulator) Kill() error { return s.h.Crash(s.vm) }

// Pause implements World.
func (s *Simulator) Pause() error { return s.h.Pause(s.vm) }

// Resume implements World.
func (s *Simulator) Resume() error { return s.h.Resume(s.vm) }

// Source implements World.
func (s *Simulator) Source(device string) (string, error) { return s.h.Source(s.vm, device) }

// Close implements World. There is nothing to destroy.
func (s *Simulator) Close() error { return nil }

// FinishJob implements World.
func (s *Simulator) FinishJob() error {
	if err := s.h.RunJob(s.vm); !errors.Is(err, kvmbackup.ErrNoJob) {
		return err
	}
	return nil
}

// awake runs f while the guest runs: one that is paused doesn't write.
func (s *Simulator) awake(f func() error) error {
	state, _, err := s.h.State(s.vm)
	if err != nil {
		return err
	}
	if err := errors.Join(s.h.Resume(s.vm), f()); err != nil || state != kvmbackup.DomainPaused {
		return err
	}
	return s.h.Pause(s.vm)
}

// Write implements World.
func (s *Simulator) Write(device string, pattern byte, offset, length int64) error {
	return s.awake(func() error { return s.h.Write(s.vm, device, offset, bytes.Repeat([]byte{pattern}, int(length))) })
}

// Zero implements World.
func (s *Simulator) Zero(device string, offset, length int64) error {
	return s.awake(func() error { return s.h.Discard(s.vm, device, offset, length) })
}

// Grow implements Grower.
func (s *Simulator) Grow(device string, sizeBytes int64) error {
	return s.h.Resize(s.vm, device, sizeBytes)
}

// Snapshot implements Snapshotter.
func (s *Simulator) Snapshot(device string) error { return s.h.Snapshot(s.vm, device) }

// Commit implements Snapshotter.
func (s *Simulator) Commit(device string) error { return s.h.Commit(s.vm, device) }

// Attach implements Plugger.
func (s *Simulator) Attach(d Disk, source string) error { return s.h.Attach(s.vm, s.disk(d, source)) }

// Detach implements Plugger.
func (s *Simulator) Detach(device string) (string, error) {
	source, err := s.Source(device)
	if err != nil {
		return "", err
	}
	return source, s.h.Detach(s.vm, device)
}

// AddCheckpoint implements Meddler.
func (s *Simulator) AddCheckpoint(name string, devices ...string) error {
	return s.h.CreateCheckpoint(s.vm, name, devices...)
}

// RemoveCheckpoint implements Meddler.
func (s *Simulator) RemoveCheckpoint(name string, metadataOnly bool) error {
	st, err := s.h.Executor().Inspect(context.Background(), kvmbackup.DomainRef{Name: s.vm})
	if err != nil {
		return err
	}
	at := slices.IndexFunc(st.Checkpoints, func(c kvmbackup.CheckpointStatus) bool { return c.Name == name })
	if at < 0 {
		return fmt.Errorf("%w: %s", kvmbackup.ErrNoCheckpoint, name)
	}
	if err := s.h.ForgetCheckpoint(s.vm, name); err != nil || metadataOnly {
		return err
	}
	var errs []error
	for _, device := range st.Checkpoints[at].Devices {
		errs = append(errs, s.h.RemoveBitmap(s.vm, device, name))
	}
	return errors.Join(errs...)
}

// AddBitmap implements Meddler.
func (s *Simulator) AddBitmap(device, name string) error {
	return s.h.CreateBitmap(s.vm, device, name)
}

// RemoveBitmap implements Meddler.
func (s *Simulator) RemoveBitmap(device, name string) error {
	return s.h.RemoveBitmap(s.vm, device, name)
}

// SmallShare implements Filler. That it is full is told to the simulator.
func (s *Simulator) SmallShare() (string, error) { return s.Share() }

// Fill implements Filler.
func (s *Simulator) Fill(string) error {
	return s.h.SetTarget(s.vm, kvmbackuptest.Target{State: kvmbackuptest.TargetFull})
}

// Free implements Filler.
func (s *Simulator) Free(string) error { return s.h.SetTarget(s.vm, kvmbackuptest.Target{}) }

// pacedExecutor slows down the jobs whose bandwidth is limited, which the simulator only records.
type pacedExecutor struct {
	kvmbackup.Executor
	s *Simulator
}

type pacedJob struct {
	kvmbackup.Job
	s *Simulator
}

func (s *Simulator) pace(bytesPerSecond int64) error {
	var delay time.Duration
	if bytesPerSecond > 0 {
		delay = time.Second * kvmbackuptest.ClusterBytes / time.Duration(bytesPerSecond)
	}
	return s.h.SetTarget(s.vm, kvmbackuptest.Target{Delay: delay})
}

// PrepareJob implements kvmbackup.Executor.
func (e pacedExecutor) PrepareJob(
	ctx context.Context, dom kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	j, err := e.Executor.PrepareJob(ctx, dom, spec)
	if err != nil {
		return nil, err
	}
	if spec.BandwidthBytes > 0 {
		err = e.s.pace(spec.BandwidthBytes)
	}
	return pacedJob{j, e.s}, err
}

// AdoptJob implements kvmbackup.Executor.
func (e pacedExecutor) AdoptJob(
	ctx context.Context, dom kvmbackup.DomainRef, spec kvmbackup.JobSpec,
) (kvmbackup.Job, error) {
	j, err := e.Executor.AdoptJob(ctx, dom, spec)
	if err != nil {
		return nil, err
	}
	return pacedJob{j, e.s}, nil
}

// SetBandwidth implements kvmbackup.Job.
func (j pacedJob) SetBandwidth(ctx context.Context, bytesPerSecond int64) error {
	return errors.Join(j.Job.SetBandwidth(ctx, bytesPerSecond), j.s.pace(bytesPerSecond))
}
