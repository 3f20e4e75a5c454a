package main

import (
	"fmt"
	"html"
	"maps"
	"math"
	"slices"
	"strings"
)

// plots are the files beside the document. An empty text leaves the old file.
var plots = map[string]func(results) string{
	"performance-versus.svg":  versusPlot,
	"performance-history.svg": func(r results) string { return lines(r, "completed backups of the VM", history, true) },
	"performance-depth.svg": func(r results) string {
		return lines(r, "depth of the backup in its chain", depth,
			false)
	},
	"performance-disks.svg": func(r results) string { return lines(r, "disks of the guest", disks, false) },
}

// Their colours can be told apart without seeing any.
var colours = []string{"#0b6e99", "#d9730d", "#7a7a7a", "#b3a125"}

// picture collects the elements of an SVG.
type picture struct {
	strings.Builder
}

func (p *picture) text(x, y float64, anchor, text string) {
	fmt.Fprintf(p, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, html.EscapeString(text))
}

func (p *picture) line(x1, y1, x2, y2 float64, colour string) {
	fmt.Fprintf(p, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x1, y1, x2, y2, colour)
}

func (p *picture) done(width, height float64) string {
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "+
		"font-family=\"sans-serif\" font-size=\"12\">\n"+
		"<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n%s</svg>\n", width, height, p.String())
}

// versusPlot has a group of bars for each task, as long as the wall time is of the group's longest.
func versusPlot(r results) string {
	const left, long, bar = 150.0, 420.0, 16.0
	var p picture
	y := 10.0
	for _, c := range versus {
		names := r.contestants(c.benchmark)
		if len(names) == 0 {
			return ""
		}
		longest := 0.0
		for _, name := range names {
			longest = max(longest, r.metrics[c.benchmark][name+wallUnit])
		}
		p.text(left, y+bar, "start", c.title)
		y += bar + 6
		for _, name := range names {
			v, colour := r.metrics[c.benchmark][name+wallUnit], colours[2]
			if name == "ours" {
				colour = colours[0]
			}
			p.text(left-6, y+bar-4, "end", name)
			fmt.Fprintf(&p, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", left, y,
				long*v/longest, bar-3, colour)
			p.text(left+long*v/longest+6, y+bar-4, "start", fmt.Sprintf("%.0f ms", v))
			y += bar
		}
		y += 12
	}
	return p.done(left+long+90, y)
}

// lines draws series over their places; the times' axis begins at 0.
func lines(r results, label string, all []series, logarithmic bool) string {
	const left, top, width, height = 60.0, 20.0, 460.0, 240.0
	places, highest := map[int]bool{}, 0.0
	for _, s := range all {
		for at, v := range r.points(s) {
			places[at], highest = true, max(highest, v)
		}
	}
	if len(places) < 2 {
		return ""
	}
	sorted := slices.Sorted(maps.Keys(places))
	scale := func(at int) float64 {
		if logarithmic {
			return math.Log10(float64(at))
		}
		return float64(at)
	}
	first, last := scale(sorted[0]), scale(sorted[len(sorted)-1])
	x := func(at int) float64 { return left + width*(scale(at)-first)/(last-first) }
	highest = round(highest)
	y := func(v float64) float64 { return top + height*(1-v/highest) }
	var p picture
	for i := range 5 {
		v := highest * float64(i) / 4
		p.line(left, y(v), left+width, y(v), "#dddddd")
		p.text(left-6, y(v)+4, "end", fmt.Sprintf("%g", v))
	}
	for _, at := range sorted {
		p.text(x(at), top+height+18, "middle", fmt.Sprint(at))
	}
	p.text(left+width/2, top+height+38, "middle", label)
	for i, s := range all {
		p.series(r.points(s), colours[i], x, y)
		fmt.Fprintf(&p, "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" fill=\"%s\"/>\n", left+width+20,
			top+float64(i)*20, colours[i])
		p.text(left+width+38, top+float64(i)*20+11, "start", s.title)
	}
	return p.done(left+width+210, top+height+50)
}

func (p *picture) series(points map[int]float64, colour string, x func(int) float64, y func(float64) float64) {
	var path []string
	for _, at := range slices.Sorted(maps.Keys(points)) {
		path = append(path, fmt.Sprintf("%.1f,%.1f", x(at), y(points[at])))
		fmt.Fprintf(p, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", x(at), y(points[at]), colour)
	}
	fmt.Fprintf(p, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n",
		strings.Join(path, " "), colour)
}

// round goes up to the next 1, 2, 4 or 8 of a power of ten, which has four even parts.
func round(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, step := range []float64{1, 2, 4, 8} {
		if v <= step*power {
			return step * power
		}
	}
	return 10 * power
}
