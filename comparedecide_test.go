package kvmbackup_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// Where only the bitmap can't be trusted the volume is compared, with the cause on record; what is about the chain, the
// user or the volume itself stays full; and what can't be compared is as it was without the policy.
func TestDecideCompare(t *testing.T) {
	second := func(f func(v *facts)) func(in *input) {
		return func(in *input) { f(&in.Volumes[1]) }
	}
	rows := []struct {
		name   string
		change func(in *input)
		cause  kvmbackup.ReasonCode // of the second volume's comparison; empty: it is full
		full   kvmbackup.ReasonCode // why it is
	}{
		{"no active checkpoint", func(in *input) { in.ActiveCheckpoint = "" }, kvmbackup.ReasonNoActiveCheckpoint, ""},
		{"another is active", func(in *input) { in.ActiveCheckpoint = "kvmbackup-x" }, kvmbackup.ReasonNotNewest, ""},
		{"newest untracked", func(in *input) { in.Newest.Checkpoint = "" }, kvmbackup.ReasonNotNewest, ""},
		{"stopped", func(in *input) { in.State = kvmbackup.DomainStopped }, kvmbackup.ReasonStopped, ""},
		{"missing", second(func(v *facts) { v.Bitmap = kvmbackup.BitmapMissing }), kvmbackup.ReasonVolumeBitmapMissing, ""},
		{"inconsistent", second(func(v *facts) { v.Bitmap = kvmbackup.BitmapInconsistent }),
			kvmbackup.ReasonVolumeBitmapInconsistent, ""},
		{"unknown", second(func(v *facts) { v.Bitmap = kvmbackup.BitmapUnknown }), kvmbackup.ReasonVolumeBitmapUnknown, ""},
		{"moved", second(func(v *facts) { v.BitmapBegan = "/images/snap" }), kvmbackup.ReasonVolumeBitmapMoved, ""},
		{"raw", second(func(v *facts) { v.Untrackable = "raw" }), kvmbackup.ReasonVolumeUntrackable, ""},
		{"name taken", second(func(v *facts) { v.NameTaken = "backup-vdb" }), kvmbackup.ReasonVolumeNameTaken, ""},
		{"grown", second(func(v *facts) { v.Untrackable, v.VirtualSize = "raw", v.VirtualSize*2 }),
			kvmbackup.ReasonVolumeUntrackable, ""},

		{"new", second(func(v *facts) { v.VolumeID, v.Untrackable = "v9", "raw" }), "", kvmbackup.ReasonVolumeNew},
		{"shrank", second(func(v *facts) { v.VirtualSize, v.Untrackable = 1, "raw" }), "", kvmbackup.ReasonVolumeShrank},
		{"reencrypted", second(func(v *facts) { v.Encryption, v.Untrackable = "luks", "raw" }), "",
			kvmbackup.ReasonVolumeReencrypted},
		{"without file", func(in *input) { in.Newest.Volumes[1].File = "" }, "", kvmbackup.ReasonVolumeNoParentFile},
		{"disabled", func(in *input) { in.Policy.DisableIncremental = true }, "", kvmbackup.ReasonBackupFull},
		{"forced", func(in *input) { in.Policy.ForceFull, in.ActiveCheckpoint = true, "" }, "", kvmbackup.ReasonBackupFull},
		{"every full", func(in *input) { in.Policy.FullEvery = 1 }, "", kvmbackup.ReasonBackupFull},
		{"no backup", func(in *input) { in.Newest, in.ActiveCheckpoint = nil, "" }, "", kvmbackup.ReasonBackupFull},
		{"damaged", func(in *input) { in.Damaged, in.ActiveCheckpoint = []string{"x"}, "" }, "", kvmbackup.ReasonBackupFull},
		{"file missing", func(in *input) { in.MissingFiles, in.ActiveCheckpoint = []string{"x"}, "" }, "",
			kvmbackup.ReasonBackupFull},
		{"pending", func(in *input) {
			in.Newest.Status, in.ActiveCheckpoint = kvmbackup.StatusDeletePending, ""
		}, "", kvmbackup.ReasonBackupFull},
		{"elsewhere", func(in *input) { in.Repository, in.ActiveCheckpoint = "other", "" }, "", kvmbackup.ReasonBackupFull},
		{"another domain", func(in *input) {
			in.Newest.DomainUUID, in.DomainUUID, in.ActiveCheckpoint = lab.OldUUID, lab.NewUUID, ""
		}, "", kvmbackup.ReasonBackupFull},
		{"complete", func(in *input) { in.Newest.Position, in.ActiveCheckpoint = 9, "" }, "", kvmbackup.ReasonBackupFull},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			in := parentInput()
			r.change(&in)
			without := decide(t, in)
			in.Policy.Compare, in.CantCompare = true, "no scratch"
			lab.Equal(t, "what can't be compared", decide(t, in).String(), without.String())
			in.CantCompare = ""
			d := decide(t, in)
			v := d.Volumes[1]
			if r.cause == "" {
				if v.Kind != kvmbackup.KindFull || v.Compare || v.Reason.Code != r.full {
					t.Errorf("decided %+v, want full because %s", v, r.full)
				}
				return
			}
			if v.Kind != kvmbackup.KindIncremental || !v.Compare || v.CheckBitmap || v.ParentFile == "" ||
				v.Reason.Code != kvmbackup.ReasonVolumeCompared || v.Reason.VolumeID != v.VolumeID ||
				!strings.HasPrefix(v.Reason.Detail, string(r.cause)) {
				t.Errorf("decided %+v, want a comparison because %s", v, r.cause)
			}
			if other := d.Volumes[0]; other.Compare == (d.Base != "") {
				t.Errorf("base %q with the other volume %+v", d.Base, other)
			}
		})
	}
}

// What the policy wants compared although the bitmap is fine checks the bitmap.
func TestDecideCompareDue(t *testing.T) {
	for name, r := range map[string]struct {
		policy   kvmbackup.Policy
		position int // of the newest
		want     bool
	}{
		"not asked":   {kvmbackup.Policy{Compare: true}, 4, false},
		"asked":       {kvmbackup.Policy{ForceCompare: true}, 4, true},
		"every third": {kvmbackup.Policy{CompareEvery: 3}, 5, true},
		"in between":  {kvmbackup.Policy{CompareEvery: 3}, 4, false},
		"negative":    {kvmbackup.Policy{CompareEvery: -1}, 4, false},
	} {
		in := parentInput()
		in.Policy, in.Newest.Position = r.policy, r.position
		in.Volumes[1].Untrackable = "raw"
		d := decide(t, in)
		if v := d.Volumes[0]; v.Compare != r.want || v.CheckBitmap != r.want || !v.ByBitmap() || d.Base != cp1 {
			t.Errorf("%s: %+v", name, d)
		}
		if v := d.Volumes[1]; v.Compare != (r.want || r.policy.Compare) || v.CheckBitmap {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// No decider can have a bitmap trusted that isn't to be, nor compare what can't be.
func TestCheckRefusesComparisons(t *testing.T) {
	in := parentInput()
	in.Policy.Compare = true
	in.Volumes[1].Bitmap = kvmbackup.BitmapInconsistent
	good := decide(t, in)
	for name, change := range map[string]func(in *input, d *kvmbackup.Decision){
		"by bitmap after all": func(_ *input, d *kvmbackup.Decision) { d.Volumes[1].Compare = false },
		"a broken bitmap":     func(_ *input, d *kvmbackup.Decision) { d.Volumes[1].CheckBitmap = true },
		"can't be compared":   func(in *input, _ *kvmbackup.Decision) { in.CantCompare = "no scratch" },
		"not asked for":       func(in *input, _ *kvmbackup.Decision) { in.Policy.Compare = false },
		"compared unasked":    func(_ *input, d *kvmbackup.Decision) { d.Volumes[0].Compare = true },
	} {
		in, d := in, good
		d.Volumes = append([]kvmbackup.VolumeDecision(nil), good.Volumes...)
		change(&in, &d)
		if err := d.Check(in); !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whether a stopped VM's backup may go by bitmap is the decider's to say, whatever the library's own would.
func TestCheckLeavesStoppedToTheDecider(t *testing.T) {
	in := parentInput()
	in.State, in.Policy.OfflineIncremental = kvmbackup.DomainStopped, true
	d := decide(t, in)
	lab.Equal(t, "kind", d.Kind, kvmbackup.KindIncremental)
	in.Policy.OfflineIncremental = false
	lab.OK(t, d.Check(in))
}
