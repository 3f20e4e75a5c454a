package repository_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// TestMAC: whatever is changed in a sealed manifest is found, and what may change later is not.
func TestMAC(t *testing.T) {
	key := knownKey(t)
	fresh := func() repository.Manifest { return manifestShapes()["sealed"].manifest(t) }
	want(t, fresh().Authenticate(key))
	if err := fresh().Authenticate(kvmbackup.NewDataKey()); !errors.Is(err, repository.ErrManifest) {
		t.Errorf("another backup's key gives %v", err)
	}
	for what, change := range map[string]func(m *repository.Manifest){
		"id":              func(m *repository.Manifest) { m.ID = fullID },
		"vm":              func(m *repository.Manifest) { m.VM = "x" },
		"domain":          func(m *repository.Manifest) { m.Domain = "x" },
		"domain UUID":     func(m *repository.Manifest) { m.DomainUUID = "x" },
		"kind":            func(m *repository.Manifest) { m.Kind = kvmbackup.KindFull },
		"chain":           func(m *repository.Manifest) { m.ChainID = kvmbackup.NewChainID() },
		"position":        func(m *repository.Manifest) { m.Position++ },
		"parent":          func(m *repository.Manifest) { m.ParentID = kvmbackup.NewBackupID() },
		"parent's MAC":    func(m *repository.Manifest) { m.ParentMAC = strings.Repeat("00", 32) },
		"no parent's MAC": func(m *repository.Manifest) { m.ParentMAC = "" },
		"checkpoint":      func(m *repository.Manifest) { m.Checkpoint = "x" },
		"path":            func(m *repository.Manifest) { m.Path += "1" },
		"start":           func(m *repository.Manifest) { m.StartedAt = m.StartedAt.Add(1) },
		"end":             func(m *repository.Manifest) { m.CompletedAt = m.CompletedAt.Add(1) },
		"transfer":        func(m *repository.Manifest) { m.Transfer = kvmbackup.TransferOffline },
		"consistency":     func(m *repository.Manifest) { m.Consistency = kvmbackup.ConsistencyCrash },
		"frozen":          func(m *repository.Manifest) { m.FrozenFor += time.Second },
		"volume":          func(m *repository.Manifest) { m.Volumes[0].VolumeID = "x" },
		"device":          func(m *repository.Manifest) { m.Volumes[0].Device = "x" },
		"file":            func(m *repository.Manifest) { m.Volumes[0].File = "x" },
		"parent file":     func(m *repository.Manifest) { m.Volumes[0].ParentFile += "x" },
		"virtual size":    func(m *repository.Manifest) { m.Volumes[0].VirtualSize++ },
		"stored size":     func(m *repository.Manifest) { m.Volumes[0].StoredSize++ },
		"dirty bytes":     func(m *repository.Manifest) { m.Volumes[0].DirtyBytes++ },
		"format":          func(m *repository.Manifest) { m.Volumes[0].SourceFormat = "x" },
		"disk encryption": func(m *repository.Manifest) { m.Volumes[0].Encryption = "x" },
		"file encryption": func(m *repository.Manifest) { m.Volumes[0].FileEncryption = "" },
		"file digest":     func(m *repository.Manifest) { m.Volumes[0].FileDigest += "00" },
		"side file":       func(m *repository.Manifest) { m.Files[0].Name = "x" },
		"side file's sum": func(m *repository.Manifest) { m.Files[0].SHA256 = strings.Repeat("00", 32) },
		"one volume less": func(m *repository.Manifest) { m.Volumes = m.Volumes[:1] },
		"no side files":   func(m *repository.Manifest) { m.Files = nil },
		"mac":             func(m *repository.Manifest) { m.MAC = strings.Repeat("0", 64) },
		"no mac":          func(m *repository.Manifest) { m.MAC = "" },
	} {
		m := fresh()
		change(&m)
		if err := m.Authenticate(key); !errors.Is(err, repository.ErrManifest) {
			t.Errorf("another %s gives %v", what, err)
		}
	}
	m := fresh()
	m.Pinned, m.VerifiedAt, m.Sequence, m.Reasons = true, m.CompletedAt, 7, nil
	m = m.WithKeys([]kvmbackup.WrappedKey{{KeyID: "another", Wrapped: []byte("x")}})
	b, err := m.Encode()
	want(t, err)
	m, err = repository.DecodeManifest(b)
	want(t, err)
	want(t, m.Authenticate(key))
}

// TestMACByHand: the MAC is what docs/format.md says, computed with jq and openssl.
func TestMACByHand(t *testing.T) {
	lab.Need(t, "jq", "openssl", "sh")
	key := knownKey(t)
	b, err := manifestShapes()["sealed"].manifest(t).Encode()
	want(t, err)
	file := filepath.Join(t.TempDir(), "backup.json")
	want(t, os.WriteFile(file, b, 0o600))
	raw, err := key.MarshalBinary()
	want(t, err)
	script := `datakey=$(printf %s "$1" | od -An -v -tx1 | tr -d ' \n')
mackey=$(openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt hexkey:$datakey -kdfopt info:'kvmbackup manifest' HKDF |
  tr -d ':\n')
jq -c 'del(.sequence,.pinned,.verified_at,.reasons,.keys,.mac,.checksum)' "$2" | tr -d '\n' |
  openssl dgst -sha256 -mac HMAC -macopt hexkey:$mackey -r | cut -c1-64`
	out, err := exec.CommandContext(t.Context(), "sh", "-c", script, "sh", string(raw), file).CombinedOutput()
	m, derr := repository.DecodeManifest(b)
	want(t, errors.Join(err, derr))
	if got := strings.TrimSpace(string(out)); got != m.MAC {
		t.Errorf("by hand the MAC is %q, the manifest has %q", got, m.MAC)
	}
}

// TestSealedShapes: what is sealed in part, or more than it should tell, is refused.
func TestSealedShapes(t *testing.T) {
	for what, change := range map[string]func(m *repository.Manifest){
		"no MAC":               func(m *repository.Manifest) { m.MAC = "" },
		"no keys":              func(m *repository.Manifest) { *m = m.WithKeys(nil) },
		"an empty wrapped key": func(m *repository.Manifest) { m.Keys[0].Wrapped = nil },
		"a large wrapped key":  func(m *repository.Manifest) { m.Keys[0].Wrapped = make([]byte, 1<<20) },
		"a key ID twice":       func(m *repository.Manifest) { m.Keys[0].KeyID = m.Keys[1].KeyID },
		"a key ID of none":     func(m *repository.Manifest) { m.Keys[0].KeyID = "" },
		"many keys": func(m *repository.Manifest) {
			*m = m.WithKeys(append(make([]kvmbackup.WrappedKey, 100), m.Keys...))
		},
		"a volume in the clear": func(m *repository.Manifest) { m.Volumes[1].FileEncryption = "" },
		"a content digest":      func(m *repository.Manifest) { m.Volumes[1].Digest = "sha256:00" },
		"no file digest":        func(m *repository.Manifest) { m.Volumes[1].FileDigest = "" },
		"another encryption":    func(m *repository.Manifest) { m.Volumes[1].FileEncryption = "rot13" },
		"a MAC in the clear":    func(m *repository.Manifest) { m.MAC = "secret" },
		"a short parent's MAC":  func(m *repository.Manifest) { m.ParentMAC = "8b" },
		"a full on a parent":    func(m *repository.Manifest) { m.ParentID = "" },
		"a parent's MAC of a plain one": func(m *repository.Manifest) {
			mac := m.ParentMAC
			*m = manifestShapes()["incremental"].manifest(t)
			m.ParentMAC = mac
		},
		"a MAC of a plain one": func(m *repository.Manifest) {
			mac := m.MAC
			*m = manifestShapes()["full"].manifest(t)
			m.MAC = mac
		},
		"a sealed volume alone": func(m *repository.Manifest) {
			*m = manifestShapes()["full"].manifest(t)
			m.Volumes[0].FileEncryption = "luks"
		},
		"keys of a plain backup": func(m *repository.Manifest) {
			k := m.Keys
			*m = manifestShapes()["digests"].manifest(t)
			*m = m.WithKeys(k)
		},
	} {
		m := manifestShapes()["sealed"].manifest(t)
		change(&m)
		if err := m.Validate(); !errors.Is(err, repository.ErrManifest) {
			t.Errorf("%s gives %v", what, err)
		}
	}
}
