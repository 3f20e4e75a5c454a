package main

import (
	"errors"
	"strings"
	"testing"
)

const output = `date: 2026-11-23
cores: 2
BenchmarkFull/1GiB-2  1  900 backup-begin-wall-ms  945 ours-wall-ms  1.05 ours/backup-begin` +
	`  1.2 ours/backup-begin-max  0.9 ours/backup-begin-min
BenchmarkHistory/plan-2  1  2.5 million/ten  1 plan-ms@10  2.5 plan-ms@1000000
PASS
`

func TestFill(t *testing.T) {
	r, err := parse(strings.NewReader(output))
	if err != nil {
		t.Fatal(err)
	}
	const document = "# Title\n<!-- begin targets -->\nold\n<!-- end -->\ntext\n<!-- begin disks -->\nkept\n<!-- end -->\n"
	const want = `# Title
<!-- begin targets -->
| figure | target | median | rounds | met |
| --- | ---: | ---: | ---: | ---: |
| full of 1 GiB against bare backup-begin | <= 1.1 | 1.05 | 0.90 to 1.20 | yes |
| planning with a million backups against ten | <= 2 | 2.50 |  | no |
<!-- end -->
text
<!-- begin disks -->
kept
<!-- end -->
`
	got, err := fill(document, r)
	if err != nil || got != want {
		t.Errorf("%v\n%s", err, got)
	}
	if again, err := fill(got, r); err != nil || again != want {
		t.Errorf("a second time: %v\n%s", err, again)
	}
	if _, err := fill("<!-- begin nonsense -->\n<!-- end -->", r); err == nil {
		t.Error("an unknown table is no error")
	}
}

func TestFailedRun(t *testing.T) {
	if _, err := parse(strings.NewReader(output + "FAIL\n")); !errors.Is(err, errFailed) {
		t.Errorf("error is %v", err)
	}
}

func TestPlots(t *testing.T) {
	r, err := parse(strings.NewReader(output))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"performance-history.svg": true, "performance-disks.svg": false,
		"performance-versus.svg": false} {
		if got := plots[name](r) != ""; got != want {
			t.Errorf("%s was drawn: %v, want %v", name, got, want)
		}
	}
}
