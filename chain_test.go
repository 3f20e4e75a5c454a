package kvmbackup_test

import (
	"encoding"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata")

// golden compares with a file in testdata, or rewrites it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		lab.OK(t, os.WriteFile(file, []byte(got), 0o600))
		return
	}
	want, err := os.ReadFile(file)
	lab.OK(t, err)
	if got != string(want) {
		t.Errorf("%s differs; -update rewrites it\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}

// sample is a record in which every field has a value.
func sample() kvmbackup.Backup {
	return kvmbackup.Backup{
		ID: lab.BackupID("B"), VM: lab.VM, Domain: "i-2-17-VM", Kind: kvmbackup.KindIncremental,
		Status: kvmbackup.StatusCompleted, ChainID: lab.ChainID("A"), Position: 2, ParentID: lab.BackupID("A"),
		Checkpoint: cp2, Repository: "11111111-0000-4000-8000-000000000001", Path: "i-2-17-VM/2026.11.23.08.04.50",
		Sequence: 42, StartedAt: lab.Epoch.Add(time.Hour), CompletedAt: lab.Epoch.Add(time.Hour + 1500*time.Millisecond),
		Consistency: kvmbackup.ConsistencyFilesystem, FrozenFor: 250 * time.Millisecond,
		Reasons: []kvmbackup.Reason{
			{Code: kvmbackup.ReasonIncremental, Detail: "position 2"}, {Code: kvmbackup.ReasonVolumeNew, VolumeID: "v2"},
		},
		Error: "none",
		Volumes: []kvmbackup.VolumeBackup{
			{VolumeID: "v1", Device: "vda", Kind: kvmbackup.KindIncremental, File: "root.v1.qcow2",
				ParentFile: "../2026.11.23.07.04.50/root.v1.qcow2", VirtualSize: 1 << 30, StoredSize: 196608, DirtyBytes: 65536,
				SourceFormat: "qcow2", Layers: []string{"/images/v1.qcow2"}, Tracked: true, Digest: "sha256:aa",
				FileDigest: "sha256:bb"},
			{VolumeID: "v2", Device: "vdb", Kind: kvmbackup.KindFull, File: "datadisk.v2.qcow2", VirtualSize: 1 << 20,
				StoredSize: 4096, DirtyBytes: 1 << 20, SourceFormat: "raw"},
		},
		Files:  []kvmbackup.SideFile{{Name: "domain.xml", Size: 4711, SHA256: strings.Repeat("0f", 32)}},
		Pinned: true, Holds: []kvmbackup.Hold{{ID: "h1", Purpose: "instant restore", Since: lab.Epoch}},
		Verification: &kvmbackup.Verification{At: lab.Epoch, Content: true, OK: false, Problem: "digest differs"},
	}
}

// plain is the smallest valid record.
// TestBackupJSON pins the names that hosts see. A change of the golden file is a change of the API.
func TestBackupJSON(t *testing.T) {
	var out strings.Builder
	for _, b := range []kvmbackup.Backup{sample(), lab.Full()} {
		data, err := json.MarshalIndent(b, "", "  ")
		lab.OK(t, err)
		out.Write(append(data, '\n'))
		var back kvmbackup.Backup
		lab.OK(t, json.Unmarshal(data, &back))
		again, err := json.MarshalIndent(back, "", "  ")
		lab.OK(t, err)
		lab.Equal(t, "read and written again", string(again), string(data))
	}
	golden(t, "backup.json", out.String())
}

func TestValidate(t *testing.T) {
	for _, b := range []kvmbackup.Backup{sample(), lab.Full()} {
		if err := b.Validate(); err != nil {
			t.Fatalf("a sound record is refused: %v", err)
		}
	}
	failed := sample()
	failed.Status, failed.ParentID = kvmbackup.StatusFailed, ""
	if err := failed.Validate(); err != nil {
		t.Errorf("a failed incremental needs no parent: %v", err)
	}
	for name, breaks := range map[string]func(b *kvmbackup.Backup){
		"no ID":                        func(b *kvmbackup.Backup) { b.ID = "" },
		"ID no UUID":                   func(b *kvmbackup.Backup) { b.ID = "backup-7" },
		"no VM":                        func(b *kvmbackup.Backup) { b.VM = "" },
		"kind not set":                 func(b *kvmbackup.Backup) { b.Kind = kvmbackup.KindUnknown },
		"kind out of range":            func(b *kvmbackup.Backup) { b.Kind = 9 },
		"status not set":               func(b *kvmbackup.Backup) { b.Status = kvmbackup.StatusUnknown },
		"status out of range":          func(b *kvmbackup.Backup) { b.Status = 9 },
		"no chain":                     func(b *kvmbackup.Backup) { b.ChainID = "" },
		"chain no UUID":                func(b *kvmbackup.Backup) { b.ChainID = "chain" },
		"position negative":            func(b *kvmbackup.Backup) { b.Position = -1 },
		"incremental at position 0":    func(b *kvmbackup.Backup) { b.Position = 0 },
		"incremental without a parent": func(b *kvmbackup.Backup) { b.ParentID = "" },
		"its own parent":               func(b *kvmbackup.Backup) { b.ParentID = b.ID },
		"full with a parent":           func(b *kvmbackup.Backup) { b.Kind, b.Position = kvmbackup.KindFull, 0 },
		"full at position 2":           func(b *kvmbackup.Backup) { b.Kind, b.ParentID = kvmbackup.KindFull, "" },
		"no path":                      func(b *kvmbackup.Backup) { b.Path = "" },
		"path of the VM alone":         func(b *kvmbackup.Backup) { b.Path = "i-2-17-VM/" },
		"path of another VM":           func(b *kvmbackup.Backup) { b.Path = "i-2-18-VM/2026.11.23.08.04.50" },
		"path out of the VM":           func(b *kvmbackup.Backup) { b.Path = "i-2-17-VM/.." },
		"path is the VM's folder":      func(b *kvmbackup.Backup) { b.Path = "i-2-17-VM/." },
		"path too deep":                func(b *kvmbackup.Backup) { b.Path = "i-2-17-VM/a/b" },
		"path absolute":                func(b *kvmbackup.Backup) { b.Path = "/i-2-17-VM/2026.11.23.08.04.50" },
		"VM with a slash":              func(b *kvmbackup.Backup) { b.VM, b.Path = "../x", "../x/2026.11.23.08.04.50" },
		"no start":                     func(b *kvmbackup.Backup) { b.StartedAt = time.Time{} },
		"no volumes":                   func(b *kvmbackup.Backup) { b.Volumes = nil },
		"volume without ID":            func(b *kvmbackup.Backup) { b.Volumes[0].VolumeID = "" },
		"volume ID with a slash":       func(b *kvmbackup.Backup) { b.Volumes[0].VolumeID = "../x" },
		"device elsewhere":             func(b *kvmbackup.Backup) { b.Volumes[0].Device = "../x/cron" },
		"volume twice":                 func(b *kvmbackup.Backup) { b.Volumes[1].VolumeID = "v1" },
		"volume without file":          func(b *kvmbackup.Backup) { b.Volumes[0].File = "" },
		"file twice":                   func(b *kvmbackup.Backup) { b.Volumes[1].File = "root.v1.qcow2" },
		"file elsewhere":               func(b *kvmbackup.Backup) { b.Volumes[0].File = "../root.v1.qcow2" },
		"file with a zero byte":        func(b *kvmbackup.Backup) { b.Volumes[0].File = "root\x00" },
		"file is the folder above":     func(b *kvmbackup.Backup) { b.Volumes[0].File = ".." },
		"file is the folder":           func(b *kvmbackup.Backup) { b.Volumes[0].File = "." },
		"virtual size negative":        func(b *kvmbackup.Backup) { b.Volumes[0].VirtualSize = -1 },
		"stored size negative":         func(b *kvmbackup.Backup) { b.Volumes[0].StoredSize = -1 },
		"dirty bytes negative":         func(b *kvmbackup.Backup) { b.Volumes[0].DirtyBytes = -1 },
		"volume's kind not set":        func(b *kvmbackup.Backup) { b.Volumes[1].Kind = kvmbackup.KindUnknown },
		"incremental without a link":   func(b *kvmbackup.Backup) { b.Volumes[0].ParentFile = "" },
		"full volume with a link":      func(b *kvmbackup.Backup) { b.Volumes[1].ParentFile = "../x/root.v1.qcow2" },
		"incremental volume in a full": func(b *kvmbackup.Backup) {
			b.Kind, b.Position, b.ParentID = kvmbackup.KindFull, 0, ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := sample()
			breaks(&b)
			lab.Fails(t, b.Validate(), kvmbackup.ErrInvalid)
		})
	}
	b := lab.Full()
	b.VM, b.Kind, b.Volumes[0].File = "", kvmbackup.KindUnknown, ""
	if err := b.Validate(); err == nil || strings.Count(err.Error(), "\n") < 3 {
		t.Errorf("not all that is wrong is named: %v", err)
	}
}

// word is what the enums have in common.
type word interface {
	encoding.TextMarshaler
	String() string
}

func TestEnums(t *testing.T) {
	kind := func(s string) (word, error) { var k kvmbackup.Kind; err := k.UnmarshalText([]byte(s)); return k, err }
	status := func(s string) (word, error) { var v kvmbackup.Status; err := v.UnmarshalText([]byte(s)); return v, err }
	consistency := func(s string) (word, error) {
		var c kvmbackup.Consistency
		err := c.UnmarshalText([]byte(s))
		return c, err
	}
	for _, r := range []struct {
		value word
		text  string
		parse func(string) (word, error)
	}{
		{kvmbackup.KindUnknown, "unknown", kind}, {kvmbackup.KindFull, "full", kind},
		{kvmbackup.KindIncremental, "incremental", kind},
		{kvmbackup.StatusUnknown, "unknown", status}, {kvmbackup.StatusRunning, "running", status},
		{kvmbackup.StatusCompleted, "completed", status}, {kvmbackup.StatusFailed, "failed", status},
		{kvmbackup.StatusDeletePending, "delete-pending", status},
		{kvmbackup.ConsistencyUnknown, "unknown", consistency}, {kvmbackup.ConsistencyCrash, "crash", consistency},
		{kvmbackup.ConsistencyFilesystem, "filesystem", consistency},
	} {
		text, err := r.value.MarshalText()
		back, perr := r.parse(r.text)
		if err != nil || perr != nil || string(text) != r.text || r.value.String() != r.text || back != r.value {
			t.Errorf("%T %q: text %q (%v), read back %v (%v)", r.value, r.text, text, err, back, perr)
		}
		for _, bad := range []string{"", "Full", "full ", "2"} {
			if _, err := r.parse(bad); !errors.Is(err, kvmbackup.ErrInvalid) {
				t.Errorf("%T of %q: %v", r.value, bad, err)
			}
		}
	}
	for _, bad := range []word{kvmbackup.Kind(9), kvmbackup.Status(-1), kvmbackup.Consistency(9)} {
		if _, err := bad.MarshalText(); !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Errorf("%T out of range: %v", bad, err)
		}
	}
	var into struct {
		K kvmbackup.Kind
		S kvmbackup.Status
		C kvmbackup.Consistency
	}
	for _, bad := range []string{`{"K":"x"}`, `{"S":"x"}`, `{"C":"x"}`} {
		if err := json.Unmarshal([]byte(bad), &into); !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestParseIDs(t *testing.T) {
	const usual = "bbbbbbbb-0000-4000-8000-00000000000a"
	for _, s := range []string{usual, strings.ToUpper(usual), "{" + usual + "}", "urn:uuid:" + usual} {
		id, err := kvmbackup.ParseBackupID(s)
		lab.OK(t, err)
		lab.Equal(t, "backup ID", id.String(), usual)
	}
	for _, s := range []string{"", "x", usual + "0", "../" + usual} {
		_, err := kvmbackup.ParseBackupID(s)
		lab.Fails(t, err, kvmbackup.ErrInvalid)
	}
	backup, chain := kvmbackup.NewBackupID(), kvmbackup.NewChainID()
	if backup == kvmbackup.NewBackupID() || chain == kvmbackup.NewChainID() {
		t.Error("an ID came twice")
	}
}
