package kvmbackup_test

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
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
		ID: lab.BackupID("this"), VM: kvmbackup.VMID(rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9_-]{0,20}`).Draw(t, "vm")), Domain: text.Draw(t, "domain"), DomainUUID: text.Draw(t, "uuid"),
		Kind: rapid.SampledFrom([]kvmbackup.Kind{kvmbackup.KindFull, kvmbackup.KindIncremental}).Draw(t, "kind"),
		Status: rapid.SampledFrom([]kvmbackup.Status{kvmbackup.StatusRunning, kvmbackup.StatusCompleted, kvmbackup.StatusFailed,
			kvmbackup.StatusDeletePending}).Draw(t, "status"),
		ChainID: kvmbackup.ChainID(id("chain")), Checkpoint: kvmbackup.CheckpointName(text.Draw(t, "checkpoint")),
		Repository: text.Draw(t, "repository"), Sequence: rapid.Int64Min(0).Draw(t, "sequence"), StartedAt: at.Draw(t, "started"),
		Consistency: rapid.SampledFrom([]kvmbackup.Consistency{kvmbackup.ConsistencyUnknown, kvmbackup.ConsistencyCrash,
			kvmbackup.ConsistencyFilesystem}).Draw(t, "consistency"),
		FrozenFor: time.Duration(rapid.Int64Min(0).Draw(t, "frozen")), Error: text.Draw(t, "error"), GuestRan: rapid.Bool().Draw(t, "ran"),
		Asked: kvmbackup.Asked{Secrets: rapid.Bool().Draw(t, "secrets"), Digests: rapid.Bool().Draw(t, "digests")}, Pinned: rapid.Bool().Draw(t, "pinned"),
	}
	b.Path = string(b.VM) + "/" + rapid.StringMatching(`[a-z0-9.]{1,20}[a-z0-9]`).Draw(t, "stamp")
	if b.Kind == kvmbackup.KindIncremental {
		b.Position, b.ParentID = rapid.IntRange(1, 1<<30).Draw(t, "position"), id("parent")
	}
	if rapid.Bool().Draw(t, "done") {
		b.CompletedAt = at.Draw(t, "completed")
	}
	for range rapid.IntRange(0, 3).Draw(t, "reasons") {
		b.Reasons = append(b.Reasons, kvmbackup.Reason{Code: kvmbackup.ReasonCode(text.Draw(t, "code")), Detail: text.Draw(t, "detail"),
			VolumeID: kvmbackup.VolumeID(text.Draw(t, "of"))})
	}
	for range rapid.IntRange(0, 2).Draw(t, "holds") {
		b.Holds = append(b.Holds, kvmbackup.Hold{ID: text.Draw(t, "hold"), Purpose: text.Draw(t, "purpose"), Since: at.Draw(t, "since")})
	}
	if rapid.Bool().Draw(t, "verified") {
		b.Verification = &kvmbackup.Verification{At: at.Draw(t, "at"), OK: rapid.Bool().Draw(t, "ok"), Content: rapid.Bool().Draw(t, "content"),
			Problem: text.Draw(t, "problem")}
	}
	size := rapid.Int64Min(0)
	for i := range rapid.IntRange(1, 12).Draw(t, "volumes") {
		v := kvmbackup.VolumeBackup{
			VolumeID: kvmbackup.VolumeID(fmt.Sprintf("v%d-%s", i, rapid.StringMatching(`[^/\x00]{0,20}`).Draw(t, "id"))), Device: rapid.StringMatching(`(vd[a-z]{1,2})?`).Draw(t, "device"), Kind: kvmbackup.KindFull,
			File: fmt.Sprintf("%d.qcow2", i), VirtualSize: size.Draw(t, "virtual"), StoredSize: size.Draw(t, "stored"), DirtyBytes: size.Draw(t, "dirty"),
			SourceFormat: text.Draw(t, "format"), Layers: []string{"/" + text.Draw(t, "layer")}, Tracked: rapid.Bool().Draw(t, "tracked"), Digest: text.Draw(t, "digest"), FileDigest: text.Draw(t, "fdigest"),
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

// TestKnownDetails: what other tools of the field read keeps its keys and values.
func TestKnownDetails(t *testing.T) {
	known := func(b kvmbackup.Backup) map[string]string {
		m := b.Details()
		maps.DeleteFunc(m, func(k, _ string) bool {
			return !strings.HasPrefix(k, "nas.") || strings.HasPrefix(k, kvmbackup.DetailVolumePrefix)
		})
		return m
	}
	same := func(got, want map[string]string) {
		t.Helper()
		if !maps.Equal(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
	}
	same(known(sample()), map[string]string{
		"nas.chain_id": lab.ChainID("A").String(), "nas.chain_position": "2", "nas.parent_backup_id": lab.BackupID("A").String(),
		"nas.bitmap_name": cp2.String(), "nas.type": "incremental",
	})
	full := lab.Full()
	full.Status = kvmbackup.StatusDeletePending
	same(known(full), map[string]string{
		"nas.chain_id": lab.ChainID("A").String(), "nas.chain_position": "0", "nas.type": "full", "nas.delete_pending": "true",
	})
	lab.Equal(t, "the VM's key", kvmbackup.VMDetailActiveCheckpoint, "nas.active_checkpoint_id")
	lab.Equal(t, "volume keys", kvmbackup.DetailVolumePrefix, "nas.volume.")
}

func TestDetailsWithoutChain(t *testing.T) {
	for name, m := range map[string]map[string]string{
		"nothing":            nil,
		"the full-only rows": {"nas.type": "FULL", "volumes": "[]", "external.id": "i-2-17-VM/2026.11.23.07.04.50"},
		"another record's":   {"kvmbackup.id": lab.BackupID("A").String()},
		"chain without ID":   {"nas.chain_id": lab.ChainID("A").String(), "nas.type": "full"},
	} {
		if _, err := kvmbackup.BackupFromDetails(m); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			lab.Fails(t, err, kvmbackup.ErrNoChainData)
		}
	}
}

// TestDetailsCorrupted gives each key in turn a value that it can't have.
func TestDetailsCorrupted(t *testing.T) {
	bad := map[string][]string{
		"nas.chain_id":           {"x", "null"},
		"nas.chain_position":     {"", "x", "-1", "0", "2.0", "99999999999999999999"},
		"nas.parent_backup_id":   {"", "x", lab.BackupID("B").String()},
		"nas.type":               {"", "x", "FULL", "unknown", "full"},
		"nas.delete_pending":     {"x", "yes"},
		"nas.volume.000":         {"x", "{}", "null", "[]", `{"volume_id":7}`, `{"volume_id":"v2","file":"x","kind":"full"}`},
		"nas.volume.001":         {"{", `{"volume_id":"v2","file":"../x","kind":"full"}`},
		"kvmbackup.id":           {"x"},
		"kvmbackup.vm":           {"", "i-2-18-VM"},
		"kvmbackup.status":       {"", "x", "unknown"},
		"kvmbackup.path":         {"", "x", "i-2-17-VM/..", "/etc/passwd"},
		"kvmbackup.sequence":     {"", "x", "1e3"},
		"kvmbackup.started_at":   {"", "x", "2026-11-23", "1795417490"},
		"kvmbackup.completed_at": {"x", "2026-13-23T00:00:00Z"},
		"kvmbackup.consistency":  {"", "x"},
		"kvmbackup.frozen_for":   {"x", "7"},
		"kvmbackup.reasons":      {"x", "{}", `[{"code":7}]`},
		"kvmbackup.pinned":       {"x", "yes"},
		"kvmbackup.holds":        {"x", `[{"since":"x"}]`},
		"kvmbackup.verification": {"x", `{"at":"x"}`},
	}
	free := []string{"nas.bitmap_name", "kvmbackup.domain", "kvmbackup.repository", "kvmbackup.error"} // any text is a value
	for key := range sample().Details() {
		if bad[key] == nil && !slices.Contains(free, key) {
			t.Errorf("key %s has no row", key)
		}
	}
	for key, values := range bad {
		for _, v := range values {
			m := sample().Details()
			if m[key] = v; v == "" {
				delete(m, key)
			}
			_, err := kvmbackup.BackupFromDetails(m)
			if !errors.Is(err, kvmbackup.ErrInvalid) {
				t.Errorf("%s=%q: error %v", key, v, err)
				continue
			}
			names := strings.TrimRight(key, "01") // a rule over all volumes names their prefix
			if key == "kvmbackup.vm" && v != "" {
				names = "kvmbackup.path" // one of the two is wrong
			}
			if !strings.Contains(err.Error(), names) {
				t.Errorf("%s=%q: the error doesn't name the key: %v", key, v, err)
			}
		}
	}
}

func TestPolicyFromSettings(t *testing.T) {
	const on, every = kvmbackup.SettingIncrementalEnabled, kvmbackup.SettingFullEvery
	lab.Equal(t, "names", on+" "+every, "nas.backup.incremental.enabled nas.backup.full.every")
	for _, r := range []struct {
		settings map[string]string
		want     kvmbackup.Policy
		wrong    string // the setting that the error names
	}{
		{nil, kvmbackup.Policy{}, ""},
		{map[string]string{"other": "x"}, kvmbackup.Policy{}, ""},
		{map[string]string{on: "true", every: "10"}, kvmbackup.Policy{FullEvery: 10}, ""},
		{map[string]string{on: "false"}, kvmbackup.Policy{DisableIncremental: true}, ""},
		{map[string]string{on: " FALSE "}, kvmbackup.Policy{DisableIncremental: true}, ""},
		{map[string]string{on: "TRUE", every: " 3 "}, kvmbackup.Policy{FullEvery: 3}, ""},
		{map[string]string{every: "1"}, kvmbackup.Policy{FullEvery: 1}, ""},
		{map[string]string{every: "0"}, kvmbackup.Policy{FullEvery: 1}, ""},
		{map[string]string{every: "-7"}, kvmbackup.Policy{FullEvery: 1}, ""},
		{map[string]string{on: "on"}, kvmbackup.Policy{}, on},
		{map[string]string{on: ""}, kvmbackup.Policy{}, on},
		{map[string]string{every: "ten"}, kvmbackup.Policy{}, every},
		{map[string]string{every: ""}, kvmbackup.Policy{}, every},
		{map[string]string{every: "1.5"}, kvmbackup.Policy{}, every},
	} {
		got, err := kvmbackup.PolicyFromSettings(r.settings)
		if r.wrong != "" {
			lab.Fails(t, err, kvmbackup.ErrInvalid)
			if !strings.Contains(err.Error(), r.wrong) {
				t.Errorf("%v: the error doesn't name the setting: %v", r.settings, err)
			}
			continue
		}
		lab.OK(t, err)
		lab.Equal(t, fmt.Sprint(r.settings), got, r.want)
		again, err := kvmbackup.PolicyFromSettings(got.Settings())
		lab.OK(t, err)
		if again.DisableIncremental != got.DisableIncremental || again.FullEvery != max(got.FullEvery, 1) && got.FullEvery != 0 {
			t.Errorf("%v written and read again: %v", got, again)
		}
	}
	lab.Equal(t, "the default policy, written", fmt.Sprint(kvmbackup.Policy{}.Settings()), "map[nas.backup.full.every:10 nas.backup.incremental.enabled:true]")
}
