package kvmbackuptest_test

import (
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestModel plays random histories. A failing one is made as short as possible, printed as a scenario, and written to
// testdata/scenarios, where TestScenarios plays it from then on.
func TestModel(t *testing.T) {
	lab.Histories(t, 50/lab.Sparse(4), 2000)
	playModel(t, histories, 1000, mustHappen)
}

// TestSealedModel does so with backups that are sealed, most of them, and compared, by a host that loses its keys and
// finds them: chains are plain and sealed, and known by their files, by indexes alone, or by nothing.
func TestSealedModel(t *testing.T) {
	lab.Histories(t, 5/lab.Sparse(4), 500)
	playModel(t, sealedHistories, 500, sealedMustHappen)
}

// playModel plays histories, and wants the steps to have happened if there were enough of them.
func playModel(t *testing.T, histories *rapid.Generator[[]string], enough int, mustHappen []string) {
	t.Helper()
	lab.SetFlag(t, "rapid.nofailfile", "true")
	dir := memoryDir(t)
	var failing scenario // the last one to fail is the shortest
	t.Cleanup(func() { keep(t, failing) })
	var total struct{ histories, backups, incrementals, retired, faults int }
	taken := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		sc := histories.Draw(rt, "scenario")
		total.histories++
		sub := filepath.Join(dir, strconv.Itoa(total.histories))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		p, err := scenario(sc).run(t, sub)
		if p != nil {
			total.backups += p.done.backups
			total.incrementals += p.done.incrementals
			total.retired += p.done.retired
			total.faults += p.done.faults
			for verb, n := range p.taken {
				taken[verb] += n
			}
		}
		_ = os.RemoveAll(sub)
		if err != nil {
			failing = sc
			rt.Fatalf("%s\nthe scenario:\n%s", steady(err, sub), scenario(sc))
		}
	})
	t.Logf("%+v; steps that were possible: %v", total, taken)
	if total.histories < enough || t.Failed() {
		return // chosen by hand, or a sample
	}
	for _, verb := range mustHappen {
		if taken[verb] < total.histories/100 {
			t.Errorf("%q was carried out %d times in %d histories: this hardly tests it", verb, taken[verb],
				total.histories)
		}
	}
}

// mustHappen are the steps without which TestModel would say little.
var mustHappen = []string{
	"write", "discard", "backup", "backup by push", "backup by pull", "backup off", "backup offline", "backup compared",
	"restart", "crash", "shutdown", "start", "attach", "detach", "replace", "grow", "snapshot", "commit", "delete",
	"delete!", "restore", "retain", "forget", "kill", "kill!", "fail", "fail!",
}

// sealedMustHappen are those without which TestSealedModel would say little.
var sealedMustHappen = []string{
	"backup compared", "backup compared by index", "backup not compared", "backup plain", "backup compare",
	"backup offline", "crash", "restore", "kill", "kill!", "fail", "fail!",
}

// keep writes a failing history where TestScenarios finds it.
func keep(t *testing.T, failing scenario) {
	if len(failing) == 0 {
		return
	}
	text := "# Found by " + t.Name() + ": say here what goes wrong, and give the file that name.\n" + failing.String()
	name := fmt.Sprintf("testdata/scenarios/found-%08x.txt", crc32.ChecksumIEEE([]byte(text)))
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Log(err)
		return
	}
	t.Log("kept as ", name)
}

var ids = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// steady is an error's text without what differs from run to run: rapid takes a differing text for another failure.
func steady(err error, dir string) string {
	return ids.ReplaceAllString(strings.ReplaceAll(err.Error(), dir, "DIR"), "UUID")
}

var histories = rapid.Custom(func(t *rapid.T) []string {
	var sc []string
	if rapid.Bool().Draw(t, "transient") {
		sc = append(sc, "transient")
	}
	if rapid.Bool().Draw(t, "pull") {
		sc = append(sc, "pull")
	}
	if rapid.Bool().Draw(t, "compare") {
		sc = append(sc, "compare")
	}
	return append(sc, many(t, lines)...)
})

// many draws lines: one slice alone would mostly be short.
func many(t *rapid.T, lines *rapid.Generator[string]) (all []string) {
	for range 4 {
		all = append(all, rapid.SliceOfN(lines, 0, 9).Draw(t, "lines")...)
	}
	return all
}

var sealedHistories = rapid.Custom(func(t *rapid.T) []string {
	sc := []string{"sealed", "pull", "compare"}
	for _, s := range []string{"transient", "index-key", "digests", "wide"} {
		if rapid.Bool().Draw(t, s) {
			sc = append(sc, s)
		}
	}
	return append(sc, many(t, linesOf(slices.Concat(templates, templatesOf(sealedWeighted))))...)
})

// weightedLine is drawn as often as its number says; the words in capitals are replaced.
type weightedLine struct {
	weight int
	line   string
}

// weighted are the lines that are drawn.
var weighted = []weightedLine{
	{20, "write DEVICE CLUSTER COUNT"}, {2, "scribble DEVICE CLUSTER"}, {3, "discard DEVICE CLUSTER COUNT"},
	{14, "backup"}, {2, "backup quiesce"}, {1, "backup off"}, {1, "backup full"}, {2, "backup offline"},
	{1, "backup compare"},
	{2, "restart"}, {2, "crash"}, {2, "shutdown"}, {1, "destroy"}, {4, "start"}, {1, "pause"}, {1, "pause-error"},
	{1, "resume"},
	{5, "attach DEVICE"}, {2, "detach DEVICE"}, {1, "replace DEVICE"}, {1, "grow DEVICE SECTORS"},
	{2, "snapshot DEVICE"}, {1, "snapshot-by-hand DEVICE"}, {5, "commit DEVICE"}, {1, "forget"},
	{2, "delete NUMBER"}, {1, "delete! NUMBER"}, {4, "retain RULE KEEP"}, {2, "retain RULE KEEP RULE KEEP"},
	{2, "pin NUMBER"}, {1, "unpin NUMBER"},
	{2, "later HOURS"}, {4, "restore NUMBER"}, {2, "recover"}, {1, "check"},
	{1, "busy"}, {1, "quiet"}, {1, "scratch ROOM"}, {1, "job-ends"}, {1, "agent AGENT"}, {1, "target TARGET CLUSTER"},
	{1, "target good"},
	{5, "ACCIDENT CALL backup"}, {1, "ACCIDENT CALL backup quiesce"}, {1, "ACCIDENT CALL delete NUMBER"},
	{2, "ACCIDENT CALL retain RULE KEEP"}, {1, "ACCIDENT CALL restore NUMBER"}, {2, "ACCIDENT CALL recover"},
}

// sealedWeighted are more, where backups are sealed.
var sealedWeighted = []weightedLine{
	{8, "keys gone"}, {8, "keys back"}, {10, "crash"}, {10, "start"}, {8, "backup"}, {8, "backup plain"},
	{4, "backup compare"}, {3, "write DEVICE 0 64"}, {5, "ACCIDENT CALL backup compare"},
}

func templatesOf(weighted []weightedLine) (all []string) {
	for _, w := range weighted {
		for range w.weight {
			all = append(all, w.line)
		}
	}
	return all
}

var templates = templatesOf(weighted)

var lines = linesOf(templates)

func linesOf(templates []string) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		words := strings.Fields(templates[even(t, "line", len(templates))])
		for i, w := range words {
			words[i] = word(t, w)
		}
		return strings.Join(words, " ")
	})
}

// even draws from [0, n), each number as often as another. Rapid's own ranges prefer small ones, which would undo the
// weights.
func even(t *rapid.T, label string, n int) (i int) {
	for range 10 {
		i *= 2
		if rapid.Bool().Draw(t, label) {
			i++
		}
	}
	return i % n
}

func word(t *rapid.T, w string) string {
	number := func(low, high int) string { return fmt.Sprint(rapid.IntRange(low, high).Draw(t, w)) }
	of := func(all ...string) string { return rapid.SampledFrom(all).Draw(t, w) }
	switch w {
	case "DEVICE":
		return of("vda", "vdb")
	case "CLUSTER":
		return number(0, 7)
	case "ROOM":
		return number(0, 4)
	case "COUNT":
		return number(1, 3)
	case "SECTORS":
		return number(1, 300)
	case "NUMBER":
		return number(0, 5)
	case "RULE":
		return of("last", "hourly", "daily", "weekly", "monthly", "yearly")
	case "KEEP":
		return of("1", "1", "2")
	case "HOURS":
		return of("1", "20", "150", "700", "8000")
	case "CALL":
		return strconv.Itoa(1 + even(t, w, 45))
	case "AGENT":
		return of("present", "missing", "silent", "failing", "nothing", "thaw-failing")
	case "TARGET":
		return of("full", "hung", "dead")
	case "ACCIDENT":
		return of("kill", "kill!", "fail", "fail!")
	}
	return w
}

// TestScenarios plays the histories of testdata/scenarios.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/scenarios/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios: ", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := scenario(strings.Split(strings.TrimSpace(string(text)), "\n")).run(t, memoryDir(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
}
