package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const pass = `{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.01s\n"}
{"Action":"pass","Package":"p"}
`
	const skip = `{"Action":"output","Package":"p","Test":"TestS","Output":"=== RUN   TestS\n"}
{"Action":"output","Package":"p","Test":"TestS","Output":"    s_test.go:1: no tool\n"}
{"Action":"output","Package":"p","Test":"TestS","Output":"--- SKIP: TestS (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestS"}
`
	tests := []struct {
		name    string
		in      string
		noSkips bool
		wantOK  bool
		want    []string
		wantNot []string
	}{
		{"pass", pass, true, true,
			[]string{"ok  \tp", "1 passed, 0 failed, 0 skipped"}, []string{"PASS\n"}},
		{"output of a passing test is dropped",
			`{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}` + "\n" + pass, true, true,
			nil, []string{"chatter"}},
		{"skip allowed", skip + pass, false, true,
			[]string{"SKIP p TestS: s_test.go:1: no tool"}, nil},
		{"skip refused", skip + pass, true, false,
			[]string{"SKIP p TestS: s_test.go:1: no tool"}, nil},
		{"package without tests is no skip", `{"Action":"skip","Package":"q"}` + "\n" + pass, true, true,
			[]string{"0 skipped"}, nil},
		{"failure", `{"Action":"output","Package":"p","Test":"TestF","Output":"    f_test.go:1: wrong\n"}
{"Action":"fail","Package":"p","Test":"TestF"}
`, false, false, []string{"f_test.go:1: wrong", "FAIL p TestF"}, nil},
		{"build failure", `{"ImportPath":"p","Action":"build-output","Output":"x.go:1:1: broken\n"}
{"ImportPath":"p","Action":"build-fail"}
` + pass, false, false, []string{"x.go:1:1: broken", "FAIL p (build)"}, nil},
		{"crash", `{"Action":"output","Package":"p","Test":"TestC","Output":"panic: oh\n"}
{"Action":"fail","Package":"p"}
`, false, false, []string{"panic: oh", "FAIL p TestC (never ended)"}, nil},
		{"crash after a test has passed", `{"Action":"output","Package":"p","Test":"TestC","Output":"=== RUN   TestC\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: chatter\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- PASS: TestA (1.00s)\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: test timed out after 4s\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}
`, false, false, []string{"panic: test timed out", "FAIL p TestC (never ended)"}, []string{"chatter"}},
		{"failure outside the tests", `{"Action":"output","Package":"p","Output":"FAIL\tp\t0.01s\n"}
{"Action":"fail","Package":"p"}
`, false, false, []string{"FAIL\tp", "FAIL p (package)"}, nil},
		{"nothing ran", "go: no such tool\n", false, false,
			[]string{"go: no such tool", "nothing was tested"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			r := newReport(&out)
			if err := r.read(strings.NewReader(tt.in)); err != nil {
				t.Fatal(err)
			}
			if ok := r.summarize(tt.noSkips); ok != tt.wantOK {
				t.Errorf("ok = %t, want %t", ok, tt.wantOK)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in the report:\n%s", want, out.String())
				}
			}
			for _, not := range tt.wantNot {
				if strings.Contains(out.String(), not) {
					t.Errorf("%q in the report:\n%s", not, out.String())
				}
			}
		})
	}
}
