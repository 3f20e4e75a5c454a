package repository_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/repository"
)

// TestManifestFormat pins version 1 of the format: what an earlier release has written must stay readable.
func TestManifestFormat(t *testing.T) {
	golden, err := os.ReadFile("testdata/backup.json")
	want(t, err)
	m, err := repository.DecodeManifest(golden)
	want(t, err)
	got, err := m.Encode()
	want(t, err)
	if !bytes.Equal(got, golden) {
		t.Fatalf("got:\n%s\nwant:\n%s", got, golden)
	}
}

func TestManifestRoundTrip(t *testing.T) {
	for _, m := range []repository.Manifest{full(), incremental()} {
		m.StartedAt = m.StartedAt.In(time.FixedZone("", 3600)).Add(123 * time.Millisecond)
		b, err := m.Encode()
		want(t, err)
		got, err := repository.DecodeManifest(b)
		want(t, err)
		if !got.StartedAt.Equal(m.StartedAt) || got.StartedAt.Location() != time.UTC {
			t.Fatal(got.StartedAt)
		}
		again, err := got.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatal("not stable")
		}
	}
}

func TestDecodeManifestClasses(t *testing.T) {
	good, err := full().Encode()
	want(t, err)
	tests := map[string]struct {
		in   string
		want error
	}{
		"empty":           {"", repository.ErrManifest},
		"no version":      {"{}", repository.ErrManifest},
		"version 0":       {strings.Replace(string(good), `"version": 1`, `"version": 0`, 1), repository.ErrManifest},
		"not an object":   {"[]", repository.ErrManifest},
		"trailing data":   {string(good) + "{}", repository.ErrManifest},
		"cut":             {string(good[:len(good)/2]), repository.ErrManifest},
		"wrong type":      {strings.Replace(string(good), `"position": 0`, `"position": "0"`, 1), repository.ErrManifest},
		"later":           {`{"version": 2, "volumes": "all different"}`, repository.ErrManifestVersion},
		"too large":       {string(good) + strings.Repeat(" ", repository.MaxManifestBytes), repository.ErrManifest},
		"unknown field":   {strings.Replace(string(good), "{", `{"new": [1],`, 1), nil},
		"trailing spaces": {string(good) + "\n \n", nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := repository.DecodeManifest([]byte(tc.in))
			if !errors.Is(err, tc.want) {
				t.Fatal(err)
			}
			if name == "later" && (errors.Is(err, repository.ErrManifest) || !strings.Contains(err.Error(), "2")) {
				t.Fatal(err)
			}
		})
	}
}

func TestManifestValidate(t *testing.T) {
	type M = repository.Manifest
	tests := map[string]func(m *M){
		"version":                       func(m *M) { m.Version = 3 },
		"id empty":                      func(m *M) { m.ID = "" },
		"id leaves":                     func(m *M) { m.ID = "../x" },
		"vm leaves":                     func(m *M) { m.VM = ".." },
		"vm absolute":                   func(m *M) { m.VM = "/etc" },
		"vm is the marker":              func(m *M) { m.VM = "KVMBackup-Repository.json" },
		"path of another vm":            func(m *M) { m.Path = "x/2026.11.23.08.04.50" },
		"path without vm":               func(m *M) { m.Path = "2026.11.23.08.04.50" },
		"path partial":                  func(m *M) { m.Path += ".partial-x" },
		"path leaves":                   func(m *M) { m.Path = vm + "/../x" },
		"kind":                          func(m *M) { m.Kind = "" },
		"chain":                         func(m *M) { m.ChainID = "a/b" },
		"position":                      func(m *M) { m.Position = 0 },
		"position negative":             func(m *M) { m.Position = -1 },
		"no parent id":                  func(m *M) { m.ParentID = "" },
		"no parent path":                func(m *M) { m.ParentPath = "" },
		"parent of another vm":          func(m *M) { m.ParentPath = "x/2026.11.23.07.04.50" },
		"own parent":                    func(m *M) { m.ParentID = m.ID },
		"own parent path":               func(m *M) { m.ParentPath = m.Path },
		"full with parent":              func(m *M) { m.Kind = repository.KindFull },
		"incremental without any":       func(m *M) { m.Volumes = m.Volumes[1:] },
		"no volumes":                    func(m *M) { m.Volumes = nil },
		"tracked without checkpoint":    func(m *M) { m.Checkpoint = "" },
		"checkpoint with control":       func(m *M) { m.Checkpoint = "a\nb" },
		"sequence":                      func(m *M) { m.Sequence = -1 },
		"no start":                      func(m *M) { m.StartedAt = time.Time{} },
		"no end":                        func(m *M) { m.CompletedAt = time.Time{} },
		"consistency":                   func(m *M) { m.Consistency = "good" },
		"frozen":                        func(m *M) { m.FrozenMS = -1 },
		"volume id":                     func(m *M) { m.Volumes[0].VolumeID = "a/b" },
		"volume id twice":               func(m *M) { m.Volumes[1].VolumeID = m.Volumes[0].VolumeID },
		"volume kind":                   func(m *M) { m.Volumes[0].Kind = "" },
		"file twice":                    func(m *M) { m.Volumes[1].File = "ROOT.V1.qcow2" },
		"file leaves":                   func(m *M) { m.Volumes[0].File = "../x" },
		"file absolute":                 func(m *M) { m.Volumes[0].File = "/etc/passwd" },
		"file with NUL":                 func(m *M) { m.Volumes[0].File = "a\x00b" },
		"file is the manifest":          func(m *M) { m.Volumes[0].File = "backup.json" },
		"file hidden":                   func(m *M) { m.Volumes[0].File = ".x" },
		"file empty":                    func(m *M) { m.Volumes[0].File = "" },
		"parent file missing":           func(m *M) { m.Volumes[0].ParentFile = "" },
		"parent file absolute":          func(m *M) { m.Volumes[0].ParentFile = "/etc/passwd" },
		"parent file here":              func(m *M) { m.Volumes[0].ParentFile = "root.v1.qcow2" },
		"parent file deep":              func(m *M) { m.Volumes[0].ParentFile = "../2026.11.23.07.04.50/../../x" },
		"parent file elsewhere":         func(m *M) { m.Volumes[0].ParentFile = "../2026.11.23.07.04.51/root.v1.qcow2" },
		"parent file is a json spec":    func(m *M) { m.Volumes[0].ParentFile = "json:{}" },
		"parent file of a full":         func(m *M) { m.Volumes[1].ParentFile = m.Volumes[0].ParentFile },
		"sizes":                         func(m *M) { m.Volumes[0].StoredSize = -1 },
		"digest":                        func(m *M) { m.Volumes[0].Digest = &repository.Digest{Algorithm: "sha256", Value: "XY"} },
		"side file leaves":              func(m *M) { m.Files = []repository.FileEntry{{Name: "../x", SHA256: strings.Repeat("0", 64)}} },
		"side file is a volume":         func(m *M) { m.Files = []repository.FileEntry{{Name: "root.v1.qcow2", SHA256: strings.Repeat("0", 64)}} },
		"side file without a checksum":  func(m *M) { m.Files = []repository.FileEntry{{Name: "x"}} },
		"side file with a negative one": func(m *M) { m.Files = []repository.FileEntry{{Name: "x", Size: -1, SHA256: strings.Repeat("0", 64)}} },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			m := incremental()
			want(t, m.Validate())
			spoil(&m)
			want(t, m.Validate(), repository.ErrManifest)
			_, err := m.Encode()
			want(t, err, repository.ErrManifest)
			b, _ := json.Marshal(m)
			_, err = repository.DecodeManifest(b)
			if err == nil {
				t.Fatal("decoded")
			}
		})
	}
}

func FuzzDecodeManifest(f *testing.F) {
	for _, m := range []repository.Manifest{full(), incremental()} {
		b, _ := m.Encode()
		f.Add(b)
	}
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := repository.DecodeManifest(b)
		if err != nil {
			if !errors.Is(err, repository.ErrManifest) && !errors.Is(err, repository.ErrManifestVersion) {
				t.Fatal(err)
			}
			return
		}
		for _, file := range m.Target().Files {
			if strings.ContainsAny(file.Name, "/\\\x00") || strings.HasPrefix(file.Name, ".") {
				t.Fatalf("file %q", file.Name)
			}
		}
		for _, v := range m.Volumes {
			if v.ParentFile != "" && strings.Count(v.ParentFile, "..") != strings.Count(v.ParentFile[3:], "..")+1 {
				t.Fatalf("parent file %q", v.ParentFile)
			}
		}
		again, err := m.Encode()
		if errors.Is(err, repository.ErrManifest) && len(b) > repository.MaxManifestBytes/8 {
			return // indented it may grow too large
		}
		want(t, err)
		if _, err := repository.DecodeManifest(again); err != nil {
			t.Fatal(err)
		}
	})
}
