package main

import (
	"errors"
	"testing"

	"github.com/kvmbackup/kvmbackup/engine"
)

// TestNoneBack: only an import of which nothing came back is a failure.
func TestNoneBack(t *testing.T) {
	added, there, passed := engine.Imported{Added: true}, engine.Imported{}, engine.Imported{Reason: "damaged"}
	for name, c := range map[string]struct {
		found []engine.Imported
		fails bool
	}{
		"empty repository": {nil, false},
		"all added":        {[]engine.Imported{added, added}, false},
		"were there":       {[]engine.Imported{there, there}, false},
		"one came back":    {[]engine.Imported{passed, added}, false},
		"one was there":    {[]engine.Imported{passed, there}, false},
		"none":             {[]engine.Imported{passed, passed}, true},
	} {
		if err := noneBack(c.found); errors.Is(err, errNoneBack) != c.fails {
			t.Errorf("%s: %v", name, err)
		}
	}
}
