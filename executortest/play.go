package executortest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

const (
	cluster  = 64 << 10 // also the bytes per second of a slow backup
	diskSize = 8 * cluster
	// bigSize is so much that a full of it, of which nothing but diskSize is ever written, takes QEMU about a second:
	// libvirt can limit a job only when it has begun.
	bigSize = 64 << 30
	// wideUnit is a quarter of a piece of an index, of which wide disks have two.
	wideUnit = qcow2.IndexPieceBytes / 4
)

// failure is a panic of a player, and ends the history.
type failure struct{ text string }

func must(err error) {
	if err != nil {
		panic(failure{err.Error()})
	}
}

// unplugged is a disk that was detached: where each side has left it.
type unplugged struct {
	volume  *volume
	sources []string
}

// volume is one disk, plugged in or not, and what it holds.
type volume struct {
	id        kvmbackup.VolumeID
	layers    int
	grownOver bool // while there was more than one layer
	content
}

// play is a history under way on both sides.
type play struct {
	ctx       context.Context //nolint:containedctx // a play is one call, and ends with it
	scratch   string
	sides     []*side
	transient bool
	indexed   bool  // sealed backups get indexes
	size      int64 // of what is written of each disk
	unit      int64 // of the steps' offsets and lengths
	running   bool
	plugged   map[string]*volume // by device
	unplugged map[string]*unplugged
	foreign   int // how many things of others were made
	volumes   int
	pattern   byte
	compared  int
}

// Play plays a history on the world and on the simulator, step by step, each with an engine, a store and a repository
// of its own. After each step it compares what a user would see on the two sides; at the end every backup that is
// offered is compared with what the disks held when it was taken. It returns how many steps were compared, and what was
// different, or wrong, first.
//
// The steps are those of the package's own histories, which [Rules] prints. What is not possible at its time is passed
// over, so that any part of a history is one, too. A step that needs what the world doesn't have is an ErrUnsupported.
func Play(ctx context.Context, w World, steps ...string) (compared int, err error) {
	if missing := lacks(w, abilitiesOf(steps)); len(missing) > 0 {
		return 0, fmt.Errorf("%w: the world is no %s", kvmbackup.ErrUnsupported, strings.Join(missing, ", "))
	}
	scratch, err := os.MkdirTemp("", "executortest-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	p := &play{
		ctx: ctx, scratch: scratch, transient: slices.Contains(steps, "transient"), running: true,
		indexed: slices.Contains(steps, "index-key"), size: diskSize, unit: cluster,
		plugged: map[string]*volume{}, unplugged: map[string]*unplugged{},
	}
	if slices.Contains(steps, "wide") {
		p.size, p.unit = diskSize*wideUnit/cluster, wideUnit
	}
	for _, device := range []string{"vda", "sda"} {
		p.plugged[device] = p.newVolume()
	}
	return p.play(w, steps)
}

func (p *play) play(w World, steps []string) (int, error) {
	at := "the start"
	err := caught(func() {
		p.begin(w, steps)
		for n, line := range steps {
			at = fmt.Sprintf("step %d, %q", n+1, line)
			p.step(line)
		}
		at = "the end"
		p.finish()
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", at, err)
	}
	return p.compared, err
}

// caught is the failure with which f ended.
func caught(f func()) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case failure:
			err = errors.New(r.text)
		default:
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	f()
	return nil
}

// begin makes the two sides, and lets their disks hold something.
func (p *play) begin(w World, steps []string) {
	size := p.size
	if slices.Contains(steps, "big") {
		size = bigSize
	}
	small := slices.ContainsFunc(steps, func(line string) bool { return strings.Contains(line, "full-target") })
	d := Domain{Transient: p.transient, Disks: []Disk{{"vda", size}, {"sda", size}}}
	room, err := scratchOf(w)
	must(err)
	tested := newSide(p, "tested", w, d, small, room)
	simulated := NewSimulator(p.dir())
	simulated.vm = tested.domain
	if room != "" {
		room = p.dir()
	}
	p.sides = []*side{tested, newSide(p, "simulated", simulated, d, small, room)}
	p.step("write vda 0 2")
	p.step("write sda 1 1")
}

// dir is a new folder that goes with the play.
func (p *play) dir() string {
	dir, err := os.MkdirTemp(p.scratch, "")
	must(err)
	must(os.Chmod(dir, 0o755))
	return dir
}

func (p *play) newVolume() *volume {
	p.volumes++
	return &volume{id: kvmbackup.VolumeID(fmt.Sprintf("vol-%d", p.volumes)), layers: 1, content: newContent(p.size)}
}

// step carries one line out on both sides and compares them. What is not possible now is passed over, so that any part
// of a history is one, too.
func (p *play) step(line string) {
	words := strings.Fields(line)
	arg := func(n int) string { return append(words, "", "", "")[n] }
	num := func(n int) int64 { v, _ := strconv.ParseInt(arg(n), 10, 64); return v }
	f := p.verb(words[0], words[1:], arg(1), num)
	if f == nil {
		return
	}
	var seen []string
	for i, s := range p.sides {
		text := f(i, s)
		seen = append(seen, strings.TrimSpace(text+"\n"+s.state(p)))
	}
	if seen[0] != seen[1] {
		panic(failure{difference(p.sides, seen)})
	}
	p.compared++
}

// difference shows the lines that differ.
func difference(sides []*side, seen []string) string {
	a, b := strings.Split(seen[0], "\n"), strings.Split(seen[1], "\n")
	var out strings.Builder
	out.WriteString("the sides differ")
	for n := range max(len(a), len(b)) {
		x, y := append(a, make([]string, len(b))...)[n], append(b, make([]string, len(a))...)[n]
		if x != y {
			fmt.Fprintf(&out, "\n  %-9s  %s\n  %-9s  %s", sides[0].name, x, sides[1].name, y)
		}
	}
	return out.String()
}

// silent is a step that shows nothing by itself.
func silent(f func(i int, s *side)) func(int, *side) string {
	return func(i int, s *side) string { f(i, s); return "" }
}

// verb returns what a step does to a side, after it has done it to the model; nil when it isn't possible.
func (p *play) verb(verb string, words []string, device string, num func(int) int64) func(int, *side) string {
	v := p.plugged[device]
	switch verb {
	case "transient", "big", "wide", "index-key":
		return nil
	case "backup", "restore", "delete", "forget", "require-full", "recover":
		return func(_ int, s *side) string { return s.operate(p, verb, words) }
	case "keys":
		return silent(func(_ int, s *side) { s.loseKeys(words[0] == "gone") })
	case "start":
		if p.running {
			return nil
		}
		p.running = true
		return silent(func(_ int, s *side) { must(s.world.Start()) })
	case "attach", "replace":
		return p.attach(device, verb == "replace")
	case "foreign-bitmap":
		return p.foreignBitmap(device, v)
	case "foreign-checkpoint", "lose-checkpoint", "lose-metadata", "lose-bitmap":
		return p.meddle(verb, device, v)
	}
	if !p.running {
		return nil
	}
	switch verb {
	case "stop", "crash", "restart":
		return p.stop(verb)
	case "pause":
		return silent(func(_ int, s *side) { must(s.world.Pause()) })
	case "resume":
		return silent(func(_ int, s *side) { must(s.world.Resume()) })
	case "write", "scribble", "zero", "grow", "snapshot", "commit", "detach":
		if v == nil {
			return nil
		}
		return p.change(verb, device, v, num)
	}
	panic(failure{"unknown step " + verb})
}

func (p *play) stop(verb string) func(int, *side) string {
	p.running = verb == "restart"
	return silent(func(_ int, s *side) {
		if verb == "crash" {
			must(s.world.Kill())
			return
		}
		must(s.world.Stop())
		if verb == "restart" {
			must(s.world.Start())
		}
	})
}

// change is what happens to a disk of the running guest.
func (p *play) change(verb, device string, v *volume, num func(int) int64) func(int, *side) string {
	size := v.size
	offset, length := num(2)*p.unit, max(num(3), 1)*p.unit
	if verb == "scribble" {
		offset, length = offset+1024, 3072
	}
	length = min(length, size-offset)
	switch verb {
	case "write", "scribble", "zero":
		if length <= 0 {
			return nil
		}
		if verb == "zero" {
			v.fill(0, offset, length)
			return silent(func(_ int, s *side) { must(s.world.Zero(device, offset, length)) })
		}
		p.pattern = p.pattern%250 + 1
		pattern := p.pattern
		v.fill(pattern, offset, length)
		return silent(func(_ int, s *side) { must(s.world.Write(device, pattern, offset, length)) })
	case "grow":
		v.grownOver = v.layers > 1
		size += max(num(2), 1) * 512
		return func(_ int, s *side) string {
			if err := s.world.(Grower).Grow(device, size); err != nil { // QEMU refuses it where there is a broken bitmap
				return "refused"
			}
			v.size = size
			return "grown"
		}
	case "snapshot":
		v.layers++
		return silent(func(_ int, s *side) { must(s.world.(Snapshotter).Snapshot(device)) })
	case "commit":
		// The simulator takes what was added for changed then, and QEMU doesn't: both are right.
		if v.layers == 1 || v.grownOver {
			return nil
		}
		v.layers--
		return silent(func(_ int, s *side) { must(s.world.(Snapshotter).Commit(device)) })
	}
	if device != "sda" { // only SCSI disks go without a guest's help
		return nil
	}
	u := &unplugged{volume: v, sources: make([]string, len(p.sides))}
	delete(p.plugged, device)
	p.unplugged[device] = u
	return silent(func(i int, s *side) {
		source, err := s.world.(Plugger).Detach(device)
		must(err)
		u.sources[i] = source
	})
}

func (p *play) attach(device string, fresh bool) func(int, *side) string {
	u := p.unplugged[device]
	if u == nil || !p.running {
		return nil
	}
	delete(p.unplugged, device)
	p.plugged[device] = u.volume
	if fresh {
		p.plugged[device] = p.newVolume()
		u.sources = make([]string, len(p.sides))
	}
	return silent(func(i int, s *side) { must(s.world.(Plugger).Attach(Disk{device, p.size}, u.sources[i])) })
}

func (p *play) foreignBitmap(device string, v *volume) func(int, *side) string {
	if v == nil {
		return nil
	}
	p.foreign++
	name := fmt.Sprintf("kvmbackup-not-%d", p.foreign)
	return silent(func(_ int, s *side) { must(s.world.(Meddler).AddBitmap(device, name)) })
}

// meddle is what others do to checkpoints and bitmaps.
func (p *play) meddle(verb, device string, v *volume) func(int, *side) string {
	switch {
	case verb == "lose-metadata":
		return func(_ int, s *side) string { return s.lose(p, true) }
	case !p.running:
		return nil
	case verb == "lose-checkpoint":
		return func(_ int, s *side) string { return s.lose(p, false) }
	case v == nil:
		return nil
	case verb == "lose-bitmap":
		return func(_ int, s *side) string { return s.loseBitmap(p, device) }
	}
	p.foreign++
	name := fmt.Sprintf("theirs-%d", p.foreign)
	return silent(func(_ int, s *side) { must(s.world.(Meddler).AddCheckpoint(name, device)) })
}

// devices are those that are plugged in, in order.
func (p *play) devices() []string { return slices.Sorted(maps.Keys(p.plugged)) }

// contents is what the disks hold now.
func (p *play) contents() map[kvmbackup.VolumeID]content {
	out := map[kvmbackup.VolumeID]content{}
	for _, v := range p.plugged {
		out[v.id] = v.clone()
	}
	return out
}

// finish is what holds after every history: two more backups succeed, and all of them hold what the disks held.
func (p *play) finish() {
	for _, line := range Steps("keys back; start; recover; write vda 3 2; backup; write vda 5; backup; backup other") {
		p.step(line)
	}
	for _, s := range p.sides {
		for _, c := range s.consumers {
			s.verify(c)
		}
	}
}
