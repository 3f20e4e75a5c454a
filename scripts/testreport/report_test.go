package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

func TestJudge(t *testing.T) {
	const (
		pass = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"pass","Package":"p"}` + "\n"
		skip = `{"Action":"skip","Package":"p","Test":"TestS"}` + "\n"
		says = `{"Action":"output","Package":"p","Test":"TestS","Output":"    a_test.go:7: %s\n"}` + "\n"
	)
	for _, tt := range []struct {
		name    string
		in      string
		noSkips bool
		want    string // empty: all is well
	}{
		{"pass", pass, true, ""},
		{"skip allowed", skip + pass, false, ""},
		{"skip refused", skip + pass, true, "skipped: p TestS"},
		{"skip of another test", fmt.Sprintf(says, lab.LeftOut) + skip + strings.ReplaceAll(skip, "TestS", "TestT") + pass,
			true, "skipped: p TestT"},
		{"skip that says more", fmt.Sprintf(says, lab.LeftOut+", or not") + skip + pass, true, "skipped: p TestS"},
		{"skip of the same name elsewhere", fmt.Sprintf(says, lab.LeftOut) + strings.ReplaceAll(skip, `"p"`, `"q"`) + pass,
			true, "skipped: q TestS"},
		{"nothing but further tests", fmt.Sprintf(says, lab.LeftOut) + skip, true, "nothing was tested"},
		{"package without tests is no skip", `{"Action":"skip","Package":"q"}` + pass, true, ""},
		{"failure", pass + `{"Action":"fail","Package":"p","Test":"TestF"}`, false, "failed"},
		{"failure outside the tests", pass + `{"Action":"fail","Package":"p"}`, false, "failed"},
		{"build failure", pass + `{"ImportPath":"p","Action":"build-fail"}`, false, "failed"},
		{"nothing ran", "", false, "nothing was tested"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := read(strings.NewReader(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if fine := r.judge(&out, tt.noSkips, true); fine != (tt.want == "") || !strings.Contains(out.String(), tt.want) {
				t.Errorf("fine: %t, said: %s", fine, out.String())
			}
		})
	}
}

// TestLeftOut: what the quick tier leaves to the further tests is counted, and no fault.
func TestLeftOut(t *testing.T) {
	in := fmt.Sprintf(`{"Action":"output","Package":"p","Test":"TestS","Output":"    a_test.go:7: %s\n"}`, lab.LeftOut) +
		`{"Action":"skip","Package":"p","Test":"TestS"}` + `{"Action":"pass","Package":"p","Test":"TestA"}`
	r, err := read(strings.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if fine := r.judge(&out, true, true); !fine || !strings.Contains(out.String(), `test-further": 1`) {
		t.Errorf("fine: %t, said: %s", fine, out.String())
	}
}

func TestBudgets(t *testing.T) {
	took := func(pkg string, seconds float64) string {
		return fmt.Sprintf(`{"Action":"pass","Package":"%s%s","Elapsed":%g}`+"\n", module, pkg, seconds)
	}
	machine := func(slowness float64) (all string) { // all packages but one
		for pkg, s := range usual {
			all += took(pkg, s*slowness)
		}
		return all
	}
	cached := fmt.Sprintf(`{"Action":"output","Package":"%sx","Output":"ok  \t%[1]sx\t(cached)\n"}`+"\n", module)
	for _, tt := range []struct {
		name string
		in   string
		over bool
	}{
		{"as usual", machine(1) + took("x", others), false},
		{"a slow machine", machine(4) + took("x", others*4*headroom-1), false},
		{"over", machine(1) + took("x", others*headroom+1), true},
		{"over on a slow machine", machine(4) + took("x", others*4*headroom+1), true},
		{"a quick machine's budgets are the usual ones", machine(.1) + took("x", others*headroom-1), false},
		{"nothing to compare with", took("x", 1000), false},
		{"a result of an earlier run", machine(1) + cached + took("x", 1000), false},
	} {
		r, err := read(strings.NewReader(tt.in))
		if err != nil {
			t.Fatal(err)
		}
		if over := r.overBudget(); (len(over) > 0) != tt.over {
			t.Errorf("%s: %q", tt.name, over)
		}
	}
}
