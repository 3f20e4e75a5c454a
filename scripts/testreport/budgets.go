package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const module = "github.com/kvmbackup/kvmbackup/"

// usual is how many seconds a package takes in the quick tier, on two cores, with another package beside it. One that
// isn't listed takes as long as others.
var usual = map[string]float64{
	"examples/detailstore":             15,
	"examples/hosts":                   15,
	"examples/hosts/remote":            30,
	"examples/nasbackup":               30,
	"examples/orchestrator":            20,
	"examples/quickstart":              20,
	"executortest":                     12,
	"internal/copier":                  20,
	"internal/enginetest":              20,
	"internal/restoretest":             40,
	"internal/sealtest":                10,
	"internal/sqlstoretest":            25,
	"kvmbackuptest":                    60,
	"libvirtjob":                       60,
	"libvirtjob/internal/crash":        50,
	"libvirtjob/internal/differential": 50,
	"libvirtjob/internal/guests":       45,
	"libvirtjob/internal/stories":      65,
	"qcow2":                            30,
	"repository":                       15,
	"store/kvstore":                    20,
}

const (
	others = 5.0 // seconds
	// headroom is how many times its usual time a package may take. It is for what differs from run to run.
	headroom = 4.0
	// enough is how much of the others' usual time has to have run, in seconds, to say how slow the machine is.
	enough = 60.0
)

// overBudget returns a line for each package that is over its budget: its usual time, times headroom, times how much
// slower than usual the other packages of the run were. So no machine fails because it is slow, nor a run of a few
// packages.
func (r run) overBudget() (lines []string) {
	took, expected := 0.0, 0.0
	for pkg, d := range r.took {
		took, expected = took+d.Seconds(), expected+usually(pkg)
	}
	for _, pkg := range slices.Sorted(maps.Keys(r.took)) {
		own, usual := r.took[pkg].Seconds(), usually(pkg)
		if expected-usual < enough {
			continue
		}
		slowness := max(1, (took-own)/(expected-usual))
		if budget := usual * headroom * slowness; own > budget {
			lines = append(lines, fmt.Sprintf("over its budget: %s took %v, more than %v times the usual %v on this "+
				"machine, which is %.1f times as slow as usual",
				pkg, r.took[pkg], headroom, seconds(usual), slowness))
		}
	}
	return lines
}

func usually(pkg string) float64 {
	if s, is := usual[strings.TrimPrefix(pkg, module)]; is {
		return s
	}
	return others
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
