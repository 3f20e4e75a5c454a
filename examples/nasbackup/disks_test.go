package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	tools "github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestDisks: an operator chooses disks; what is left out is in the plan, in the record and in what show says, and is
// full when it is back.
func TestDisks(t *testing.T) {
	tools.Further(t)
	t.Parallel()
	l := newLab(t)
	if r := l.run("init"); r.code != exitDone {
		t.Fatal("init")
	}
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint)
	first := l.list(guestName)[0]
	for option, code := range map[string]kvmbackup.ReasonCode{"--disk=vda": engine.ReasonDiskNotNamed,
		"--exclude-disk=vdb": engine.ReasonDiskExcluded} {
		var p engine.Plan
		l.get(&p, "plan", guestName, option)
		b := l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental, option)
		for _, reasons := range [][]kvmbackup.Reason{p.Reasons, b.Reasons} {
			if !slices.ContainsFunc(reasons, func(r kvmbackup.Reason) bool { return r.Code == code && r.Detail == "vdb" }) {
				t.Errorf("%s: reasons are %v", option, reasons)
			}
		}
		if len(p.Volumes) != 1 || len(b.Volumes) != 1 || b.Volumes[0].VolumeID != first.Volumes[0].VolumeID {
			t.Errorf("%s: planned %+v, taken %+v", option, p.Volumes, b.Volumes)
		}
		if r := l.run("show", string(b.ID)); !strings.Contains(r.stdout, string(code)+" (vdb)") {
			t.Errorf("%s: show says %s", option, r.stdout)
		}
	}
	for _, command := range []string{"plan", "backup"} {
		l.fail(exitNotFound, "no-volume", command, guestName, "--disk", "vdz")
		l.fail(exitNotFound, "no-volume", command, guestName, "--exclude-disk", "vdz")
		l.fail(exitFailed, "nothing-to-back-up", command, guestName, "--exclude-disk", "vda", "--exclude-disk", "vdb")
		l.fail(exitUsage, "usage", command, guestName, "--disk", "vda", "--disk", "vda")
	}
	b := l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental, "--require-all-disks")
	if len(b.Volumes) != 2 || b.Volumes[1].Kind != kvmbackup.KindFull {
		t.Errorf("volumes are %+v", b.Volumes)
	}
	l.restores(b, l.now())
}
