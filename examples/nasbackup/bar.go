package main

import (
	"fmt"
	"strings"
	"time"
)

// bar is how far one volume is.
type bar struct {
	name        string
	done, total int64
	began, now  time.Time
	atStart     int64
}

func (b *bar) set(now time.Time, done, total int64) {
	if b.began.IsZero() {
		b.began, b.atStart = now, done
	}
	b.now, b.done, b.total = now, done, total
}

// rate is in bytes per second since the first call of set; 0 while it is unknown.
func (b *bar) rate() float64 {
	if elapsed := b.now.Sub(b.began).Seconds(); elapsed > 0 {
		return float64(b.done-b.atStart) / elapsed
	}
	return 0
}

// remaining is 0 while it is unknown.
func (b *bar) remaining() time.Duration {
	if r := b.rate(); r > 0 {
		return time.Duration(float64(b.total-b.done) / r * float64(time.Second)).Round(time.Second)
	}
	return 0
}

// line is the bar on a screen of some columns. Where they are few, figures matter more.
func (b *bar) line(columns int) string {
	share := 0.0
	if b.total > 0 {
		share = min(float64(b.done)/float64(b.total), 1)
	}
	figures := fmt.Sprintf("%3.0f%% of %s", share*100, size(b.total))
	if r := b.rate(); r > 0 {
		figures += fmt.Sprintf(", %s/s, %v left", size(int64(r)), b.remaining())
	}
	const widest, others = 24, len("vda   [] ")
	width := max(min(widest, columns-others-len(figures)), 0)
	filled := int(share * float64(width))
	return fmt.Sprintf("%-5s [%s%s] %s", b.name, strings.Repeat("#", filled), strings.Repeat(".", width-filled), figures)
}
