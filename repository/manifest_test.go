package repository_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
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

// seal gives a manifest that was edited its checksum again. A text without a place for one stays as it is.
func seal(text string) string {
	_, rest, _ := strings.Cut(text, `"checksum": "`)
	at := len(text) - len(rest)
	if len(rest) < 64 {
		return text
	}
	sum := sha256.Sum256([]byte(text[:at] + strings.Repeat("0", 64) + rest[64:]))
	return text[:at] + hex.EncodeToString(sum[:]) + rest[64:]
}

// encoded is a document as Encode would write it if it were valid.
func encoded(d repository.Document) string {
	b, _ := json.Marshal(d)
	return seal(strings.TrimSuffix(string(b), "}") + `,"checksum": "` + strings.Repeat("0", 64) + `"}`)
}

// TestManifestFlips: every bit of the file counts, blanks and the checksum itself included.
func TestManifestFlips(t *testing.T) {
	good, err := incremental().Encode()
	want(t, err)
	first, stride := lab.Every(t, 8)
	for at := range good {
		for bit := (first + at) % stride; bit < 8; bit += stride {
			b := bytes.Clone(good)
			b[at] ^= 1 << bit
			if _, err := repository.DecodeManifest(b); !errors.Is(err, repository.ErrManifest) {
				t.Fatalf("bit %d of byte %d: %v", bit, at, err)
			}
		}
	}
}

// TestManifestChecksumPlace: the checksum is mandatory and the last of the document's own fields.
func TestManifestChecksumPlace(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	good := strings.TrimSuffix(encoded(repository.DocumentOf(full())), "}")
	bare := good[:strings.LastIndex(good, `,"checksum"`)]
	tests := map[string]struct {
		in   string
		want error
	}{
		"last":     {good + "}", nil},
		"missing":  {bare + "}", repository.ErrManifest},
		"empty":    {bare + `,"checksum": ""}`, repository.ErrManifest},
		"null":     {bare + `,"checksum": null}`, repository.ErrManifest},
		"zeros":    {bare + `,"checksum": "` + zeros + `"}`, repository.ErrManifest},
		"short":    {good[:len(good)-2] + `"}`, repository.ErrManifest},
		"not last": {seal(good + `,"x": 1}`), repository.ErrManifest},
		"nested":   {seal(bare + `,"x": {"checksum": "` + zeros + `"}}`), repository.ErrManifest},
		"upper":    {bare + strings.ToUpper(good[len(bare):]) + "}", repository.ErrManifest},
		"like it":  {seal(bare + `,"x": 1, "\"checksum": "` + zeros + `"}`), repository.ErrManifest},
	}
	for name, tc := range tests {
		_, err := repository.DecodeManifest([]byte(tc.in))
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestManifestChecksumByHand runs the commands of docs/format.md: one prints the checksum, one gives an edited file its
// own.
func TestManifestChecksumByHand(t *testing.T) {
	doc, err := os.ReadFile("../docs/format.md")
	want(t, err)
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(doc), -1) {
		if strings.Contains(m[1], `"checksum": "`) {
			blocks = append(blocks, m[1])
		}
	}
	if len(blocks) != 2 {
		t.Fatalf("%d blocks of commands about the checksum", len(blocks))
	}
	dir := t.TempDir()
	file := filepath.Join(dir, repository.ManifestName)
	shell := func(script string) string {
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	good, err := incremental().Encode()
	want(t, err)
	put(t, file, string(good))
	sum := strings.Fields(shell(blocks[0]))[0]
	if !strings.HasSuffix(string(good), `"checksum": "`+sum+"\"\n}\n") {
		t.Fatalf("%s is not the checksum of\n%s", sum, good)
	}
	put(t, file, strings.Replace(string(good), `"pinned": false`, `"pinned": true`, 1))
	shell(blocks[1])
	edited, err := os.ReadFile(file)
	want(t, err)
	m, err := repository.DecodeManifest(edited)
	if err != nil || !m.Pinned {
		t.Fatalf("%v\n%s", err, edited)
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
	b, err := full().Encode()
	want(t, err)
	good := string(b)
	edited := func(from, to string) string { return seal(strings.Replace(good, from, to, 1)) }
	later := seal(`{"version": 3, "volumes": "all different", "checksum": "` + strings.Repeat("0", 64) + `"}`)
	tests := map[string]struct {
		in   string
		want error
	}{
		"empty":           {"", repository.ErrManifest},
		"no version":      {"{}", repository.ErrManifest},
		"version 0":       {edited(`"version": 1`, `"version": 0`), repository.ErrManifest},
		"not an object":   {"[]", repository.ErrManifest},
		"trailing data":   {good + "{}", repository.ErrManifest},
		"data before":     {seal("{}" + good), repository.ErrManifest},
		"no JSON":         {edited("{", "["), repository.ErrManifest},
		"cut":             {good[:len(good)/2], repository.ErrManifest},
		"wrong type":      {edited(`"position": 0`, `"position": "0"`), repository.ErrManifest},
		"later":           {later, repository.ErrManifestVersion},
		"later, damaged":  {strings.Replace(later, "all", "ALL", 1), repository.ErrManifest},
		"too large":       {good + strings.Repeat(" ", repository.MaxManifestBytes), repository.ErrManifest},
		"unknown field":   {edited("{", `{"new": [1],`), nil},
		"trailing spaces": {seal(good + "\n \n"), nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := repository.DecodeManifest([]byte(tc.in))
			if !errors.Is(err, tc.want) {
				t.Fatal(err)
			}
			if name == "later" && (errors.Is(err, repository.ErrManifest) || !strings.Contains(err.Error(), "3")) {
				t.Fatal(err)
			}
		})
	}
}

func TestManifestValidate(t *testing.T) {
	type M = repository.Document
	// These a record can't even say: the version, what follows from other fields, and numbers that are too large for it.
	onlyWritten := []string{"version", "no parent path", "parent of another vm", "own parent path",
		"parent file elsewhere", "tracked without checkpoint"}
	tests := map[string]func(m *M){
		"version":                    func(m *M) { m.Version = 0 },
		"id empty":                   func(m *M) { m.ID = "" },
		"id leaves":                  func(m *M) { m.ID = "../x" },
		"vm leaves":                  func(m *M) { m.VM = ".." },
		"vm absolute":                func(m *M) { m.VM = "/etc" },
		"vm is the marker":           func(m *M) { m.VM = "KVMBackup-Repository.json" },
		"path of another vm":         func(m *M) { m.Path = "x/2026.11.23.08.04.50" },
		"path without vm":            func(m *M) { m.Path = "2026.11.23.08.04.50" },
		"path partial":               func(m *M) { m.Path += ".partial-x" },
		"path leaves":                func(m *M) { m.Path = vm + "/../x" },
		"kind":                       func(m *M) { m.Kind = "" },
		"chain":                      func(m *M) { m.ChainID = "a/b" },
		"position":                   func(m *M) { m.Position = 0 },
		"position negative":          func(m *M) { m.Position = -1 },
		"no parent id":               func(m *M) { m.ParentID = "" },
		"no parent path":             func(m *M) { m.ParentPath = "" },
		"parent of another vm":       func(m *M) { m.ParentPath = "x/2026.11.23.07.04.50" },
		"own parent":                 func(m *M) { m.ParentID = m.ID },
		"own parent path":            func(m *M) { m.ParentPath = m.Path },
		"full with parent":           func(m *M) { m.Kind = "full" },
		"incremental without any":    func(m *M) { m.Volumes = m.Volumes[1:] },
		"no volumes":                 func(m *M) { m.Volumes = nil },
		"tracked without checkpoint": func(m *M) { m.Checkpoint = "" },
		"checkpoint with control":    func(m *M) { m.Checkpoint = "a\nb" },
		"sequence":                   func(m *M) { m.Sequence = -1 },
		"no start":                   func(m *M) { m.StartedAt = time.Time{} },
		"no end":                     func(m *M) { m.CompletedAt = time.Time{} },
		"consistency":                func(m *M) { m.Consistency = "good" },
		"frozen":                     func(m *M) { m.FrozenMS = -1 },
		"volume id":                  func(m *M) { m.Volumes[0].VolumeID = "a/b" },
		"volume id twice":            func(m *M) { m.Volumes[1].VolumeID = m.Volumes[0].VolumeID },
		"volume kind":                func(m *M) { m.Volumes[0].Kind = "" },
		"file twice":                 func(m *M) { m.Volumes[1].File = "ROOT.V1.qcow2" },
		"file leaves":                func(m *M) { m.Volumes[0].File = "../x" },
		"file absolute":              func(m *M) { m.Volumes[0].File = "/etc/passwd" },
		"file with NUL":              func(m *M) { m.Volumes[0].File = "a\x00b" },
		"file is the manifest":       func(m *M) { m.Volumes[0].File = "backup.json" },
		"file hidden":                func(m *M) { m.Volumes[0].File = ".x" },
		"file empty":                 func(m *M) { m.Volumes[0].File = "" },
		"parent file missing":        func(m *M) { m.Volumes[0].ParentFile = "" },
		"parent file absolute":       func(m *M) { m.Volumes[0].ParentFile = "/etc/passwd" },
		"parent file here":           func(m *M) { m.Volumes[0].ParentFile = "root.v1.qcow2" },
		"parent file deep":           func(m *M) { m.Volumes[0].ParentFile = "../2026.11.23.07.04.50/../../x" },
		"parent file elsewhere":      func(m *M) { m.Volumes[0].ParentFile = "../2026.11.23.07.04.51/root.v1.qcow2" },
		"parent file is a json spec": func(m *M) { m.Volumes[0].ParentFile = "json:{}" },
		"parent file of a full":      func(m *M) { m.Volumes[1].ParentFile = m.Volumes[0].ParentFile },
		"sizes":                      func(m *M) { m.Volumes[0].StoredSize = -1 },
		"digest": func(m *M) {
			m.Volumes[0].Digest = &repository.DigestJSON{Algorithm: "sha256", Value: "XY"}
		},
		"side file leaves": func(m *M) {
			m.Files = []repository.FileJSON{{Name: "../x", SHA256: strings.Repeat("0", 64)}}
		},
		"side file is a volume": func(m *M) {
			m.Files = []repository.FileJSON{{Name: "root.v1.qcow2", SHA256: strings.Repeat("0", 64)}}
		},
		"side file without a checksum": func(m *M) { m.Files = []repository.FileJSON{{Name: "x"}} },
		"sequence too large":           func(m *M) { m.Sequence = math.MaxInt64 },
		"position too large":           func(m *M) { m.Position = math.MaxInt32 },
		"frozen for centuries":         func(m *M) { m.FrozenMS = math.MaxInt64 },
		"start before there were any":  func(m *M) { m.StartedAt = time.Date(1582, 10, 15, 0, 0, 0, 0, time.UTC) },
		"virtual size":                 func(m *M) { m.Volumes[0].VirtualSize = math.MaxInt64 },
		"stored size":                  func(m *M) { m.Volumes[1].StoredSize = math.MaxInt64 },
		"dirty bytes":                  func(m *M) { m.Volumes[0].DirtyBytes = math.MaxInt64 },
		"file digest":                  func(m *M) { m.Volumes[0].FileDigest = &repository.DigestJSON{Algorithm: "sha256"} },
		"digest too long": func(m *M) {
			m.Volumes[0].Digest = &repository.DigestJSON{Algorithm: "x", Value: strings.Repeat("ab", 4096)}
		},
		"volume id too long": func(m *M) { m.Volumes[0].VolumeID = kvmbackup.VolumeID(strings.Repeat("x", 1<<20)) },
		"device too long":    func(m *M) { m.Volumes[0].Device = strings.Repeat("x", 1<<20) },
		"domain too long":    func(m *M) { m.Domain = strings.Repeat("x", 1<<20) },
		"reason too long": func(m *M) {
			m.Reasons = []repository.ReasonJSON{{Code: kvmbackup.ReasonCode(strings.Repeat("x", 1<<20))}}
		},
		"detail too long": func(m *M) {
			m.Reasons = []repository.ReasonJSON{{Code: "x", Detail: strings.Repeat("x", 1<<20)}}
		},
		"volume of a reason too long": func(m *M) {
			m.Reasons = []repository.ReasonJSON{{Code: "x", VolumeID: kvmbackup.VolumeID(strings.Repeat("x", 1<<20))}}
		},
		"too many reasons": func(m *M) { m.Reasons = make([]repository.ReasonJSON, repository.MaxReasons+1) },
		"too many volumes": func(m *M) {
			for i := range 511 {
				v := m.Volumes[1]
				v.VolumeID, v.File = kvmbackup.VolumeID(strconv.Itoa(i)), strconv.Itoa(i)
				m.Volumes = append(m.Volumes, v)
			}
		},
		"too many side files": func(m *M) { m.Files = make([]repository.FileJSON, kvmbackup.MaxSideFiles+1) },
		"side file too large": func(m *M) {
			m.Files = []repository.FileJSON{{Name: "x", Size: 1 << 40, SHA256: strings.Repeat("0", 64)}}
		},
		"side file with a negative one": func(m *M) {
			m.Files = []repository.FileJSON{{Name: "x", Size: -1, SHA256: strings.Repeat("0", 64)}}
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			d := repository.DocumentOf(incremental())
			_, err := repository.DecodeManifest([]byte(encoded(d)))
			want(t, err)
			spoil(&d)
			_, err = repository.DecodeManifest([]byte(encoded(d)))
			want(t, err, repository.ErrManifest)
			if len(err.Error()) > 64<<10 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			if slices.Contains(onlyWritten, name) {
				return
			}
			m := repository.ManifestOf(d)
			want(t, m.Validate(), repository.ErrManifest)
			_, err = m.Encode()
			want(t, err, repository.ErrManifest)
		})
	}
}

// TestManifestErrorsAreFew: a document in which everything is wrong doesn't make an error as long as itself.
func TestManifestErrorsAreFew(t *testing.T) {
	d := repository.DocumentOf(incremental())
	d.Kind = "full"
	v := d.Volumes[0]
	d.Volumes = nil
	for i := range 512 {
		v.File = strings.Repeat("x", 200) + strconv.Itoa(i)
		d.Volumes = append(d.Volumes, v)
	}
	_, err := repository.DecodeManifest([]byte(encoded(d)))
	want(t, err, repository.ErrManifest)
	if len(err.Error()) > 64<<10 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

// TestHostileShapes: documents of a few MiB that would become hundreds, or a stack without end, are refused in a
// fraction of that.
func TestHostileShapes(t *testing.T) {
	b, err := full().Encode()
	want(t, err)
	good := string(b)
	const most = 3 << 20
	elements := map[string]string{"objects": "{},", "nulls": "null,", "numbers": "1,", "arrays": "[],", "nested": "["}
	fields := []string{"volumes", "files", "reasons", "unknown", "VOLUMES"}
	first, stride := lab.Every(t, len(fields)) // in the quick tier each element is in one of the fields
	for i, name := range slices.Sorted(maps.Keys(elements)) {
		element := elements[name]
		for n := (first + i) % stride; n < len(fields); n += stride {
			field := fields[n]
			list := strings.Repeat(element, most/len(element)) + "1"
			if name == "nested" {
				list += strings.Repeat("]", most/len(element)/8) // it is refused long before
			}
			in := []byte(seal(strings.Replace(good, "{", `{"`+field+`": [`+list+`],`, 1)))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := repository.DecodeManifest(in)
			runtime.ReadMemStats(&after)
			want(t, err, repository.ErrManifest)
			if took := after.TotalAlloc - before.TotalAlloc; took > 32<<20 {
				t.Errorf("%s in %s: %d MiB for a document of %d", name, field, took>>20, len(in)>>20)
			}
		}
	}
}

func FuzzDecodeManifest(f *testing.F) {
	for _, m := range []repository.Manifest{full(), incremental()} {
		b, _ := m.Encode()
		f.Add(b)
	}
	f.Add([]byte(`{"version":3}`))
	b, _ := full().Encode()
	for _, change := range [][2]string{
		{`"sequence": `, `"sequence": 9007199254740993`}, {`"virtual_size": `, `"virtual_size": 9`},
		{`"position": 0`, `"position": 4294967296`},
		{`"volumes": [`, `"volumes": [null,{},`}, {`"frozen_ms": `, `"frozen_ms": 999999999999`},
		{`"started_at": "2`, `"started_at": "0`},
	} {
		f.Add([]byte(seal(strings.Replace(string(b), change[0], change[1], 1))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := repository.DecodeManifest(b); err != nil {
			b = []byte(seal(string(b))) // or the checksum would keep all else from being looked at
		}
		m, err := repository.DecodeManifest(b)
		if err != nil {
			if !errors.Is(err, repository.ErrManifest) && !errors.Is(err, repository.ErrManifestVersion) {
				t.Fatal(err)
			}
			return
		}
		if len(m.Volumes) > 512 || len(m.Files) > kvmbackup.MaxSideFiles || len(m.Reasons) > repository.MaxReasons ||
			m.Sequence < 0 || m.Sequence > repository.MaxSequence || m.Position > repository.MaxPosition ||
			m.StartedAt.Year() < 1970 {
			t.Fatalf("beyond a limit: %+v", m)
		}
		var stored, virtual int64
		for _, v := range m.Volumes {
			stored, virtual = stored+v.StoredSize, virtual+v.VirtualSize
			if stored < 0 || virtual < 0 {
				t.Fatal("sizes overflow")
			}
		}
		for _, name := range fileNames(m) {
			if strings.ContainsAny(name, "/\\\x00") || strings.HasPrefix(name, ".") {
				t.Fatalf("file %q", name)
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
