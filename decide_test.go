package kvmbackup_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

const (
	chainA  = kvmbackup.ChainID("aaaaaaaa-0000-4000-8000-000000000001")
	chainB  = kvmbackup.ChainID("aaaaaaaa-0000-4000-8000-000000000002")
	backup1 = kvmbackup.BackupID("bbbbbbbb-0000-4000-8000-000000000001")
	cp1     = kvmbackup.CheckpointName("kvmbackup-2026.11.23.07.04.50")
	cp2     = kvmbackup.CheckpointName("kvmbackup-2026.11.23.08.04.50")
)

// These names keep the tables' rows to a line.
type (
	input = kvmbackup.DecideInput
	facts = kvmbackup.VolumeFacts
)

// parentInput is an input for which everything speaks for an incremental. Each row of the table breaks one thing.
func parentInput() kvmbackup.DecideInput {
	newest := kvmbackup.Backup{
		ID: backup1, VM: "vm1", Kind: kvmbackup.KindFull, Status: kvmbackup.StatusCompleted, ChainID: chainA,
		Checkpoint: cp1, Repository: "repo", Path: "vm1/2026.11.23.07.04.50",
		Volumes: []kvmbackup.VolumeBackup{
			{
				VolumeID: "v1", Device: "vda", Kind: kvmbackup.KindFull, File: "root.v1.qcow2", VirtualSize: 1 << 30, Tracked: true,
			},
			{
				VolumeID: "v2", Device: "vdb", Kind: kvmbackup.KindFull, File: "datadisk.v2.qcow2", VirtualSize: 1 << 28,
				Tracked: true,
			},
		},
	}
	return kvmbackup.DecideInput{
		VM: "vm1", State: kvmbackup.DomainRunning, ActiveCheckpoint: cp1, Newest: &newest, Repository: "repo",
		Volumes: []kvmbackup.VolumeFacts{
			{VolumeID: "v1", Device: "vda", Format: "qcow2", VirtualSize: 1 << 30, Bitmap: kvmbackup.BitmapUsable},
			{VolumeID: "v2", Device: "vdb", Format: "qcow2", VirtualSize: 1 << 28, Bitmap: kvmbackup.BitmapUsable},
		},
		NewCheckpoint: cp2, NewChain: chainB,
	}
}

func TestDecideRules(t *testing.T) {
	both := func(in *input, f func(v *facts)) {
		for i := range in.Volumes {
			f(&in.Volumes[i])
		}
	}
	rows := []struct {
		name      string
		change    func(in *input)
		want      kvmbackup.ReasonCode
		untracked bool
	}{
		{"incremental disabled", func(in *input) { in.Policy.DisableIncremental = true },
			kvmbackup.ReasonIncrementalDisabled, true},
		{"disabled wins over forced", func(in *input) {
			in.Policy = kvmbackup.Policy{DisableIncremental: true, ForceFull: true}
		}, kvmbackup.ReasonIncrementalDisabled, true},
		{"forced", func(in *input) { in.Policy.ForceFull = true }, kvmbackup.ReasonForced, false},
		{"full-every 1", func(in *input) { in.Policy.FullEvery = 1 }, kvmbackup.ReasonEveryFull, false},
		{"full-every negative", func(in *input) { in.Policy.FullEvery = -4 }, kvmbackup.ReasonEveryFull, false},
		{"stopped", func(in *input) { in.State = kvmbackup.DomainStopped }, kvmbackup.ReasonStopped, false},
		{"no active checkpoint", func(in *input) { in.ActiveCheckpoint = "" }, kvmbackup.ReasonNoActiveCheckpoint, false},
		{"no backup at all", func(in *input) { in.ActiveCheckpoint, in.Newest = "", nil },
			kvmbackup.ReasonNoActiveCheckpoint, false},
		{"active without any backup", func(in *input) { in.Newest = nil }, kvmbackup.ReasonNotNewest, false},
		{"newest has another checkpoint", func(in *input) { in.Newest.Checkpoint = "kvmbackup-2026.11.23.07.30.00" },
			kvmbackup.ReasonNotNewest, false},
		{"newest is untracked", func(in *input) { in.Newest.Checkpoint = "" }, kvmbackup.ReasonNotNewest, false},
		{"parent of another domain", func(in *input) { in.Newest.DomainUUID, in.DomainUUID = lab.OldUUID, lab.NewUUID },
			kvmbackup.ReasonParentOtherDomain, false},
		{"not newest wins over another domain", func(in *input) {
			in.Newest.DomainUUID, in.DomainUUID, in.Newest.Checkpoint = lab.OldUUID, lab.NewUUID, ""
		}, kvmbackup.ReasonNotNewest, false},
		{"another domain wins over delete-pending", func(in *input) {
			in.Newest.DomainUUID, in.DomainUUID, in.Newest.Status = lab.OldUUID, lab.NewUUID, kvmbackup.StatusDeletePending
		}, kvmbackup.ReasonParentOtherDomain, false},
		{"parent delete-pending", func(in *input) { in.Newest.Status = kvmbackup.StatusDeletePending },
			kvmbackup.ReasonParentDeletePending, false},
		{"parent without chain", func(in *input) { in.Newest.ChainID = "" }, kvmbackup.ReasonParentNoChainData, false},
		{"parent without volumes", func(in *input) { in.Newest.Volumes = nil }, kvmbackup.ReasonParentNoChainData, false},
		{"parent elsewhere", func(in *input) { in.Newest.Repository = "other" },
			kvmbackup.ReasonParentOtherRepository, false},
		{"parent damaged", func(in *input) { in.Damaged = []string{"backup x: root.v1.qcow2 is damaged"} },
			kvmbackup.ReasonParentDamaged, false},
		{"parent file missing", func(in *input) { in.MissingFiles = []string{"vm1/x/root.v1.qcow2"} },
			kvmbackup.ReasonParentFileMissing, false},
		{"chain complete", func(in *input) { in.Newest.Position, in.Policy.FullEvery = 2, 3 },
			kvmbackup.ReasonChainComplete, false},
		{"chain complete by default", func(in *input) { in.Newest.Position = 9 }, kvmbackup.ReasonChainComplete, false},
		{"full-every lowered in mid-chain", func(in *input) { in.Newest.Position, in.Policy.FullEvery = 7, 3 },
			kvmbackup.ReasonChainComplete, false},
		{"all bitmaps gone", func(in *input) {
			both(in, func(v *facts) { v.Bitmap = kvmbackup.BitmapMissing })
		}, kvmbackup.ReasonNoVolumeIncremental, false},
		{"all volumes replaced", func(in *input) {
			both(in, func(v *facts) { v.VolumeID += "x" })
		}, kvmbackup.ReasonNoVolumeIncremental, false},
		{"nothing can be tracked", func(in *input) {
			both(in, func(v *facts) { v.Untrackable = "raw" })
		}, kvmbackup.ReasonNoVolumeIncremental, true},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			in := parentInput()
			r.change(&in)
			d := decide(t, in)
			if d.Kind != kvmbackup.KindFull || d.Reasons[0].Code != r.want {
				t.Errorf("decided %v because %v, want full because %s", d.Kind, d.Reasons, r.want)
			}
			if d.ChainID != chainB || d.Position != 0 || d.ParentID != "" || d.Base != "" {
				t.Errorf("a full must begin a new chain: %+v", d)
			}
			if (d.Checkpoint == "") != r.untracked {
				t.Errorf("checkpoint %q, untracked wanted: %v", d.Checkpoint, r.untracked)
			}
			for _, v := range d.Volumes {
				if v.Kind != kvmbackup.KindFull || v.ParentFile != "" || v.Tracked == r.untracked {
					t.Errorf("volume %+v in a full", v)
				}
			}
		})
	}
}

func TestDecideIncremental(t *testing.T) {
	for name, change := range map[string]func(in *input){
		"running": func(*input) {},
		"same domain": func(in *input) {
			in.Newest.DomainUUID, in.DomainUUID = strings.ToUpper(lab.OldUUID), lab.OldUUID
		},
		"domain not known": func(in *input) { in.DomainUUID = lab.OldUUID },
		"nil UUID":         func(in *input) { in.Newest.DomainUUID, in.DomainUUID = lab.OldUUID, uuid.Nil.String() },
		"paused":           func(in *input) { in.State = kvmbackup.DomainPaused },
		"stopped, allowed": func(in *input) {
			in.State, in.Policy.OfflineIncremental = kvmbackup.DomainStopped, true
		},
		"encrypted as before": func(in *input) {
			in.Newest.Volumes[0].Encryption, in.Volumes[0].Encryption = "luks", "luks"
		},
		"last place":         func(in *input) { in.Newest.Position, in.Policy.FullEvery = 1, 3 },
		"volumes reordered":  func(in *input) { in.Volumes[0], in.Volumes[1] = in.Volumes[1], in.Volumes[0] },
		"device names moved": func(in *input) { in.Volumes[0].Device, in.Volumes[1].Device = "vdb", "vda" },
		"volume grown":       func(in *input) { in.Volumes[0].VirtualSize *= 2 },
		"layers merged down": func(in *input) {
			in.Newest.Volumes[0].Layers, in.Volumes[0].BitmapBegan = []string{"/images/top", "/images/middle", "/images/base"},
				"/images/middle"
		},
		"layers not known": func(in *input) { in.Newest.Volumes[0].Layers = []string{"/images/top"} },
	} {
		t.Run(name, func(t *testing.T) {
			in := parentInput()
			change(&in)
			d := decide(t, in)
			if d.Kind != kvmbackup.KindIncremental || d.ParentID != backup1 || d.ChainID != chainA ||
				d.Position != in.Newest.Position+1 || d.Base != cp1 || d.Checkpoint != cp2 {
				t.Fatalf("decided %+v", d)
			}
			links := map[kvmbackup.VolumeID]string{
				"v1": "../2026.11.23.07.04.50/root.v1.qcow2", "v2": "../2026.11.23.07.04.50/datadisk.v2.qcow2",
			}
			for _, v := range d.Volumes {
				if v.Kind != kvmbackup.KindIncremental || v.ParentFile != links[v.VolumeID] || !v.Tracked {
					t.Errorf("volume %+v", v)
				}
			}
		})
	}
}

func TestDecideVolumes(t *testing.T) {
	rows := []struct {
		name    string
		change  func(in *input, v *facts)
		want    kvmbackup.ReasonCode
		tracked bool
	}{
		{"new", func(_ *input, v *facts) { v.VolumeID = "v9" }, kvmbackup.ReasonVolumeNew, true},
		{"raw", func(_ *input, v *facts) { v.Untrackable = "raw" }, kvmbackup.ReasonVolumeUntrackable, false},
		{"bitmap's name taken", func(_ *input, v *facts) { v.NameTaken = "backup-vdb" },
			kvmbackup.ReasonVolumeNameTaken, true},
		{"raw, and the name taken", func(_ *input, v *facts) {
			v.Untrackable, v.NameTaken = "raw", "backup-vdb"
		}, kvmbackup.ReasonVolumeUntrackable, false},
		{"bitmap missing", func(_ *input, v *facts) { v.Bitmap = kvmbackup.BitmapMissing },
			kvmbackup.ReasonVolumeBitmapMissing, true},
		{"bitmap inconsistent", func(_ *input, v *facts) { v.Bitmap = kvmbackup.BitmapInconsistent },
			kvmbackup.ReasonVolumeBitmapInconsistent, true},
		{"bitmap unknown", func(_ *input, v *facts) { v.Bitmap = kvmbackup.BitmapUnknown },
			kvmbackup.ReasonVolumeBitmapUnknown, true},
		{"bitmap moved", func(in *input, v *facts) {
			in.Newest.Volumes[1].Layers, v.BitmapBegan = []string{"/images/base"}, "/images/base.snap1"
		}, kvmbackup.ReasonVolumeBitmapMoved, true},
		{"bitmap of a record without layers", func(_ *input, v *facts) { v.BitmapBegan = "/images/base" },
			kvmbackup.ReasonVolumeBitmapMoved, true},
		{"encrypted since", func(_ *input, v *facts) { v.Encryption = "luks" }, kvmbackup.ReasonVolumeReencrypted, true},
		{"decrypted since", func(in *input, _ *facts) { in.Newest.Volumes[1].Encryption = "luks" },
			kvmbackup.ReasonVolumeReencrypted, true},
		{"encrypted otherwise and shrank", func(in *input, v *facts) {
			in.Newest.Volumes[1].Encryption, v.Encryption, v.VirtualSize = "aes", "luks", 1
		}, kvmbackup.ReasonVolumeReencrypted, true},
		{"encrypted since and raw", func(_ *input, v *facts) { v.Encryption, v.Untrackable = "luks", "raw" },
			kvmbackup.ReasonVolumeUntrackable, false},
		{"shrank", func(_ *input, v *facts) { v.VirtualSize-- }, kvmbackup.ReasonVolumeShrank, true},
		{"no parent file", func(in *input, _ *facts) { in.Newest.Volumes[1].File = "" },
			kvmbackup.ReasonVolumeNoParentFile, true},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			in := parentInput()
			r.change(&in, &in.Volumes[1])
			d := decide(t, in)
			if d.Kind != kvmbackup.KindIncremental || d.Volumes[0].Kind != kvmbackup.KindIncremental {
				t.Fatalf("one volume's trouble must not make the others full: %+v", d)
			}
			if v := d.Volumes[1]; v.Kind != kvmbackup.KindFull || v.Reason.Code != r.want || v.ParentFile != "" ||
				v.Tracked != r.tracked {
				t.Errorf("volume decided %+v, want full because %s", v, r.want)
			}
		})
	}
	t.Run("gone", func(t *testing.T) {
		in := parentInput()
		in.Volumes = in.Volumes[:1]
		d := decide(t, in)
		if len(d.Volumes) != 1 || len(d.Reasons) != 2 || d.Reasons[1].Code != kvmbackup.ReasonVolumeGone ||
			d.Reasons[1].VolumeID != "v2" {
			t.Errorf("decided %+v", d)
		}
	})
	t.Run("left out", func(t *testing.T) {
		in := parentInput()
		in.Volumes, in.LeftOut = in.Volumes[:1], []kvmbackup.VolumeID{"v2"}
		if d := decide(t, in); len(d.Volumes) != 1 || len(d.Reasons) != 1 {
			t.Errorf("decided %+v", d)
		}
	})
}

// What can't be tracked is said with a full for any reason, unless nothing is to be incremental anyway.
func TestDecideTellsOfTheUntrackable(t *testing.T) {
	for name, r := range map[string]struct {
		change func(in *input)
		want   kvmbackup.ReasonCode
	}{
		"first":      {func(in *input) { in.ActiveCheckpoint = "" }, kvmbackup.ReasonVolumeUntrackable},
		"forced":     {func(in *input) { in.Policy.ForceFull = true }, kvmbackup.ReasonVolumeUntrackable},
		"off":        {func(in *input) { in.Policy.DisableIncremental = true }, kvmbackup.ReasonBackupFull},
		"every full": {func(in *input) { in.Policy.FullEvery = 1 }, kvmbackup.ReasonBackupFull},
	} {
		in := parentInput()
		in.Volumes[1].Untrackable = "raw, and the way out"
		r.change(&in)
		d := decide(t, in)
		why := d.Volumes[1].Reason
		if why.Code != r.want || (why.Detail == in.Volumes[1].Untrackable) != (r.want == kvmbackup.ReasonVolumeUntrackable) {
			t.Errorf("%s: %+v", name, d.Volumes)
		}
		if why := d.Volumes[0].Reason; why.Code != kvmbackup.ReasonBackupFull {
			t.Errorf("%s: %+v", name, d.Volumes)
		}
	}
}

func TestDecideRefuses(t *testing.T) {
	for name, r := range map[string]struct {
		change func(in *input)
		want   error
	}{
		"no volumes":    {func(in *input) { in.Volumes = nil }, kvmbackup.ErrNothingToBackUp},
		"volume twice":  {func(in *input) { in.Volumes[1].VolumeID = "v1" }, kvmbackup.ErrInvalid},
		"device twice":  {func(in *input) { in.Volumes[1].Device = "vda" }, kvmbackup.ErrInvalid},
		"unknown state": {func(in *input) { in.State = kvmbackup.DomainUnknown }, kvmbackup.ErrInvalid},
		"no chain ID":   {func(in *input) { in.NewChain = "" }, kvmbackup.ErrInvalid},
	} {
		in := parentInput()
		r.change(&in)
		if _, err := (kvmbackup.ChainDecider{}).Decide(in); !errors.Is(err, r.want) {
			t.Errorf("%s: error %v, want %v", name, err, r.want)
		}
	}
}

// TestCheckRefuses shows that no decider, however wrong, can break a chain.
func TestCheckRefuses(t *testing.T) {
	in := parentInput()
	good := decide(t, in)
	for name, change := range map[string]func(in *input, d *kvmbackup.Decision){
		"incremental without active checkpoint": func(in *input, _ *kvmbackup.Decision) { in.ActiveCheckpoint = "" },
		"incremental on a missing file":         func(in *input, _ *kvmbackup.Decision) { in.MissingFiles = []string{"x"} },
		"incremental without bitmap": func(in *input, _ *kvmbackup.Decision) {
			in.Volumes[0].Bitmap = kvmbackup.BitmapInconsistent
		},
		"incremental on another domain's": func(in *input, _ *kvmbackup.Decision) {
			in.Newest.DomainUUID, in.DomainUUID = lab.OldUUID, lab.NewUUID
		},
		"another parent":     func(_ *input, d *kvmbackup.Decision) { d.ParentID = "other" },
		"another position":   func(_ *input, d *kvmbackup.Decision) { d.Position = 5 },
		"another base":       func(_ *input, d *kvmbackup.Decision) { d.Base = "other" },
		"another checkpoint": func(_ *input, d *kvmbackup.Decision) { d.Checkpoint = "other" },
		"another link":       func(_ *input, d *kvmbackup.Decision) { d.Volumes[0].ParentFile = "../../etc/passwd" },
		"links exchanged": func(_ *input, d *kvmbackup.Decision) {
			d.Volumes[0].ParentFile, d.Volumes[1].ParentFile = d.Volumes[1].ParentFile, d.Volumes[0].ParentFile
		},
		"a volume left out":       func(_ *input, d *kvmbackup.Decision) { d.Volumes = d.Volumes[:1] },
		"tracking the untracked":  func(in *input, _ *kvmbackup.Decision) { in.Volumes[0].Untrackable = "raw" },
		"full with a parent":      func(_ *input, d *kvmbackup.Decision) { d.Kind = kvmbackup.KindFull },
		"no kind":                 func(_ *input, d *kvmbackup.Decision) { d.Kind = kvmbackup.KindUnknown },
		"tracked without a name":  func(_ *input, d *kvmbackup.Decision) { d.Checkpoint = "" },
		"full volume with a link": func(_ *input, d *kvmbackup.Decision) { d.Volumes[0].Kind = kvmbackup.KindFull },
	} {
		t.Run(name, func(t *testing.T) {
			in, d := parentInput(), good
			d.Volumes = append([]kvmbackup.VolumeDecision(nil), good.Volumes...)
			change(&in, &d)
			if err := d.Check(in); !errors.Is(err, kvmbackup.ErrInvalid) {
				t.Errorf("Check returned %v", err)
			}
		})
	}
}

func decide(t *testing.T, in kvmbackup.DecideInput) kvmbackup.Decision {
	t.Helper()
	d, err := kvmbackup.ChainDecider{}.Decide(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(in); err != nil {
		t.Errorf("the decider's own answer is refused: %v", err)
	}
	if in.Newest != nil {
		in.Newest = listed(*in.Newest)
		if again, err := (kvmbackup.ChainDecider{}).Decide(in); err != nil || !reflect.DeepEqual(again, d) {
			t.Errorf("with nothing but the fields that DecideInput.Newest lists: %+v, %v, want %+v", again, err, d)
		}
	}
	return d
}

// listed has the fields of which the comment on DecideInput.Newest says that a ChainDecider reads them.
func listed(b kvmbackup.Backup) *kvmbackup.Backup {
	out := kvmbackup.Backup{ID: b.ID, Status: b.Status, DomainUUID: b.DomainUUID, Checkpoint: b.Checkpoint,
		Repository: b.Repository, Path: b.Path, ChainID: b.ChainID, Position: b.Position}
	for _, v := range b.Volumes {
		out.Volumes = append(out.Volumes, kvmbackup.VolumeBackup{VolumeID: v.VolumeID, Device: v.Device, File: v.File,
			VirtualSize: v.VirtualSize, Encryption: v.Encryption, Layers: v.Layers})
	}
	return &out
}

// TestParentWithoutChainSaysWhatLacks: a host that fills in records by hand learns what to add.
func TestParentWithoutChainSaysWhatLacks(t *testing.T) {
	in := parentInput()
	in.Newest.ChainID, in.Newest.Volumes = "", nil
	want := "backup " + backup1.String() + " has no chain ID, no volumes"
	if r := decide(t, in).Reasons[0]; r.Code != kvmbackup.ReasonParentNoChainData || r.Detail != want {
		t.Errorf("the reason is %v, want the detail %q", r, want)
	}
}
