package kvmbackup_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// A decision needs no hypervisor: it is a function of what is known.
func ExampleChainDecider() {
	newest := kvmbackup.Backup{
		ID: "bbbbbbbb-0000-4000-8000-000000000001", VM: "web1", Kind: kvmbackup.KindFull, Status: kvmbackup.StatusCompleted,
		ChainID: "aaaaaaaa-0000-4000-8000-000000000001", Checkpoint: "kvmbackup-2026.11.23.07.04.50",
		Path: "web1/2026.11.23.07.04.50", Volumes: []kvmbackup.VolumeBackup{
			{VolumeID: "root", Device: "vda", Kind: kvmbackup.KindFull, File: "root.root.qcow2", VirtualSize: 10 << 30},
		},
	}
	d, err := kvmbackup.ChainDecider{}.Decide(kvmbackup.DecideInput{
		VM: "web1", Policy: kvmbackup.Policy{FullEvery: 3}, State: kvmbackup.DomainRunning,
		ActiveCheckpoint: newest.Checkpoint, Newest: &newest,
		Volumes: []kvmbackup.VolumeFacts{
			{VolumeID: "root", Device: "vda", VirtualSize: 10 << 30, Bitmap: kvmbackup.BitmapUsable},
			{VolumeID: "data", Device: "vdb", VirtualSize: 50 << 30},
		},
		NewCheckpoint: "kvmbackup-2026.11.23.08.04.50", NewChain: "aaaaaaaa-0000-4000-8000-000000000002",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(d.Kind, "at position", d.Position, "because:", d.Reasons[0].Code)
	for _, v := range d.Volumes {
		fmt.Println(v.Device, v.Kind, v.Reason.Code, v.ParentFile)
	}
	// Output:
	// incremental at position 1 because: incremental
	// vda incremental volume-incremental ../2026.11.23.07.04.50/root.root.qcow2
	// vdb full volume-new
}

// What a retention policy would do, before it does it.
func ExampleRetentionPolicy_Plan() {
	day := func(n int, kind kvmbackup.Kind, id, parent kvmbackup.BackupID) kvmbackup.Backup {
		return kvmbackup.Backup{
			ID: id, VM: "web1", Kind: kind, Status: kvmbackup.StatusCompleted, ParentID: parent, Sequence: int64(n),
			StartedAt: time.Date(2026, 11, n, 22, 0, 0, 0, time.UTC), Volumes: []kvmbackup.VolumeBackup{{StoredSize: 1 << 20}},
		}
	}
	plan, err := (kvmbackup.RetentionPolicy{Daily: 2}).Plan([]kvmbackup.Backup{
		day(1, kvmbackup.KindFull, "full-1", ""),
		day(2, kvmbackup.KindFull, "full-2", ""),
		day(3, kvmbackup.KindIncremental, "inc-3", "full-2"),
		day(4, kvmbackup.KindIncremental, "inc-4", "inc-3"),
	}, "")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Print(plan)
	// Output:
	// inc-4 2026-11-04T22:00:00Z incremental: keep (daily)
	// inc-3 2026-11-03T22:00:00Z incremental: keep (daily)
	// full-2 2026-11-02T22:00:00Z full: delete later: a kept backup needs it
	// full-1 2026-11-01T22:00:00Z full: delete
	// 1048576 bytes come back now, 1048576 later
}

// For hosts that keep a table of details per backup and add no columns.
func ExampleBackup_Details() {
	b := kvmbackup.Backup{
		ID: "bbbbbbbb-0000-4000-8000-000000000002", VM: "web1", Kind: kvmbackup.KindIncremental,
		Status: kvmbackup.StatusCompleted, ChainID: "aaaaaaaa-0000-4000-8000-000000000001", Position: 1,
		ParentID: "bbbbbbbb-0000-4000-8000-000000000001", Checkpoint: "kvmbackup-2026.11.23.08.04.50",
		Path: "web1/2026.11.23.08.04.50", Consistency: kvmbackup.ConsistencyCrash,
		StartedAt: time.Date(2026, 11, 23, 8, 4, 50, 0, time.UTC),
		Volumes: []kvmbackup.VolumeBackup{
			{VolumeID: "root", Device: "vda", Kind: kvmbackup.KindFull, File: "root.root.qcow2"},
		},
	}
	details := b.Details()
	for _, key := range slices.Sorted(maps.Keys(details)) {
		if strings.HasPrefix(key, "nas.") && !strings.HasPrefix(key, "nas.volume.") {
			fmt.Println(key, "=", details[key])
		}
	}
	back, err := kvmbackup.BackupFromDetails(details)
	fmt.Println(back.ID == b.ID, err)
	// Output:
	// nas.bitmap_name = kvmbackup-2026.11.23.08.04.50
	// nas.chain_id = aaaaaaaa-0000-4000-8000-000000000001
	// nas.chain_position = 1
	// nas.parent_backup_id = bbbbbbbb-0000-4000-8000-000000000001
	// nas.type = incremental
	// true <nil>
}

func ExamplePolicyFromSettings() {
	policy, err := kvmbackup.PolicyFromSettings(map[string]string{
		"nas.backup.incremental.enabled": "true",
		"nas.backup.full.every":          "7",
		"some.other.setting":             "x",
	})
	fmt.Println(!policy.DisableIncremental, policy.FullEvery, err)
	_, err = kvmbackup.PolicyFromSettings(map[string]string{"nas.backup.full.every": "weekly"})
	fmt.Println(err)
	// Output:
	// true 7 <nil>
	// invalid setting nas.backup.full.every="weekly": a whole number expected
}
