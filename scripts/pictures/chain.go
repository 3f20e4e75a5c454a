package main

import (
	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/picture"
)

// Sizes in pixels.
const (
	margin    = 24
	boxWidth  = 124
	boxHeight = 46
	gap       = 30
	textLine  = 20
)

var days = []string{"Monday", "Tuesday", "Wednesday", "Thursday", "Friday"}

const light = `text { font: 14px system-ui, "DejaVu Sans", Helvetica, Arial, sans-serif; fill: #1f2328; }
.page { fill: #ffffff; stroke: #d0d7de; }
.day { font-weight: 600; text-anchor: middle; }
.in { font-size: 13px; text-anchor: middle; } .small { font-size: 12px; text-anchor: middle; fill: #57606a; }
.full { fill: #cfe3fb; stroke: #0969da; stroke-width: 1.5; }
.incremental { fill: #d5f2dc; stroke: #1a7f37; stroke-width: 1.5; }
.pending { fill: #fff3cd; stroke: #9a6700; stroke-width: 1.5; stroke-dasharray: 6 4; }
.gone { fill: none; stroke: #afb8c1; stroke-dasharray: 2 4; }
.ghost { font-size: 13px; text-anchor: middle; fill: #8c959f; }
.stands { stroke: #57606a; stroke-width: 1.5; } .head { fill: #57606a; }
`

const dark = `text { fill: #e6edf3; } .small { fill: #9198a1; } .ghost { fill: #7d8590; }
.page { fill: #0d1117; stroke: #3d444d; }
.full { fill: #12304f; stroke: #58a6ff; } .incremental { fill: #12351f; stroke: #3fb950; }
.pending { fill: #3b2e0a; stroke: #d29922; } .gone { stroke: #484f58; }
.stands { stroke: #9198a1; } .head { fill: #9198a1; }
`

// chain draws the stages one below the other.
func chain(stages []stage) string {
	height := margin + textLine
	for _, s := range stages {
		height += stageHeight(s)
	}
	width := 2*margin + len(days)*boxWidth + (len(days)-1)*gap
	d := picture.New(width, height)
	d.Rect("page", 1, 1, width-2, height-2)
	for n, day := range days {
		d.Text("day", left(n)+boxWidth/2, margin+10, day)
	}
	y := margin + textLine
	for _, s := range stages {
		drawStage(d, s, y)
		y += stageHeight(s)
	}
	return d.SVG("The life of a chain: what an incremental stands on, and what delete-pending means", light, dark)
}

func left(night int) int { return margin + night*(boxWidth+gap) }

func stageHeight(s stage) int { return 2*textLine + len(s.text)*textLine + boxHeight + textLine/2 }

func drawStage(d *picture.Drawing, s stage, y int) {
	y += textLine / 2
	for _, line := range s.text {
		y += textLine
		d.Text("words", margin, y-4, line)
	}
	y += textLine / 2
	for n, b := range s.backups {
		class, words, ink := look(b)
		x := left(n)
		d.Rect(class, x, y, boxWidth, boxHeight)
		d.Text(ink, x+boxWidth/2, y+20, b.kind.String())
		d.Text(ink, x+boxWidth/2, y+36, words)
		if b.parent >= 0 && !b.gone {
			d.Arrow("stands", x-2, y+boxHeight/2, left(b.parent)+boxWidth+3, y+boxHeight/2)
		}
		if b.active {
			d.Text("small", x+boxWidth/2, y+boxHeight+16, "next one starts here")
		}
	}
}

func look(b backup) (class, words, ink string) {
	switch {
	case b.gone:
		return "gone", "removed", "ghost"
	case b.status == kvmbackup.StatusDeletePending:
		return "pending", b.status.String(), "in"
	}
	return b.kind.String(), b.status.String(), "in"
}
