package kvmbackuptest_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/repository"
)

// index puts into a folder what an indexer of a NAS and a desktop leave there.
func (s *teller) index(dir string) {
	s.t.Helper()
	s.must(os.Mkdir(filepath.Join(dir, "@eaDir"), 0o700))
	s.must(os.WriteFile(filepath.Join(dir, "@eaDir", "root.vol-vda.qcow2"), []byte("an index"), 0o600))
	s.must(os.WriteFile(filepath.Join(dir, ".DS_Store"), nil, 0o600))
}

// leftFolders wants what is foreign in so many folders of removed backups, unharmed, and nothing else but what the
// records know. It takes these folders away.
func (s *teller) leftFolders(want int) {
	s.t.Helper()
	entries, err := s.repo.List(s.t.Context(), vm)
	s.must(err)
	for _, e := range entries {
		if e.Kind != repository.FolderLeft {
			continue
		}
		want--
		if files, err := s.repo.Files(s.t.Context(), vm+"/"+e.Name); err != nil || len(files) != 2 {
			s.t.Errorf("in %s: %v, %v", e.Name, files, err)
		}
		dir := filepath.Join(s.repo.Root(), vm, e.Name)
		if b, err := os.ReadFile(filepath.Join(dir, "@eaDir", "root.vol-vda.qcow2")); string(b) != "an index" {
			s.t.Error(err)
		}
		s.must(os.RemoveAll(dir))
	}
	if want != 0 {
		s.t.Errorf("%d folders more or less", want)
	}
	s.must(s.checkClean())
}

// A file of somebody else in the folder of a backup that fails, or that a crash has left, keeps no later backup from
// being taken.
func TestForeignFilesInPartialFolders(t *testing.T) {
	for name, settle := range map[string]func(s *teller){
		"failure": nil,
		"backup":  func(*teller) {},
		"recover": func(s *teller) {
			if got := s.outcome(); got != engine.RecoveryUndone {
				s.t.Errorf("recovered: %v", got)
			}
		},
		"repair": func(s *teller) {
			d, err := s.engine.Repair(s.t.Context(), s.request(everyday).Target())
			if s.must(err); !d.Healthy() {
				s.t.Errorf("%+v", d.Findings)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				s.backup(everyday)
				s.must(s.write("vda", 1, 2))
				if settle != nil {
					s.must(killedAt("Begin")(s.world))
					s.must(s.open(plan{}))
					s.index(s.partial())
					settle(s)
				} else {
					s.must(s.open(plan{op: "Wait", mode: failBefore}))
					s.h.OnCall(func(op string) error {
						if op == "Begin done" {
							s.index(s.partial())
						}
						return nil
					})
					if _, err := s.engine.Backup(t.Context(), s.request(everyday)); !errors.Is(err, errInjected) {
						t.Errorf("backup: %v", err)
					}
					s.h.OnCall(nil)
				}
				s.must(s.open(plan{}))
				_, err := s.engine.Backup(t.Context(), s.request(everyday))
				s.must(err)
				s.want("FI")
				s.leftFolders(1)
			})
		})
	}
}

// partial is the folder of the backup under way.
func (s *teller) partial() string {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(s.repo.Root(), vm, "*.partial-*"))
	if s.must(err); len(found) != 1 {
		s.t.Fatalf("partial folders: %q", found)
	}
	return found[0]
}

// Deletions take what is the backup's, and say what they have left.
func TestForeignFilesInPublishedFolders(t *testing.T) {
	for name, remove := range map[string]func(s *teller, bs []kvmbackup.Backup) []string{
		"delete": func(s *teller, bs []kvmbackup.Backup) []string {
			p, err := s.engine.Delete(s.t.Context(), bs[0].ID, kvmbackup.DeleteOptions{Subtree: true})
			s.must(err)
			return p.Foreign
		},
		"retain": func(s *teller, bs []kvmbackup.Backup) []string {
			s.backup(kvmbackup.Policy{ForceFull: true})
			p, err := s.engine.Retain(s.t.Context(), vm, kvmbackup.RetentionPolicy{Last: 1})
			s.must(err)
			return p.Foreign
		},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, false, func(t *testing.T, s *teller) {
				var bs []kvmbackup.Backup
				for range 2 {
					bs = append(bs, s.backup(everyday))
					s.must(s.write("vda", 1, 2))
				}
				for _, b := range bs {
					s.index(filepath.Join(s.repo.Root(), b.Path))
				}
				if foreign := remove(s, bs); len(foreign) != 2 || !strings.Contains(foreign[0], ".left-") {
					t.Errorf("left: %q", foreign)
				}
				for _, b := range bs {
					if _, err := s.store.Backup(t.Context(), b.ID); !errors.Is(err, kvmbackup.ErrNotFound) {
						t.Error(err)
					}
				}
				removals, err := s.store.Removals(t.Context(), 0)
				if s.must(err); len(removals) != 2 || removals[0].Bytes == 0 {
					t.Errorf("%+v", removals)
				}
				d, err := s.engine.Inspect(t.Context(), s.request(everyday).Target())
				if s.must(err); !d.Healthy() || len(d.Findings) != 2 || d.Findings[0].Code != engine.FindingForeignFolder {
					t.Errorf("%+v", d.Findings)
				}
				if found, err := s.engine.Import(t.Context(), ""); err != nil || len(found) > len(s.kinds()) {
					t.Error(found, err)
				}
				s.leftFolders(2)
				s.backup(everyday)
			})
		})
	}
}

// Volumes whose IDs many shares don't tell apart have files which they do, also when one of them is new in a chain.
func TestVolumesThatDifferInCaseAlone(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.volumes = []engine.Volume{{ID: "DATA1", Device: "vda"}}
		s.backup(everyday)
		s.volumes = append(s.volumes, engine.Volume{ID: "data1", Device: "vdb"})
		s.must(s.write("vda", 1, 2))
		s.backup(everyday)
		s.must(s.write("vdb", 1, 2))
		b := s.backup(everyday)
		s.want("FII")
		one, two := b.Volumes[0].File, b.Volumes[1].File
		if strings.EqualFold(strings.TrimPrefix(one, "root."), strings.TrimPrefix(two, "datadisk.")) {
			t.Errorf("files %s and %s", one, two)
		}
		s.must(s.restoreAll())
	})
}

// An accent can be written in two ways, and storage may take both for one.
func TestVolumesThatDifferInAccents(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.volumes = []engine.Volume{{ID: "root", Device: "vda", Root: true}, {ID: "caf\u00e9", Device: "vdb"}}
		b := s.backup(everyday)
		if name := b.Volumes[1].File; name == "datadisk.caf\u00e9.qcow2" || b.Volumes[0].File != "root.root.qcow2" {
			t.Error(name, b.Volumes[0].File)
		}
	})
}
