// Package picture draws the SVG files of the documents: shapes and text with a class each, whose style suits light and
// dark pages.
package picture

import (
	"fmt"
	"html"
	"strings"
)

// Drawing is an SVG file under way. Lengths are in pixels.
type Drawing struct {
	width, height int
	body          strings.Builder
}

// New begins one.
func New(width, height int) *Drawing { return &Drawing{width: width, height: height} }

// Rect draws a rectangle with round corners.
func (d *Drawing) Rect(class string, x, y, width, height int) {
	fmt.Fprintf(&d.body, `<rect class="%s" x="%d" y="%d" width="%d" height="%d" rx="6"/>`+"\n", class, x, y, width, height)
}

// Text writes a line at its base line. The class says on which side of x.
func (d *Drawing) Text(class string, x, y int, text string) {
	const format = `<text class="%s" x="%d" y="%d" xml:space="preserve">%s</text>` + "\n"
	fmt.Fprintf(&d.body, format, class, x, y, html.EscapeString(text))
}

// Arrow draws a line with a head at its end.
func (d *Drawing) Arrow(class string, x1, y1, x2, y2 int) {
	const format = `<line class="%s" x1="%d" y1="%d" x2="%d" y2="%d" marker-end="url(#head)"/>` + "\n"
	fmt.Fprintf(&d.body, format, class, x1, y1, x2, y2)
}

// SVG returns the file. The title is for those who don't see it. The light style is for all, the dark one goes over it.
func (d *Drawing) SVG(title, light, dark string) string {
	const format = `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img">
<title>%[3]s</title>
<style>
%[4]s@media (prefers-color-scheme: dark) {
%[5]s}
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">` +
		`<path class="head" d="M0 0 8 4 0 8z"/></marker></defs>
%[6]s</svg>
`
	return fmt.Sprintf(format, d.width, d.height, html.EscapeString(title), light, dark, d.body.String())
}
