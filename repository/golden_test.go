package repository_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// shape is a backup and what else its folder's manifest says.
type shape struct {
	backup kvmbackup.Backup
	files  []kvmbackup.SideFile
	sealed bool
}

// manifest is what is written of the shape.
func (s shape) manifest(t *testing.T) repository.Manifest {
	t.Helper()
	s.backup.Files = s.files
	m := repository.NewManifest(s.backup)
	if s.sealed {
		m = sealedManifest(t, m)
	}
	return m
}

// sealedManifest wraps nothing: a manifest's reader doesn't know what is in a wrapped key.
func sealedManifest(t *testing.T, m repository.Manifest) repository.Manifest {
	t.Helper()
	m = m.WithKeys([]kvmbackup.WrappedKey{
		{KeyID: "age1first", Wrapped: []byte("one")}, {KeyID: "the safe", Wrapped: []byte("two")},
	})
	m.ParentMAC = strings.Repeat("8b", 32)
	m, err := m.SealedWith(knownKey(t))
	want(t, err)
	return m
}

func knownKey(t *testing.T) (key kvmbackup.DataKey) {
	t.Helper()
	want(t, key.UnmarshalBinary([]byte("0123456789abcdef0123456789abcdef")))
	return key
}

func shapeOfFull() kvmbackup.Backup {
	at := time.Date(2026, 11, 23, 7, 4, 50, 123456789, time.FixedZone("CET", 3600))
	return kvmbackup.Backup{
		ID: fullID, VM: vm, Domain: vm, DomainUUID: "5f0c9d4e-3f7e-4d57-8c2a-6a1f0e9b7c11", Host: "node1",
		Kind: kvmbackup.KindFull, Status: kvmbackup.StatusRunning, ChainID: chainID, Checkpoint: "kb-1.2026.11.23.06.04.50",
		Repository: "r", Path: vm + "/2026.11.23.06.04.50", Sequence: 1, StartedAt: at, CompletedAt: at.Add(time.Minute),
		Consistency: kvmbackup.ConsistencyCrash, GuestRan: true, Asked: kvmbackup.Asked{Secrets: true, Digests: true},
		Reasons: []kvmbackup.Reason{{Code: kvmbackup.ReasonNoActiveCheckpoint, Detail: "first \"backup\" <&> é"}},
		Volumes: []kvmbackup.VolumeBackup{
			{
				VolumeID: "v1", Device: "vda", Kind: kvmbackup.KindFull, File: "root.v1.qcow2", VirtualSize: 1 << 30,
				StoredSize: 4096, DirtyBytes: 65536, SourceFormat: "qcow2", Tracked: true, Layers: []string{"/images/a.qcow2"},
			},
			{VolumeID: "v2", Kind: kvmbackup.KindFull, File: "datadisk.v2.qcow2", VirtualSize: 1 << 20},
		},
	}
}

func shapeOfIncremental() kvmbackup.Backup {
	b := shapeOfFull()
	b.ID, b.Kind, b.Position, b.ParentID = incID, kvmbackup.KindIncremental, 1, fullID
	b.Path, b.Checkpoint, b.Sequence = vm+"/2026.11.23.07.04.50.001", "kb-1.2026.11.23.07.04.50.001", 2
	b.Consistency, b.FrozenFor = kvmbackup.ConsistencyFilesystem, 140*time.Millisecond+999*time.Microsecond
	b.Reasons = []kvmbackup.Reason{
		{Code: kvmbackup.ReasonIncremental},
		{Code: kvmbackup.ReasonVolumeNew, Detail: "the parent has no such volume", VolumeID: "v2"},
	}
	b.Volumes[0].Kind, b.Volumes[0].ParentFile = kvmbackup.KindIncremental, "../2026.11.23.06.04.50/root.v1.qcow2"
	return b
}

// manifestShapes are backups of every shape that a manifest can have, by the name of its golden file.
func manifestShapes() map[string]shape {
	full := shapeOfFull()
	incremental := func(change func(*shape)) shape {
		s := shape{backup: shapeOfIncremental()}
		change(&s)
		return s
	}
	sha := strings.Repeat("d0", 32)
	untracked := shapeOfFull()
	untracked.Checkpoint, untracked.Domain, untracked.DomainUUID, untracked.Reasons = "", "", "", nil
	untracked.Volumes[0].Tracked, untracked.Sequence = false, 0
	return map[string]shape{
		"full":        {backup: full},
		"untracked":   {backup: untracked},
		"incremental": incremental(func(*shape) {}),
		"digests": incremental(func(s *shape) {
			s.backup.Volumes[0].Digest = "sha256:" + strings.Repeat("5e", 32)
			s.backup.Volumes[0].FileDigest = "sha256:" + strings.Repeat("6f", 32)
			s.backup.Volumes[1].Digest = "blake3:" + strings.Repeat("7a", 16)
		}),
		"sidefiles": {backup: full, files: []kvmbackup.SideFile{
			{Name: repository.DomainXMLName, Size: 4711, SHA256: sha}, {Name: repository.NVRAMName, Size: 131072, SHA256: sha},
			{Name: repository.TPMName, Size: 0, SHA256: sha},
		}},
		"encryption": incremental(func(s *shape) {
			s.backup.Volumes[1].Encryption, s.backup.Volumes[1].SourceFormat = "luks", "raw"
			s.backup.Reasons = append(s.backup.Reasons, kvmbackup.Reason{Code: "disk-encrypted", Detail: "vdb is"})
		}),
		"verified": incremental(func(s *shape) {
			s.backup.Verification = &kvmbackup.Verification{At: s.backup.CompletedAt.Add(time.Hour), Content: true, OK: true}
		}),
		"damaged": incremental(func(s *shape) {
			s.backup.Verification = &kvmbackup.Verification{At: s.backup.CompletedAt.Add(time.Hour), Problem: "damaged"}
		}),
		"transfer": incremental(func(s *shape) {
			s.backup.Transfer = kvmbackup.TransferPull
			s.backup.Reasons = append(s.backup.Reasons, kvmbackup.Reason{Code: "transfer-pull"})
		}),
		"sealed": incremental(func(s *shape) {
			s.sealed = true
			for i := range s.backup.Volumes {
				s.backup.Volumes[i].FileEncryption, s.backup.Volumes[i].FileDigest = kvmbackup.EncryptionLUKS,
					"sha256:"+strings.Repeat("6f", 32)
			}
			s.files = []kvmbackup.SideFile{{Name: repository.DomainXMLName + repository.SealedSuffix, Size: 5000, SHA256: sha}}
		}),
		"compression": incremental(func(s *shape) { s.backup.Volumes[0].Compression = kvmbackup.CompressionZstd }),
		"pinned":      incremental(func(s *shape) { s.backup.Pinned = true }),
		"longdetail": incremental(func(s *shape) {
			s.backup.Reasons[0].Detail = "not UTF-8: \xff; " + strings.Repeat("x", repository.MaxDetailBytes)
		}),
	}
}

// TestManifestsOfEveryShape pins the bytes that are written into a backup's folder.
func TestManifestsOfEveryShape(t *testing.T) {
	for name, s := range manifestShapes() {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", "manifests", name+".json")
			golden, err := os.ReadFile(file)
			want(t, err)
			got, err := s.manifest(t).Encode()
			if err != nil || !bytes.Equal(got, golden) {
				t.Fatalf("%v: got:\n%s\nwant:\n%s", err, got, golden)
			}
			m, err := repository.DecodeManifest(golden)
			want(t, err)
			if again, err := m.Encode(); err != nil || !bytes.Equal(again, golden) {
				t.Fatalf("%v: decoded and encoded again:\n%s\nwant:\n%s", err, again, golden)
			}
		})
	}
}
