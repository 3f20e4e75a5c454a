package kvmbackup_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestKnownDetails: what other tools of the field read keeps its keys and values.
func TestKnownDetails(t *testing.T) {
	known := func(b kvmbackup.Backup) map[string]string {
		m := b.Details()
		maps.DeleteFunc(m, func(k, _ string) bool {
			return !strings.HasPrefix(k, "nas.") || strings.HasPrefix(k, "nas.volume.")
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
		"nas.chain_id": lab.ChainID("A").String(), "nas.chain_position": "2",
		"nas.parent_backup_id": lab.BackupID("A").String(), "nas.bitmap_name": cp2.String(), "nas.type": "incremental",
	})
	full := lab.Full()
	full.Status = kvmbackup.StatusDeletePending
	same(known(full), map[string]string{
		"nas.chain_id": lab.ChainID("A").String(), "nas.chain_position": "0", "nas.type": "full",
		"nas.delete_pending": "true",
	})
	lab.Equal(t, "the VM's key", "nas.active_checkpoint_id", "nas.active_checkpoint_id")
	lab.Equal(t, "volume keys", "nas.volume.", "nas.volume.")
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
		"kvmbackup.files": {"x", `[{"name":"x"}]`, `[{"name":"../x","sha256":"` + strings.Repeat("0", 64) + `"}]`,
			`[{"name":"x","size":-1,"sha256":"` + strings.Repeat("0", 64) + `"}]`},
		"kvmbackup.holds":        {"x", `[{"since":"x"}]`},
		"kvmbackup.verification": {"x", `{"at":"x"}`},
	}
	// any text is a value
	free := []string{"nas.bitmap_name", "kvmbackup.domain", "kvmbackup.repository", "kvmbackup.error"}
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
	const on, every = "nas.backup.incremental.enabled", "nas.backup.full.every"
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
		if again.DisableIncremental != got.DisableIncremental ||
			again.FullEvery != max(got.FullEvery, 1) && got.FullEvery != 0 {
			t.Errorf("%v written and read again: %v", got, again)
		}
	}
	lab.Equal(t, "the default policy, written", fmt.Sprint(kvmbackup.Policy{}.Settings()),
		"map[nas.backup.full.every:10 nas.backup.incremental.enabled:true]")
}
