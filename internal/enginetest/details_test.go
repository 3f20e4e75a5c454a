package enginetest_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// drawBackup makes a valid record with any mixture of filled and empty fields.
func drawBackup(t *rapid.T) kvmbackup.Backup {
	text := rapid.String()
	at := rapid.Custom(func(t *rapid.T) time.Time {
		return time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC()
	})
	id := func(label string) kvmbackup.BackupID { return lab.BackupID(rapid.String().Draw(t, label)) }
	b := kvmbackup.Backup{
		ID: lab.BackupID("this"), VM: kvmbackup.VMID(rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9_-]{0,20}`).Draw(t, "vm")),
		Domain: text.Draw(t, "domain"), DomainUUID: text.Draw(t, "uuid"),
		Kind: rapid.SampledFrom([]kvmbackup.Kind{kvmbackup.KindFull, kvmbackup.KindIncremental}).Draw(t, "kind"),
		Status: rapid.SampledFrom([]kvmbackup.Status{kvmbackup.StatusRunning, kvmbackup.StatusCompleted,
			kvmbackup.StatusFailed, kvmbackup.StatusDeletePending}).Draw(t, "status"),
		ChainID: kvmbackup.ChainID(id("chain")), Checkpoint: kvmbackup.CheckpointName(text.Draw(t, "checkpoint")),
		Repository: text.Draw(t, "repository"), Sequence: rapid.Int64Min(0).Draw(t, "sequence"),
		StartedAt: at.Draw(t, "started"),
		Transfer: rapid.SampledFrom([]kvmbackup.Transfer{kvmbackup.TransferAuto, kvmbackup.TransferPush,
			kvmbackup.TransferPull, kvmbackup.TransferOffline}).Draw(t, "transfer"),
		Consistency: rapid.SampledFrom([]kvmbackup.Consistency{kvmbackup.ConsistencyUnknown, kvmbackup.ConsistencyCrash,
			kvmbackup.ConsistencyFilesystem}).Draw(t, "consistency"),
		FrozenFor: time.Duration(rapid.Int64Min(0).Draw(t, "frozen")), Error: text.Draw(t, "error"),
		GuestRan: rapid.Bool().Draw(t, "ran"), Asked: kvmbackup.Asked{Secrets: rapid.Bool().Draw(t, "secrets"),
			Digests: rapid.Bool().Draw(t, "digests")}, Pinned: rapid.Bool().Draw(t, "pinned"),
	}
	b.Path = string(b.VM) + "/" + rapid.StringMatching(`[a-z0-9.]{1,20}[a-z0-9]`).Draw(t, "stamp")
	if b.Kind == kvmbackup.KindIncremental {
		b.Position, b.ParentID = rapid.IntRange(1, 1<<30).Draw(t, "position"), id("parent")
	}
	if rapid.Bool().Draw(t, "done") {
		b.CompletedAt = at.Draw(t, "completed")
	}
	for range rapid.IntRange(0, 3).Draw(t, "reasons") {
		b.Reasons = append(b.Reasons, kvmbackup.Reason{Code: kvmbackup.ReasonCode(text.Draw(t, "code")),
			Detail: text.Draw(t, "detail"), VolumeID: kvmbackup.VolumeID(text.Draw(t, "of"))})
	}
	for range rapid.IntRange(0, 2).Draw(t, "holds") {
		b.Files = append(b.Files, kvmbackup.SideFile{
			Name: fmt.Sprintf("side%d.xml", len(b.Files)), Size: 1 << 40, SHA256: strings.Repeat("0f", 32),
		})
		b.Holds = append(b.Holds, kvmbackup.Hold{
			ID: text.Draw(t, "hold"), Purpose: text.Draw(t, "purpose"), Since: at.Draw(t, "since"),
		})
	}
	if rapid.Bool().Draw(t, "verified") {
		b.Verification = &kvmbackup.Verification{At: at.Draw(t, "at"), OK: rapid.Bool().Draw(t, "ok"),
			Content: rapid.Bool().Draw(t, "content"), Problem: text.Draw(t, "problem")}
	}
	size := rapid.Int64Min(0)
	for i := range rapid.IntRange(1, 12).Draw(t, "volumes") {
		v := kvmbackup.VolumeBackup{
			VolumeID: kvmbackup.VolumeID(fmt.Sprintf("v%d-%s", i, rapid.StringMatching(`[^/\x00]{0,20}`).Draw(t, "id"))),
			Device:   rapid.StringMatching(`(vd[a-z]{1,2})?`).Draw(t, "device"), Kind: kvmbackup.KindFull,
			File: fmt.Sprintf("%d.qcow2", i), VirtualSize: size.Draw(t, "virtual"), StoredSize: size.Draw(t, "stored"),
			DirtyBytes: size.Draw(t, "dirty"), SourceFormat: text.Draw(t, "format"),
			Layers: []string{"/" + text.Draw(t, "layer")}, Tracked: rapid.Bool().Draw(t, "tracked"),
			Digest: text.Draw(t, "digest"), FileDigest: text.Draw(t, "fdigest"),
		}
		if b.Kind == kvmbackup.KindIncremental && rapid.Bool().Draw(t, "incremental") {
			v.Kind, v.ParentFile = kvmbackup.KindIncremental, "../"+text.Draw(t, "link")
		}
		b.Volumes = append(b.Volumes, v)
	}
	return b
}

func TestDetailsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawBackup(t)
		lab.OK(t, b.Validate())
		m := b.Details()
		for k, v := range m {
			if v == "" || !strings.HasPrefix(k, "nas.") && !strings.HasPrefix(k, "kvmbackup.") {
				t.Fatalf("detail %q=%q", k, v)
			}
		}
		m["somebody.elses"] = "key"
		back, err := kvmbackup.BackupFromDetails(m)
		lab.OK(t, err)
		if !reflect.DeepEqual(back, b) {
			t.Fatalf("got  %+v\nwant %+v", back, b)
		}
	})
}
