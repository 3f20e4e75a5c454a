package main

import (
	"errors"
	"testing"
)

// TestNoneBack: only an import of which nothing came back is a failure.
func TestNoneBack(t *testing.T) {
	added, there, passed := imported{Added: true}, imported{}, imported{Reason: "damaged"}
	for name, c := range map[string]struct {
		found []imported
		fails bool
	}{
		"empty repository": {nil, false},
		"all added":        {[]imported{added, added}, false},
		"were there":       {[]imported{there, there}, false},
		"one came back":    {[]imported{passed, added}, false},
		"one was there":    {[]imported{passed, there}, false},
		"none":             {[]imported{passed, passed}, true},
	} {
		if err := noneBack(c.found); errors.Is(err, errNoneBack) != c.fails {
			t.Errorf("%s: %v", name, err)
		}
	}
}
