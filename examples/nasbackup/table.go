package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kvmbackup/kvmbackup"
)

// table prints columns, with the first row as their heading.
type table struct {
	rows   [][]string
	colour func(cell string) string // how to print a cell on a terminal
}

func (t *table) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = kvmbackup.Printable(strings.ReplaceAll(cell, "\n", "; ")) // of joined errors
	}
	t.rows = append(t.rows, cells)
}

func (t *table) print(w io.Writer) {
	widths := map[int]int{}
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	if t.colour != nil {
		w = drawn(w) // colours are escape sequences; what the cells have of those is quoted
	}
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2)
			if t.colour != nil {
				cell = t.colour(cell)
			}
			line.WriteString(cell + pad)
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

// colours marks statuses and verdicts, on a terminal unless NO_COLOR is set.
func colours(w io.Writer) func(string) string {
	if columns(w) == 0 || os.Getenv("NO_COLOR") != "" {
		return nil
	}
	codes := map[string]int{
		kvmbackup.StatusRunning.String(): 36, kvmbackup.StatusFailed.String(): 31, kvmbackup.StatusDeletePending.String(): 33,
		"damaged": 31, "ok": 32,
	}
	return func(cell string) string {
		if code, ok := codes[cell]; ok {
			return fmt.Sprintf("\x1b[%dm%s\x1b[0m", code, cell)
		}
		return cell
	}
}

// size is for people: 1.5 GiB.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/(1<<10), 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// local is a time for people.
func local(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
