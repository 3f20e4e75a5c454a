package kvmbackuptest_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

func TestRestoreInPlaceThenFull(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		bs := s.four()
		req := engine.RestoreRequest{Backup: bs[1].ID, InPlace: &engine.InPlace{Volumes: s.volumes}}
		if _, err := s.engine.Restore(t.Context(), req); !errors.Is(err, kvmbackup.ErrDomainRunning) {
			t.Errorf("restore over a running VM: %v", err)
		}
		s.must(s.h.Shutdown(vm))
		_, err := s.engine.Restore(t.Context(), req)
		s.must(err)
		for _, v := range s.volumes {
			got, err := s.h.Content(vm, v.Device)
			s.must(err)
			if diff := got.Diff(s.contents[bs[1].ID][v.ID]); diff != "" {
				t.Errorf("%s: %s", v.Device, diff)
			}
		}
		s.must(s.h.Start(vm))
		if b := s.backup(everyday); b.Kind != kvmbackup.KindFull || reasonOf(b, "") != kvmbackup.ReasonNoActiveCheckpoint {
			t.Errorf("%v: %v", b.Kind, b.Reasons)
		}
		s.backup(everyday)
		s.want("FIIIFI")
	})
}

// A backup of one VM goes over the disks of another.
func TestRestoreOverAnotherVM(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.four()[2]
		s.must(s.h.Define(kvmbackuptest.Domain{Name: "vm2", Disks: []kvmbackuptest.Disk{s.newDisk("sda", "vm2")}}))
		_, err := s.engine.Restore(t.Context(), engine.RestoreRequest{
			Backup:  b.ID,
			Volumes: []engine.RestoreVolume{{ID: "vol-vda", Path: "sda"}},
			InPlace: &engine.InPlace{VM: "vm2", Volumes: []engine.Volume{{ID: "v2", Device: "sda"}}},
		})
		s.must(err)
		got, err := s.h.Content("vm2", "sda")
		s.must(err)
		if diff := got.Diff(s.contents[b.ID]["vol-vda"]); diff != "" {
			t.Error(diff)
		}
		s.backup(everyday)
		s.want("FIIII") // the VM that it came from goes on
	})
}

func TestRestoreOneVolumeRaw(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.four()[3]
		path := filepath.Join(s.dir, "vda.raw")
		req := engine.RestoreRequest{
			Backup: b.ID, Volumes: []engine.RestoreVolume{{ID: "vol-vda", Path: path, Format: qcow2.FormatRaw}},
		}
		_, err := s.engine.Restore(t.Context(), req)
		s.must(err)
		got, err := kvmbackuptest.ReadRaw(path)
		s.must(err)
		if diff := got.Diff(s.contents[b.ID]["vol-vda"]); diff != "" {
			t.Error(diff)
		}
		if _, err := s.engine.Restore(t.Context(), req); !errors.Is(err, kvmbackup.ErrTargetExists) {
			t.Errorf("over a file that is there: %v", err)
		}
	})
}

// The name of a new file in a folder ends in the format that the file has, whether the request or the volume chose it.
func TestRestoredFilesAreNamedAfterTheirFormats(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.four()[3]
		for i, c := range []struct{ request, volume, want qcow2.Format }{
			{"", "", qcow2.FormatQcow2},
			{"", qcow2.FormatRaw, qcow2.FormatRaw},
			{qcow2.FormatRaw, "", qcow2.FormatRaw},
			{qcow2.FormatRaw, qcow2.FormatQcow2, qcow2.FormatQcow2},
			{qcow2.FormatQcow2, qcow2.FormatRaw, qcow2.FormatRaw},
		} {
			dir := filepath.Join(s.dir, fmt.Sprint("formats", i))
			s.must(os.Mkdir(dir, 0o755))
			r, err := s.engine.Restore(t.Context(), engine.RestoreRequest{
				Backup: b.ID, Dir: dir, Format: c.request, Volumes: []engine.RestoreVolume{{ID: "vol-vda", Format: c.volume}},
			})
			s.must(err)
			v := r.Volumes[0]
			if v.Format != c.want || v.Path != filepath.Join(dir, "vda.vol-vda."+string(c.want)) {
				t.Errorf("request %q, volume %q: %s is called %s", c.request, c.volume, v.Format, v.Path)
			}
			read := kvmbackuptest.ReadChain
			if c.want == qcow2.FormatRaw {
				read = kvmbackuptest.ReadRaw
			}
			got, err := read(v.Path)
			s.must(err)
			if diff := got.Diff(s.contents[b.ID]["vol-vda"]); diff != "" {
				t.Error(diff)
			}
		}
	})
}

func TestMissingParentFile(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		bs := s.four()
		v, _ := bs[1].Volume("vol-vda")
		s.must(os.Remove(s.repo.FilePath(bs[1].Path, v.File)))
		_, err := s.engine.Restore(t.Context(), engine.RestoreRequest{Backup: bs[3].ID, Dir: s.dir})
		if !errors.Is(err, kvmbackup.ErrMissingFile) {
			t.Errorf("restore: %v", err)
		}
		if b := s.backup(everyday); b.Kind != kvmbackup.KindFull || reasonOf(b, "") != kvmbackup.ReasonParentFileMissing {
			t.Errorf("%v: %v", b.Kind, b.Reasons)
		}
	})
}

// Damage that the verification of one backup finds below it is known of all that stand on it, and so is that it was
// mended.
func TestDamageBelow(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		bs := s.four()
		v, _ := bs[0].Volume("vol-vda")
		file := s.repo.FilePath(bs[0].Path, v.File)
		whole, err := os.ReadFile(file)
		s.must(err)
		s.must(os.Truncate(file, 1000))
		if _, err := s.engine.Verify(t.Context(), bs[1].ID, engine.VerifyOptions{}); !errors.Is(err, kvmbackup.ErrDamaged) {
			t.Fatalf("verify: %v", err)
		}
		for _, b := range bs {
			b, err := s.engine.Get(t.Context(), b.ID)
			s.must(err)
			if b.Verification == nil || b.Verification.OK || b.Verification.Problem == "" {
				t.Errorf("%s: %+v", b.Path, b.Verification)
			}
		}
		next := func() kvmbackup.ReasonCode {
			d, err := s.engine.Plan(t.Context(), s.request(everyday))
			s.must(err)
			return d.Decision.Reasons[0].Code
		}
		if code := next(); code != kvmbackup.ReasonParentDamaged {
			t.Errorf("the next backup: %v", code)
		}
		s.must(os.WriteFile(file, whole, 0o600))
		<-time.After(time.Second)
		_, err = s.engine.Verify(t.Context(), bs[3].ID, engine.VerifyOptions{})
		s.must(err)
		if code := next(); code != kvmbackup.ReasonIncremental {
			t.Errorf("once it was mended: %v", code)
		}
	})
}

// A backup whose verification found damage is no parent any more: what stood on it could not be restored either.
func TestDamagedParent(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		bs := s.four()
		v, _ := bs[3].Volume("vol-vda")
		s.must(os.Truncate(s.repo.FilePath(bs[3].Path, v.File), 1000))
		if _, err := s.engine.Verify(t.Context(), bs[3].ID, engine.VerifyOptions{}); !errors.Is(err, kvmbackup.ErrDamaged) {
			t.Fatalf("verify: %v", err)
		}
		b, err := s.engine.Backup(t.Context(), s.request(everyday))
		s.must(err)
		if b.Kind != kvmbackup.KindFull || reasonOf(b, "") != kvmbackup.ReasonParentDamaged {
			t.Errorf("%v: %v", b.Kind, b.Reasons)
		}
	})
}
