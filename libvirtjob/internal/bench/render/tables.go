package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// tables are the generated parts of the document. An empty text leaves the old one.
var tables = map[string]func(results) string{
	"machine": machineTable,
	"targets": targetTable,
	"added":   func(r results) string { return contestTable(r, added) },
	"versus":  func(r results) string { return contestTable(r, versus) },
	"history": func(r results) string { return seriesTable(r, "backups", history) },
	"depth":   func(r results) string { return seriesTable(r, "depth", depth) },
	"disks":   func(r results) string { return seriesTable(r, "disks", disks) },
}

var block = regexp.MustCompile(`(?s)(<!-- begin ([a-z]+) -->\n)(.*?)(<!-- end -->)`)

// fill replaces the tables of the document.
func fill(text string, r results) (string, error) {
	var unknown []string
	text = block.ReplaceAllStringFunc(text, func(old string) string {
		m := block.FindStringSubmatch(old)
		table, ok := tables[m[2]]
		if !ok {
			unknown = append(unknown, m[2])
			return old
		}
		if made := table(r); made != "" {
			return m[1] + made + m[4]
		}
		return old
	})
	if unknown != nil {
		return "", fmt.Errorf("the document has unknown tables: %q", unknown)
	}
	return text, nil
}

func table(head []string, rows [][]string) string {
	if len(rows) == 0 {
		return ""
	}
	var s strings.Builder
	line := func(cells []string) { s.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(head)
	rule := slices.Repeat([]string{"---:"}, len(head))
	rule[0] = "---"
	line(rule)
	for _, row := range rows {
		line(row)
	}
	return s.String()
}

func machineTable(r results) string {
	var rows [][]string
	for _, key := range []string{"date", "cpu", "cores", "memory", "rounds", "load-before", "load-after", "file-system",
		"kernel", "libvirt", "qemu", "virtnbdbackup", "go"} {
		if v, ok := r.machine[key]; ok {
			rows = append(rows, []string{strings.ReplaceAll(key, "-", " "), v})
		}
	}
	return table([]string{"", ""}, rows)
}

// target is a figure that a benchmark is expected to keep.
type target struct {
	what, benchmark, unit string
	limit                 float64
	format                string
}

var targets = []target{
	{"full of 1 GiB against bare backup-begin", "Full/1GiB", "ours/backup-begin", 1.10, "%.2f"},
	{"time added to an empty incremental of two disks, ms", "EmptyIncremental/2disks", "added-ms", 100, "%.0f"},
	{"peak memory during a full of 1 GiB, MiB", "VersusFull/1GiB", "ours-peak-MiB", 64, "%.1f"},
	{"full of 1 GiB against virtnbdbackup", "VersusFull/1GiB", "ours/virtnbdbackup", 0.35, "%.2f"},
	{"empty incremental against virtnbdbackup", "VersusIncremental/empty", "ours/virtnbdbackup", 0.15, "%.3f"},
	{"restore of a chain of ten against virtnbdrestore", "VersusRestore/10layers", "ours/virtnbdrestore", 0.25, "%.2f"},
	{"stored bytes less 1 MiB over dirty bytes", "VersusIncremental/64MiB", "(stored-1MiB)/dirty", 1.05, "%.3f"},
	{"planning with a million backups against ten", "History/plan", "million/ten", 2, "%.2f"},
}

func targetTable(r results) string {
	var rows [][]string
	for _, t := range targets {
		v, ok := r.metric(t.benchmark, t.unit)
		if !ok {
			continue
		}
		met := "no"
		if v <= t.limit {
			met = "yes"
		}
		spread := ""
		if low, ok := r.metric(t.benchmark, t.unit+"-min"); ok {
			high, _ := r.metric(t.benchmark, t.unit+"-max")
			spread = fmt.Sprintf(t.format+" to "+t.format, low, high)
		}
		rows = append(rows, []string{t.what, "<= " + strconv.FormatFloat(t.limit, 'f', -1, 64),
			fmt.Sprintf(t.format, v), spread, met})
	}
	return table([]string{"figure", "target", "median", "rounds", "met"}, rows)
}

// contest is one task with everybody who did it.
type contest struct{ title, benchmark string }

var (
	added = []contest{
		{"full, 1 GiB", "Full/1GiB"},
		{"incremental of nothing, two disks", "EmptyIncremental/2disks"},
	}
	versus = []contest{
		{"full, 1 GiB", "VersusFull/1GiB"},
		{"incremental, 64 MiB in 1024 places", "VersusIncremental/64MiB"},
		{"incremental of nothing, two disks", "VersusIncremental/empty"},
		{"full, 1 GiB, guest off", "VersusStopped/1GiB"},
		{"restore of ten layers, 1 GiB", "VersusRestore/10layers"},
	}
)

const wallUnit = "-wall-ms"

// contestants are those of a benchmark: ours first, the others by name.
func (r results) contestants(benchmark string) []string {
	var names []string
	for unit := range r.metrics[benchmark] {
		if name, ok := strings.CutSuffix(unit, wallUnit); ok {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		switch {
		case a == "ours" || a < b && b != "ours":
			return -1
		default:
			return 1
		}
	})
	return names
}

func contestTable(r results, contests []contest) string {
	var rows [][]string
	for _, c := range contests {
		title := c.title
		for _, name := range r.contestants(c.benchmark) {
			rows = append(rows, append([]string{title, name}, r.contestant(c.benchmark, name)...))
			title = ""
		}
	}
	return table([]string{"", "", "wall ms", "CPU ms", "peak MiB", "stored MiB", "ours / it", "rounds"}, rows)
}

func (r results) contestant(benchmark, name string) []string {
	cell := func(unit, format string) string {
		if v, ok := r.metric(benchmark, unit); ok {
			return fmt.Sprintf(format, v)
		}
		return ""
	}
	ratio, spread := "ours/"+name, ""
	if low := cell(ratio+"-min", "%.2f"); low != "" {
		spread = low + " to " + cell(ratio+"-max", "%.2f")
	}
	return []string{
		cell(name+wallUnit, "%.0f"), cell(name+"-cpu-ms", "%.0f"), cell(name+"-peak-MiB", "%.0f"),
		cell(name+"-stored-MiB", "%.1f"),
		cell(ratio, "%.2f"), spread,
	}
}

// series is a figure that was measured at several places.
type series struct{ title, benchmark, unit string }

var (
	history = []series{{"Plan, ms", "History/plan", "plan-ms"}}
	depth   = []series{
		{"incremental, ms", "Depth/backup", "incremental-ms"},
		{"restore, ms", "Depth/restore", "restore-ms"},
	}
	disks = []series{
		{"full, ms", "Disks/1to16", "full-ms"},
		{"bare full, ms", "Disks/1to16", "bare-full-ms"},
		{"incremental of nothing, ms", "Disks/1to16", "incremental-ms"},
		{"bare incremental, ms", "Disks/1to16", "bare-incremental-ms"},
	}
)

// points are the values of a series by place.
func (r results) points(s series) map[int]float64 {
	out := map[int]float64{}
	for unit, v := range r.metrics[s.benchmark] {
		name, at, _ := strings.Cut(unit, "@")
		if n, err := strconv.Atoi(at); err == nil && name == s.unit {
			out[n] = v
		}
	}
	return out
}

func seriesTable(r results, what string, all []series) string {
	head, places := []string{what}, map[int]bool{}
	for _, s := range all {
		head = append(head, s.title)
		for at := range r.points(s) {
			places[at] = true
		}
	}
	var rows [][]string
	for _, at := range slices.Sorted(maps.Keys(places)) {
		row := []string{strconv.Itoa(at)}
		for _, s := range all {
			cell := ""
			if v, ok := r.points(s)[at]; ok {
				cell = strconv.FormatFloat(v, 'g', 3, 64)
				if v >= 100 {
					cell = fmt.Sprintf("%.0f", v)
				}
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	return table(head, rows)
}
