package lab

import (
	"fmt"
	"testing"
)

func TestTiers(t *testing.T) {
	for _, tt := range []struct {
		text           string
		rounds, stride int // of a loop of 10 quick and 100 full rounds, and of one that takes every 24th point
	}{
		{"", 10, 24}, {"all", 10, 24}, {"full", 100, 1}, {"full/4", 25, 4}, {"full/50", 10, 24},
	} {
		n := mustTier(tt.text)
		Equal(t, tt.text+": rounds", n.rounds(10, 100), tt.rounds)
		Equal(t, tt.text+": stride", n.stride(24), tt.stride)
	}
}

// skipped notes what a test would be skipped with.
type skipped struct{ why []any }

func (s *skipped) Helper()         {}
func (s *skipped) Skip(why ...any) { s.why = append(s.why, why...) }

// TestFurther: a test that the quick tier leaves out, and a loop that it shortens, are whole in each of the others.
func TestFurther(t *testing.T) {
	for _, tt := range []struct {
		text   string
		says   string
		sparse int // of a loop that is 3 times sparser
	}{
		{"", "[" + LeftOut + "]", 3}, {"all", "[]", 1}, {"full", "[]", 1}, {"full/50", "[]", 1},
	} {
		var s skipped
		mustTier(tt.text).further(&s)
		Equal(t, tt.text+": says", fmt.Sprint(s.why), tt.says)
		Equal(t, tt.text+": sparse", mustTier(tt.text).sparse(3), tt.sparse)
	}
}

// TestUnknownTier: a misspelt tier isn't the quick one.
func TestUnknownTier(t *testing.T) {
	for _, text := range []string{"ful", "full/", "full/0", "full/-1", "quick", "all/2"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q is taken for a tier", text)
				}
			}()
			mustTier(text)
		}()
	}
}

// named has only a name.
type named struct {
	*testing.T
	name string
}

func (n named) Name() string { return n.name }

// TestEither: in one run some tests take the one kind and some the other, and in another run it is the other way round.
func TestEither(t *testing.T) {
	if Thorough() {
		Equal(t, "both", len(Either(t, 1, 2)), 2)
		return
	}
	count := map[string]int{}
	for _, name := range []string{"TestA", "TestB", "TestC", "TestD", "TestE", "TestF", "TestG", "TestH"} {
		t.Setenv(SeedEnv, "26")
		first := Either(named{t, name}, "persistent", "transient")
		t.Setenv(SeedEnv, "27")
		second := Either(named{t, name}, "persistent", "transient")
		if len(first) != 1 || len(second) != 1 || first[0] == second[0] {
			t.Errorf("%s: %q, then %q", name, first, second)
		}
		count[first[0]]++
	}
	if len(count) != 2 {
		t.Errorf("a run has %v", count)
	}
}

// TestSeed: the same seed tries the same points.
func TestSeed(t *testing.T) {
	t.Setenv(SeedEnv, "27")
	Equal(t, "seed", Seed(t), 27)
	if Thorough() {
		return
	}
	first, stride := Every(t, 8)
	Equal(t, "first", first, 3)
	Equal(t, "stride", stride, 8)
}
