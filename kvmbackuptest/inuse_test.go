package kvmbackuptest_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
)

// Another domain that runs on the image is known by the hypervisor.
func TestRestoreOverAnotherDomainsImage(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.four()[1]
		s.must(s.h.Shutdown(vm))
		s.must(s.h.Define(kvmbackuptest.Domain{Name: "vm2", Disks: []kvmbackuptest.Disk{s.newDisk("sda", "vdb")}}))
		s.must(s.h.Start("vm2"))
		s.cfg.Executor = s.h.Executor() // the gate's says nothing of other domains
		e, err := engine.New(s.cfg)
		s.must(err)
		req := engine.RestoreRequest{Backup: b.ID, InPlace: &engine.InPlace{Volumes: s.volumes}}
		if _, err := e.Restore(t.Context(), req); !errors.Is(err, kvmbackup.ErrImageLocked) {
			t.Errorf("restore over the image of a running domain: %v", err)
		}
		s.must(s.h.Shutdown("vm2"))
		_, err = e.Restore(t.Context(), req)
		s.must(err)
	})
}

// What begins to use an image while the copy is under way keeps it.
func TestImageOpenedDuringRestore(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		b := s.four()[1]
		s.must(s.h.Shutdown(vm))
		image := filepath.Join(s.dir, "images", "vdb.qcow2")
		before, err := os.ReadFile(image)
		s.must(err)
		var user *os.File
		s.cfg.OnEvent = func(e engine.Event) {
			if e.Type == engine.EventProgress && e.Step == "copy" && user == nil {
				user, err = os.Open(image)
				s.must(err)
			}
		}
		s.must(s.open(plan{}))
		req := engine.RestoreRequest{Backup: b.ID, InPlace: &engine.InPlace{Volumes: s.volumes}}
		if _, err := s.engine.Restore(t.Context(), req); !errors.Is(err, kvmbackup.ErrImageLocked) {
			t.Errorf("restore over an image that something has opened meanwhile: %v", err)
		}
		mine, err := io.ReadAll(user)
		s.must(err)
		s.must(user.Close())
		now, err := os.ReadFile(image)
		s.must(err)
		if string(mine) != string(before) || string(now) != string(before) {
			t.Error("the image has been replaced")
		}
		left, err := filepath.Glob(filepath.Join(s.dir, "images", "*-new"))
		if s.must(err); len(left) > 0 {
			t.Errorf("the restore has left %q", left)
		}
	})
}
