package kvmbackuptest_test

import (
	"os"
	"slices"
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
		s.must(s.h.Define(kvmbackuptest.Domain{Name: "uefi", NVRAM: []byte("variables"), TPM: []byte("state"), Disks: []kvmbackuptest.Disk{s.newDisk("vda", "uefi")}}))
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
		if slices.ContainsFunc(b.Reasons, func(r kvmbackup.Reason) bool { return r.Code == kvmbackup.ReasonTPMNotSaved }) {
			t.Errorf("reasons are %v", b.Reasons)
		}
		report, err := s.engine.Verify(t.Context(), b.ID, engine.VerifyOptions{})
		if s.must(err); !report.OK() {
			t.Error(report.Problems)
		}
		_, err = s.engine.Delete(t.Context(), b.ID, kvmbackup.DeleteOptions{})
		s.must(err)
		if _, err := os.Stat(s.repo.FilePath(b.Path, "")); !os.IsNotExist(err) {
			t.Errorf("the deleted backup is there still: %v", err)
		}
	})
}
