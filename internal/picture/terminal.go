package picture

import (
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Size of a column and a line on the screen of a Terminal.
const (
	columnWidth = 8
	lineHeight  = 18
	margin      = 16
	titleHeight = 30
)

const terminalStyle = `text { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d5dbe3; }
.frame { fill: #161b22; stroke: #444c56; }
.title { fill: #8b949e; text-anchor: middle; }
.red { fill: #f06a6a; } .yellow { fill: #e3b341; } .green { fill: #56d364; } .prompt { fill: #79c0ff; }
.dot { fill: #444c56; }
`

// Terminal draws what a terminal of some columns shows after it was sent the output: text, with line ends, and of
// escape sequences the cursor up, the erasing of what is below it, and a few colours. A line that begins with "$ " was
// typed.
func Terminal(title string, columns int, output string) string {
	lines := screen(columns, output)
	d := New(columns*columnWidth+2*margin, len(lines)*lineHeight+2*margin+titleHeight)
	d.Rect("frame", 1, 1, d.width-2, d.height-2)
	for i := range 3 {
		d.Rect("dot", margin+18*i, 12, 11, 11)
	}
	d.Text("title", d.width/2, 22, title)
	for i, l := range lines {
		y := titleHeight + margin + (i+1)*lineHeight - 5
		for _, r := range runs(l) {
			d.Text(r.class, margin+r.column*columnWidth, y, r.text)
		}
	}
	return d.SVG(title, terminalStyle, "")
}

var (
	tokens  = regexp.MustCompile("\x1b\\[(\\d*)([AJm])|\n|[^\x1b\n]")
	colours = regexp.MustCompile("\x1b\\[(\\d*)m")
)

// screen is what is shown, with the colours' escapes still in it.
func screen(columns int, output string) []string {
	lines, at := []string{""}, 0
	next := func() {
		if at++; at == len(lines) {
			lines = append(lines, "")
		}
	}
	for _, m := range tokens.FindAllStringSubmatch(output, -1) {
		switch {
		case m[2] == "A":
			up, _ := strconv.Atoi(m[1])
			at = max(at-up, 0)
		case m[2] == "J":
			lines = append(lines[:at], "")
		case m[0] == "\n":
			next()
		case m[2] == "" && utf8.RuneCountInString(colours.ReplaceAllString(lines[at], "")) == columns:
			next()
			fallthrough
		default:
			lines[at] += m[0]
		}
	}
	if last := len(lines) - 1; lines[last] == "" {
		lines = lines[:last]
	}
	return lines
}

// piece is text of one colour.
type piece struct {
	column      int
	class, text string
}

var classes = map[string]string{"31": "red", "32": "green", "33": "yellow", "36": "prompt"}

func runs(line string) (out []piece) {
	column, class := 0, ""
	if strings.HasPrefix(line, "$ ") {
		class = "prompt"
	}
	add := func(text string) {
		if strings.TrimSpace(text) != "" {
			out = append(out, piece{column, class, text})
		}
		column += utf8.RuneCountInString(text)
	}
	for {
		m := colours.FindStringSubmatchIndex(line)
		if m == nil {
			add(line)
			return out
		}
		add(line[:m[0]])
		class = classes[line[m[2]:m[3]]]
		line = line[m[1]:]
	}
}
