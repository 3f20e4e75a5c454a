package differential_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/executortest"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

const length = 35

// TestRandomHistories plays histories that are drawn from a seed: by push where it is even, by pull where it is odd.
func TestRandomHistories(t *testing.T) {
	playDrawn(t, lab.Rounds(2/lab.Sparse(2), 100), func(seed uint64) (pulls bool, history []string) {
		return seed%2 == 1, draw(seed, length)
	})
}

// TestRandomComparisons plays the same by pull, with backups that compare contents: plain and sealed ones in one chain,
// with indexes and without, by a host that loses its keys and finds them.
func TestRandomComparisons(t *testing.T) {
	lab.Further(t)
	playDrawn(t, lab.Rounds(1, 60), func(seed uint64) (pulls bool, history []string) {
		return true, comparing(seed, draw(seed, lab.Rounds(length/2, length)))
	})
}

// playDrawn plays rounds of what is drawn.
func playDrawn(t *testing.T, rounds int, drawn func(seed uint64) (pulls bool, history []string)) {
	t.Helper()
	first := lab.Seed(t)
	var compared atomic.Int64
	t.Cleanup(func() { t.Logf("seeds from %d: %d steps compared", first, compared.Load()) })
	for n := range rounds {
		seed := first + uint64(n)
		t.Run(fmt.Sprintf("seed-%d", seed), func(t *testing.T) {
			t.Parallel()
			pulls, history := drawn(seed)
			steps, diff := play(t, pulls, history)
			compared.Add(int64(steps))
			if diff == nil {
				return
			}
			t.Logf("the history: %s\n%v", strings.Join(history, "; "), diff)
			history, diff = shorten(t, pulls, history, diff)
			t.Errorf("%q: `%s`,\n%v", t.Name(), strings.Join(history, "; "), diff)
		})
	}
}

// play plays a history in a world of its own.
func play(t *testing.T, pulls bool, history []string) (compared int, diff error) {
	t.Helper()
	guest := realguest.NewWorld(t)
	var w executortest.World = guest
	if pulls {
		w = realguest.PullWorld{World: guest}
	}
	compared, diff = executortest.Play(t.Context(), w, history...)
	return compared, errors.Join(diff, w.Close())
}

// shorten leaves out whatever the difference doesn't need, as far as a minute goes.
func shorten(t *testing.T, pulls bool, history []string, diff error) ([]string, error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for size := len(history) / 2; size > 0; size /= 2 {
		for at := len(history) - size; at >= 0 && time.Now().Before(deadline); at -= size {
			at = min(at, len(history)-size)
			fewer := slices.Delete(slices.Clone(history), at, at+size)
			if _, d := play(t, pulls, fewer); d != nil {
				history, diff = fewer, d
			}
		}
	}
	return history, diff
}

// weighted are the steps that are drawn, each as often as its number says; the words in capitals are replaced.
var weighted = []struct {
	weight int
	step   string
}{
	{12, "write DEVICE CLUSTER COUNT"}, {2, "scribble DEVICE CLUSTER"}, {3, "zero DEVICE CLUSTER COUNT"},
	{14, "backup"}, {2, "backup off"}, {1, "backup full"}, {4, "backup offline"}, {3, "backup compare"},
	{3, "backup other"}, {2, "backup cancel"}, {2, "backup abort"},
	{1, "backup quiesce"}, {1, "backup full-target"}, {3, "backup lost=CALL"}, {1, "backup offline lost=CALL"},
	{2, "restore NUMBER"},
	{1, "pause"}, {1, "resume"}, {3, "restart"}, {3, "crash"}, {2, "stop"}, {9, "start"}, {2, "detach sda"},
	{3, "attach sda"}, {1, "replace sda"},
	{2, "grow DEVICE SECTORS"}, {3, "snapshot DEVICE"}, {3, "commit DEVICE"}, {3, "delete NUMBER"},
	{1, "delete NUMBER force"},
	{1, "lose-metadata"}, {1, "lose-checkpoint"}, {1, "lose-bitmap DEVICE"}, {1, "foreign-checkpoint DEVICE"},
	{1, "foreign-bitmap DEVICE"},
	{1, "forget"}, {1, "require-full"}, {1, "recover"},
}

// calls are those after which a backup can be given up.
var calls = []string{"CreatePartial", "PrepareJob", "Begin", "Wait", "Publish", "Complete"}

// draw returns the seed's history.
func draw(seed uint64, length int) []string {
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // it has to be the same for the same seed
	var templates, history []string
	for _, w := range weighted {
		for range w.weight {
			templates = append(templates, w.step)
		}
	}
	if r.IntN(2) == 0 {
		history = append(history, "transient")
	}
	for range length {
		words := strings.Fields(strings.ReplaceAll(templates[r.IntN(len(templates))], "CALL", calls[r.IntN(len(calls))]))
		for i, w := range words {
			words[i] = word(r, w)
		}
		history = append(history, strings.Join(words, " "))
	}
	return history
}

func word(r *rand.Rand, w string) string {
	switch w {
	case "DEVICE":
		return []string{"vda", "sda"}[r.IntN(2)]
	case "CLUSTER":
		return strconv.Itoa(r.IntN(8))
	case "COUNT":
		return strconv.Itoa(1 + r.IntN(3))
	case "SECTORS":
		return strconv.Itoa(1 + r.IntN(300))
	case "NUMBER":
		return strconv.Itoa(r.IntN(5))
	}
	return w
}

// comparing makes the backups of a history such as compare, or may be compared with.
func comparing(seed uint64, history []string) []string {
	r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // as above
	out := []string{"wide"}
	if r.IntN(3) > 0 {
		out = append(out, "index-key")
	}
	sealed := r.IntN(5) // of four backups
	for _, line := range history {
		switch r.IntN(15) {
		case 0:
			out = append(out, "keys gone")
		case 1, 2:
			out = append(out, "keys back")
		case 3, 4:
			out = append(out, "crash", "start")
		case 5: // a whole piece
			out = append(out, []string{"write vda 4 4", "write sda 0 4", "zero vda 0 4"}[r.IntN(3)])
		}
		if strings.HasPrefix(line, "backup") {
			line = strings.ReplaceAll(line, " full-target", "") // there is room for a few of such disks at most
			for _, word := range []struct {
				word string
				odds int
			}{{"long", 4}, {"sealed", sealed}, {"compare", 3}, {"digests", 2}, {"check", 1}} {
				if r.IntN(4) < word.odds {
					line += " " + word.word
				}
			}
		}
		out = append(out, line)
	}
	return out
}
