package kvmbackuptest_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
)

// The UEFI variables and the TPM's state go with the definition, and nobody else may read them. They go with the
// backup, too.
func TestSecretsOfTheFirmware(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.must(s.h.Define(kvmbackuptest.Domain{
			Name: "uefi", NVRAM: []byte("variables"), TPM: []byte("state"),
			Disks: []kvmbackuptest.Disk{s.newDisk("vda", "uefi")},
		}))
		s.must(s.h.Start("uefi"))
		b, err := s.engine.Backup(t.Context(), engine.BackupRequest{VM: "uefi"})
		s.must(err)
		for name, want := range map[string]string{repository.NVRAMName: "variables", repository.TPMName: "state"} {
			path := s.repo.FilePath(b.Path, name)
			data, err := os.ReadFile(path)
			s.must(err)
			info, err := os.Stat(path)
			s.must(err)
			if string(data) != want || info.Mode().Perm() != 0o600 {
				t.Errorf("%s is %q with mode %v", name, data, info.Mode())
			}
		}
		def, err := s.engine.Definition(t.Context(), b.ID)
		if s.must(err); string(def.NVRAM) != "variables" || string(def.TPM) != "state" ||
			!strings.Contains(string(def.XML), "uefi") {
			t.Errorf("the definition is %q", def)
		}
		if slices.ContainsFunc(b.Reasons, func(r kvmbackup.Reason) bool { return r.Code == engine.ReasonTPMNotSaved }) {
			t.Errorf("reasons are %v", b.Reasons)
		}
		report, err := s.engine.Verify(t.Context(), b.ID, engine.VerifyOptions{})
		if s.must(err); !report.OK() {
			t.Error(report.Problems)
		}
		for name, want := range map[string]error{repository.NVRAMName: kvmbackup.ErrDamaged,
			repository.DomainXMLName: kvmbackup.ErrMissingFile} {
			path := s.repo.FilePath(b.Path, name)
			was, err := os.ReadFile(path)
			s.must(err)
			if s.must(os.Remove(path)); name == repository.NVRAMName {
				s.must(os.WriteFile(path, []byte("variablex"), 0o600))
			}
			if def, err := s.engine.Definition(t.Context(), b.ID); !errors.Is(err, want) || def.XML != nil {
				t.Errorf("%s: %q, %v; want %v", name, def, err, want)
			}
			s.must(os.WriteFile(path, was, 0o600))
		}
		_, err = s.engine.Delete(t.Context(), b.ID, kvmbackup.DeleteOptions{})
		s.must(err)
		if _, err := os.Stat(s.repo.FilePath(b.Path, "")); !os.IsNotExist(err) {
			t.Errorf("the deleted backup is there still: %v", err)
		}
	})
}
