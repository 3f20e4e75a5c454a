package repository

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/kvmbackup/kvmbackup"
)

// Limits of a manifest, besides MaxManifestBytes and those of names and of every record. What is written stays far
// below them. A manifest beyond one is refused before memory is taken for it, and sums over a whole manifest don't
// overflow.
const (
	MaxReasons       = 4096
	MaxDetailBytes   = 64 << 10  // of a reason's detail
	MaxSideFileBytes = 128 << 20 // the variables of an aarch64 firmware have 64 MiB
	MaxVolumeBytes   = 1 << 53   // of any size of a volume: four times what qcow2 can hold with its usual clusters
	MaxSequence      = 1 << 53   // JSON numbers are exact up to here
	MaxPosition      = 1 << 20
)

const (
	maxText       = 4096 // of free texts, in bytes
	maxHex        = 128  // digits of a digest
	maxFrozenMS   = 366 * 24 * 3600 * 1000
	maxErrors     = 32             // of one manifest; who reads more of them?
	maxElements   = 2 * MaxReasons // of an array or object, also of one that isn't known here
	maxNesting    = 32
	firstYear     = 1970
	lastYear      = 9999
	maxAlgorithms = 32 // bytes of a digest's algorithm
	maxKeys       = 64
	maxKeyID      = 1 << 10
	maxWrapped    = 16 << 10 // bytes of a wrapped key
)

// checkShape counts before anything is decoded: an element of five bytes can become a value of hundreds.
func checkShape(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var open []int // how many elements each array or object has so far that isn't closed yet
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrManifest, err)
		}
		if len(open) > 0 {
			open[len(open)-1]++
		}
		switch token {
		case json.Delim('['), json.Delim('{'):
			open = append(open, 0)
		case json.Delim(']'), json.Delim('}'):
			open = open[:len(open)-1]
		}
		if len(open) > maxNesting {
			return fmt.Errorf("%w: nested more than %d deep", ErrManifest, maxNesting)
		}
		if len(open) > 0 && open[len(open)-1] > maxElements {
			return fmt.Errorf("%w: an array or object with more than %d elements", ErrManifest, maxElements)
		}
	}
}

// limits refuses what is beyond a limit. It says whether the lists are short enough to be looked through.
func (c *checker) limits(d document) bool {
	c.that(d.Sequence >= 0 && d.Sequence <= MaxSequence, "sequence %d is not 0 to %d", d.Sequence, int64(MaxSequence))
	c.that(d.Position <= MaxPosition, "position %d is above %d", d.Position, MaxPosition)
	c.that(d.FrozenMS >= 0 && d.FrozenMS <= maxFrozenMS, "frozen_ms %d", d.FrozenMS)
	for _, t := range []struct {
		field string
		year  int
	}{{"started_at", d.StartedAt.Year()}, {"completed_at", d.CompletedAt.Year()}} {
		c.that(t.year >= firstYear && t.year <= lastYear, "%s is missing or in the year %d", t.field, t.year)
	}
	short := true
	for _, l := range []struct {
		field     string
		has, most int
	}{{"files", len(d.Files), kvmbackup.MaxSideFiles}, {"reasons", len(d.Reasons), MaxReasons},
		{"keys", len(d.Keys), maxKeys}} {
		c.that(l.has <= l.most, "%d %s, which is more than %d", l.has, l.field, l.most)
		short = short && l.has <= l.most
	}
	return short
}
