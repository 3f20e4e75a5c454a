package differential_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
)

const (
	cluster  = 64 << 10 // also the bytes per second of a slow backup
	diskSize = 8 * cluster
	// bigSize is so much that a full of it, of which nothing but diskSize is ever written, takes QEMU about a second: libvirt can limit
	// a job only when it has begun.
	bigSize = 64 << 30
)

// host is a hypervisor with one guest, whose processor stands still. A method that can't do what it is for panics with a failure.
type host interface {
	executor() kvmbackup.Executor
	images() engine.Images
	start()
	destroy()
	crash()
	write(device string, pattern byte, offset, length int64)
	zero(device string, offset, length int64)
	attach(device, source string) // source: where detach left it; empty: a new disk
	detach(device string) (source string)
	source(device string) string
	grow(device string, size int64) error
	snapshot(device string)
	commit(device string)
	checkpoint(name string, devices ...string)
	bitmap(device, name string, running bool)
	dropBitmap(device, name string)
	dropCheckpoint(name string, metadataOnly bool)
	pause()
	resume()
	finishJob()       // waits for the end of a job that no process follows
	mount(dir string) // makes it a file system that can be filled
	fill(dir string)  // to the last byte
	free(dir string)
	end()
}

// failure is a panic of a host or a player, and ends the history.
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
	data      []byte
}

// play is a history under way on both sides.
type play struct {
	sides     []*side
	transient bool
	running   bool
	plugged   map[string]*volume // by device
	unplugged map[string]*unplugged
	foreign   int // how many things of others were made
	volumes   int
	pattern   byte
	compared  int
}

// playBoth plays a history on both sides. It returns how many steps were compared and what was different, or wrong, first.
func playBoth(t *testing.T, history []string) (compared int, diff string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	p := &play{
		transient: slices.Contains(history, "transient"), running: true,
		plugged: map[string]*volume{}, unplugged: map[string]*unplugged{},
	}
	defer func() {
		for _, s := range p.sides {
			s.host.end()
		}
	}()
	for _, device := range []string{"vda", "sda"} {
		p.plugged[device] = p.newVolume()
	}
	at := "the start"
	caught := func(f func()) (text string) {
		defer func() {
			switch r := recover().(type) {
			case nil:
			case failure:
				text = r.text
			default:
				text = fmt.Sprintf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		f()
		return ""
	}
	diff = caught(func() {
		size := int64(diskSize)
		if slices.Contains(history, "big") {
			size = bigSize
		}
		small := slices.ContainsFunc(history, func(line string) bool { return strings.Contains(line, "full-target") })
		p.sides = append(p.sides, newSide(ctx, t, "real", newReal(t, size, p.transient, small), size-diskSize))
		p.sides = append(p.sides, newSide(ctx, t, "simulated", newSimulated(t.TempDir(), p.sides[0].vm(), size, p.transient), size-diskSize))
		p.step("write vda 0 2")
		p.step("write sda 1 1")
		for n, line := range history {
			at = fmt.Sprintf("step %d, %q", n+1, line)
			p.step(line)
		}
		at = "the end"
		p.finish()
	})
	if diff != "" {
		diff = at + ": " + diff
	}
	return p.compared, diff
}

func (p *play) newVolume() *volume {
	p.volumes++
	return &volume{id: kvmbackup.VolumeID(fmt.Sprintf("vol-%d", p.volumes)), layers: 1, data: make([]byte, diskSize)}
}

// step carries one line out on both sides and compares them. What is not possible now is passed over, so that any part of a
// history is one, too.
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
	case "transient", "big":
		return nil
	case "backup", "restore", "delete", "forget", "require-full", "recover":
		return func(_ int, s *side) string { return s.operate(p, verb, words) }
	case "start":
		if p.running {
			return nil
		}
		p.running = true
		return silent(func(_ int, s *side) { s.host.start() })
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
		return silent(func(_ int, s *side) { s.host.pause() })
	case "resume":
		return silent(func(_ int, s *side) { s.host.resume() })
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
			s.host.crash()
			return
		}
		s.host.destroy()
		if verb == "restart" {
			s.host.start()
		}
	})
}

// change is what happens to a disk of the running guest.
func (p *play) change(verb, device string, v *volume, num func(int) int64) func(int, *side) string {
	size := int64(len(v.data))
	offset, length := num(2)*cluster, max(num(3), 1)*cluster
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
			copy(v.data[offset:], make([]byte, length))
			return silent(func(_ int, s *side) { s.host.zero(device, offset, length) })
		}
		p.pattern = p.pattern%250 + 1
		pattern := p.pattern
		copy(v.data[offset:], bytes.Repeat([]byte{pattern}, int(length)))
		return silent(func(_ int, s *side) { s.host.write(device, pattern, offset, length) })
	case "grow":
		v.grownOver = v.layers > 1
		size += max(num(2), 1) * 512
		return func(_ int, s *side) string {
			if err := s.host.grow(device, size); err != nil { // QEMU refuses it where there is a broken bitmap
				return "refused"
			}
			v.data = append(slices.Clone(v.data), make([]byte, size-int64(len(v.data)))...)
			return "grown"
		}
	case "snapshot":
		v.layers++
		return silent(func(_ int, s *side) { s.host.snapshot(device) })
	case "commit":
		if v.layers == 1 || v.grownOver { // the simulator takes what was added for changed then, and QEMU doesn't: both are right
			return nil
		}
		v.layers--
		return silent(func(_ int, s *side) { s.host.commit(device) })
	}
	if device != "sda" { // only SCSI disks go without a guest's help
		return nil
	}
	u := &unplugged{volume: v, sources: make([]string, len(p.sides))}
	delete(p.plugged, device)
	p.unplugged[device] = u
	return silent(func(i int, s *side) { u.sources[i] = s.host.detach(device) })
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
		return silent(func(_ int, s *side) { s.host.attach(device, "") })
	}
	return silent(func(i int, s *side) { s.host.attach(device, u.sources[i]) })
}

func (p *play) foreignBitmap(device string, v *volume) func(int, *side) string {
	if v == nil {
		return nil
	}
	p.foreign++
	name := fmt.Sprintf("kvmbackup-not-%d", p.foreign)
	return silent(func(_ int, s *side) { s.host.bitmap(device, name, p.running) })
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
	return silent(func(_ int, s *side) { s.host.checkpoint(name, device) })
}

// devices are those that are plugged in, in order.
func (p *play) devices() []string { return slices.Sorted(maps.Keys(p.plugged)) }

// contents is what the disks hold now.
func (p *play) contents() map[kvmbackup.VolumeID][]byte {
	out := map[kvmbackup.VolumeID][]byte{}
	for _, v := range p.plugged {
		out[v.id] = bytes.Clone(v.data)
	}
	return out
}

// finish is what holds after every history: two more backups succeed, and all of them hold what the disks held.
func (p *play) finish() {
	for _, line := range []string{"start", "recover", "write vda 3 2", "backup", "write vda 5", "backup", "backup other"} {
		p.step(line)
	}
	for _, s := range p.sides {
		for _, c := range s.consumers {
			s.verify(c)
		}
	}
}
