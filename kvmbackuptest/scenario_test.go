package kvmbackuptest_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// A scenario is a history of one VM, one step a line; testdata/scenarios/README.md has the language. A step that isn't
// possible when its turn comes, such as a write to a VM that is off, is passed over, so that any part of a scenario is
// one too.
type scenario []string

func (sc scenario) String() string { return strings.Join(sc, "\n") + "\n" }

// play is a scenario under way.
type play struct {
	*world
	ref      kvmbackup.DomainRef
	detached map[string]engine.Volume // by device
	replaced int
	target   kvmbackuptest.TargetState
	room     int64 // of the scratch, in clusters; 0: endless
	compare  bool  // the policy's
	digests  bool  // the requests'
	unit     int64 // by how many clusters the numbers of lines are apart
	busy     bool  // the guest writes while a job copies
	agent    kvmbackuptest.Agent
	noThaw   bool // something happened while the guest was frozen and the agent could not thaw it: recovery tries once
	done     struct{ backups, incrementals, retired, faults int }
	taken    map[string]int // how often each verb was carried out, not passed over
}

// run plays a scenario on a fresh VM and then does what holds after every history: what was left is recovered, nothing
// is left over, every backup offered restores to what the disks held, and the next backup succeeds.
func (sc scenario) run(t *testing.T, dir string) (p *play, err error) {
	synctest.Test(t, func(*testing.T) {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		p, err = sc.play(dir)
	})
	return p, err
}

func (sc scenario) play(dir string) (*play, error) {
	l, err := newWorld(dir, slices.Contains(sc, "transient"), kvmbackuptest.AgentPresent)
	if err != nil {
		return nil, err
	}
	if slices.Contains(sc, "pull") {
		if err := l.withScratch(); err != nil {
			return nil, err
		}
	}
	if slices.Contains(sc, "sealed") {
		if err := l.sealing(slices.Contains(sc, "index-key")); err != nil {
			return nil, err
		}
	}
	p := &play{world: l, detached: map[string]engine.Volume{}, taken: map[string]int{}, unit: 1}
	p.compare, p.digests = slices.Contains(sc, "compare"), slices.Contains(sc, "digests")
	if slices.Contains(sc, "wide") {
		p.unit = 2 * qcow2.IndexPieceBytes / cluster / 8
	}
	p.ref = kvmbackup.DomainRef{Name: vm, Disks: l.disks}
	if err := p.setUp(); err != nil {
		return p, err
	}
	for n, line := range sc {
		if err := p.step(strings.Fields(line)); err != nil {
			return p, fmt.Errorf("line %d, %q: %w", n+1, line, err)
		}
	}
	if err := p.finish(); err != nil {
		return p, fmt.Errorf("at the end: %w", err)
	}
	return p, nil
}

// setUp starts the VM with some data, and with things of others that have to stay.
func (p *play) setUp() error {
	p.h.OnStep(func(string, int64, int64) {
		if p.busy {
			_ = p.write("vda", int64(p.seed%8), 1) // refused when the guest has no such disk, or doesn't run
		}
	})
	foreign := filepath.Join(p.dir, "nas", vm, "notes.txt")
	return errors.Join(p.h.Start(vm), p.widen(), p.write("vda", 0, 2), p.write("vdb", 1, 1),
		p.h.CreateCheckpoint(vm, "others", "vda"),
		p.h.CreateBitmap(vm, "vdb", "kvmbackup-mine-not"), os.Mkdir(filepath.Dir(foreign), 0o755),
		os.WriteFile(foreign, []byte("x"), 0o644))
}

// widen grows the disks so far that there is room for all places.
func (p *play) widen() error {
	if p.unit == 1 {
		return nil
	}
	return errors.Join(p.h.Resize(vm, "vda", 8*p.unit*cluster), p.h.Resize(vm, "vdb", 8*p.unit*cluster))
}

// newDisk is one that has room for all places.
func (p *play) newDisk(device, name string) kvmbackuptest.Disk {
	d := p.world.newDisk(device, name)
	d.SizeBytes *= p.unit
	return d
}

// settings are the lines that count wherever they are.
var settings = []string{"transient", "pull", "compare", "sealed", "index-key", "digests", "wide"}

// write lets the guest write n clusters from a place on.
func (p *play) write(device string, at, n int64) error { return p.world.write(device, at*p.unit, n) }

// step carries one line out.
func (p *play) step(words []string) error {
	if len(words) == 0 || strings.HasPrefix(words[0], "#") || slices.Contains(settings, words[0]) {
		return nil
	}
	p.describe()
	p.noThaw = p.checkThawed() != nil && (p.noThaw || p.agent != kvmbackuptest.AgentPresent)
	arg := func(n int) string { return append(words, "", "", "", "")[n] }
	num := func(n int) int64 { v, _ := strconv.ParseInt(arg(n), 10, 64); return v }
	switch words[0] {
	case "write":
		p.took("write", p.write(arg(1), num(2), max(num(3), 1)))
	case "scribble": // less than a cluster
		p.seed++
		p.took("scribble", p.h.Write(vm, arg(1), num(2)*p.unit*cluster+1024, kvmbackuptest.Pattern(p.seed, 3000)))
	case "discard":
		p.took("discard", p.h.Discard(vm, arg(1), num(2)*p.unit*cluster, max(num(3), 1)*cluster))
	case "backup":
		return p.backup(words[1:])
	case "delete", "delete!":
		return p.delete(int(num(1)), words[0] == "delete!")
	case "restore":
		return p.restoreInPlace(int(num(1)))
	case "retain":
		return p.retain(words[1:])
	case "pin", "unpin":
		return p.pin(int(num(1)), words[0] == "pin")
	case "later": // backups fall into other periods
		<-time.After(time.Duration(num(1)) * time.Hour)
	case "recover":
		return p.recover()
	case "check":
		return p.restoreAll()
	case "kill", "kill!", "fail", "fail!":
		return p.accident(words)
	default:
		return p.operate(words[0], arg(1), num(2))
	}
	return nil
}

// operate is what administrators and accidents do. What is not possible now is passed over.
func (p *play) operate(verb, device string, n int64) error {
	simple := map[string]func(string) error{
		"start": p.h.Start, "shutdown": p.h.Shutdown, "destroy": p.h.Destroy, "crash": p.h.Crash, "restart": p.h.Restart,
		"pause": p.h.Pause, "pause-error": p.h.PauseByError, "resume": p.h.Resume, "job-ends": p.h.RunJob,
	}
	disk := map[string]func(name, device string) error{
		"snapshot": p.h.Snapshot, "snapshot-by-hand": p.h.SnapshotByHand, "commit": p.h.Commit,
		"attach": p.attach, "detach": p.detach, "replace": p.replace,
	}
	agents := map[string]kvmbackuptest.Agent{"present": kvmbackuptest.AgentPresent, "missing": kvmbackuptest.AgentMissing,
		"silent": kvmbackuptest.AgentSilent, "failing": kvmbackuptest.AgentFailing, "nothing": kvmbackuptest.AgentNothing,
		"thaw-failing": kvmbackuptest.AgentThawFailing}
	targets := map[string]kvmbackuptest.TargetState{"good": kvmbackuptest.TargetGood, "full": kvmbackuptest.TargetFull,
		"hung": kvmbackuptest.TargetHung, "dead": kvmbackuptest.TargetDead}
	switch f, g := simple[verb], disk[verb]; {
	case f != nil:
		p.took(verb, f(vm))
	case g != nil:
		p.took(verb, g(vm, device))
	case verb == "grow":
		if c, err := p.h.Content(vm, device); err == nil {
			p.took(verb, p.h.Resize(vm, device, c.SizeBytes()+n*512))
		}
	case verb == "agent":
		p.agent = agents[device]
		return p.h.SetAgent(vm, p.agent)
	case verb == "target":
		p.target = targets[device]
		return p.h.SetTarget(vm, kvmbackuptest.Target{State: p.target, AfterBytes: n * cluster})
	case verb == "scratch":
		p.room = n
		return p.h.SetPull(vm, kvmbackuptest.Pull{ScratchBytes: n * cluster})
	case verb == "keys":
		if p.keys != nil {
			p.keys.gone.Store(device == "gone")
		}
	case verb == "busy", verb == "quiet":
		p.busy = verb == "busy"
	case verb == "forget":
		p.took(verb, nil)
		p.forget()
	default:
		return fmt.Errorf("unknown verb %q", verb)
	}
	return nil
}

// took counts a step that was possible.
func (p *play) took(verb string, err error) {
	if err == nil {
		p.taken[verb]++
	}
}

// forget makes libvirt lose its records of our checkpoints.
func (p *play) forget() {
	names, _ := p.h.Checkpoints(vm)
	for _, n := range names {
		if kvmbackup.CheckpointName(n).HasPrefix(p.prefix()) {
			_ = p.h.ForgetCheckpoint(vm, n)
		}
	}
}

func (p *play) volumeAt(device string) int {
	return slices.IndexFunc(p.volumes, func(v engine.Volume) bool { return v.Device == device })
}

func (p *play) detach(name, device string) error {
	at := p.volumeAt(device)
	if at < 0 || len(p.volumes) == 1 {
		return kvmbackup.ErrNoVolume
	}
	if err := p.h.Detach(name, device); err != nil {
		return err
	}
	p.detached[device] = p.volumes[at]
	p.volumes = slices.Delete(slices.Clone(p.volumes), at, at+1)
	return nil
}

func (p *play) attach(name, device string) error {
	v, ok := p.detached[device]
	if !ok {
		return kvmbackup.ErrNoVolume
	}
	d := p.newDisk(device, strings.TrimPrefix(string(v.ID), "vol-"))
	if err := p.h.Attach(name, d); err != nil {
		return err
	}
	delete(p.detached, device)
	p.volumes = append(slices.Clone(p.volumes), v)
	return nil
}

func (p *play) replace(name, device string) error {
	at := p.volumeAt(device)
	if at < 0 {
		return kvmbackup.ErrNoVolume
	}
	p.replaced++
	d := p.newDisk(device, fmt.Sprintf("new%d", p.replaced))
	if err := p.h.Replace(name, d); err != nil {
		return err
	}
	p.volumes = slices.Clone(p.volumes)
	p.volumes[at].ID = kvmbackup.VolumeID(fmt.Sprintf("vol-new%d", p.replaced))
	return nil
}

// describe brings the description of a transient domain's disks up to date.
func (p *play) describe() {
	if p.disks == nil {
		return
	}
	p.disks = nil
	for _, v := range p.volumes {
		p.disks = append(p.disks, kvmbackup.DiskRef{Device: v.Device, Source: p.source(v.Device), Format: "qcow2"})
	}
	p.ref.Disks = p.disks
}

// source asks the hypervisor where a disk is now: snapshots move it.
func (p *play) source(device string) string {
	path, err := p.h.Source(vm, device)
	if err != nil {
		panic(err)
	}
	return path
}

// accident carries out "kill N STEP...": the process dies at its N-th call; with fail only that call fails. With ! the
// call has its effect all the same.
func (p *play) accident(words []string) error {
	m := map[string]mode{"kill": killBefore, "kill!": killAfter, "fail": failBefore, "fail!": failAfter}[words[0]]
	n, err := strconv.Atoi(words[1])
	if err != nil {
		return err
	}
	if err := p.open(plan{n: n, mode: m}); err != nil {
		return err
	}
	err = p.step(words[2:])
	if p.gate.disarm() != "" {
		p.done.faults++
		p.taken[words[0]]++
		if errors.Is(err, errInjected) || errors.Is(err, errKilled) {
			err = nil
		}
	}
	return errors.Join(err, p.open(plan{}))
}
