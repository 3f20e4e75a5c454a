package main

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/picture"
)

// TestPicture draws docs/nasbackup.svg, the screen in the middle of a backup, from events as an engine sends them. With
// -update it writes the file, which "go generate" does.
func TestPicture(t *testing.T) {
	const columns, path = 113, "../../docs/nasbackup.svg"
	var out bytes.Buffer
	typed := func(command string) { fmt.Fprintf(&out, "$ nasbackup %s\n", command) }
	volume := func(device, id string, kind kvmbackup.Kind, why kvmbackup.ReasonCode) kvmbackup.VolumeDecision {
		return kvmbackup.VolumeDecision{
			Device: device, VolumeID: kvmbackup.VolumeID(id), Kind: kind, Reason: kvmbackup.Reason{Code: why},
		}
	}
	typed("delete web1/2026.11.24.22.00.00")
	printDeletion(&out, kvmbackup.DeletePlan{Pending: []kvmbackup.PendingDelete{{
		Backup: kvmbackup.Backup{
			ID: web1, Path: "web1/2026.11.24.22.00.00", Volumes: []kvmbackup.VolumeBackup{{StoredSize: 3 << 30}},
		},
		NeededBy: []string{"backup " + web2 + " (completed)"},
	}}}, false)
	typed("plan web1")
	printPlan(&out, engine.Plan{
		VM: "web1", Path: "web1/2026.11.27.22.00.00", EstimateBytes: 24 << 30, FreeBytes: 3 << 40,
		Decision: kvmbackup.Decision{
			Kind: kvmbackup.KindIncremental, Transfer: kvmbackup.TransferPush,
			Reasons: []kvmbackup.Reason{{Code: kvmbackup.ReasonIncremental, Detail: "position 3 on backup " + web3}},
			Volumes: []kvmbackup.VolumeDecision{
				volume("vda", "5f6c0d0e", kvmbackup.KindIncremental, kvmbackup.ReasonVolumeIncremental),
				volume("vdb", "91ab44f2", kvmbackup.KindFull, kvmbackup.ReasonVolumeNew),
			},
		},
	})
	typed("backup web1 --quiesce")
	s := &screen{w: &out, width: func() int { return columns }}
	now := time.Date(2026, 11, 27, 22, 0, 0, 0, time.UTC)
	s.event(engine.Event{Type: engine.EventStep, Time: now, Op: "backup", VM: "web1", Step: "copy"})
	for _, done := range []int64{0, 2 << 30, 9 << 30} {
		now = now.Add(20 * time.Second)
		volumes := []kvmbackup.VolumeProgress{
			{Device: "vda", DoneBytes: done / 3, TotalBytes: 4 << 30}, {Device: "vdb", DoneBytes: done, TotalBytes: 20 << 30},
		}
		s.event(engine.Event{Type: engine.EventProgress, Time: now, Progress: &kvmbackup.JobProgress{Volumes: volumes}})
	}
	svg := picture.Terminal("nasbackup", columns, out.String())
	if *update {
		if err := os.WriteFile(path, []byte(svg), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if has, err := os.ReadFile(path); err != nil || string(has) != svg {
		t.Errorf("%s is stale: run go generate (%v)", path, err)
	}
}
