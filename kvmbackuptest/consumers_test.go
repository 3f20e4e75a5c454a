package kvmbackuptest_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// beside is another consumer of the story's VM with a store of its own, and a repository of its own unless it shares
// the first one's.
func (s *teller) beside(prefix string, shared bool) *teller {
	s.t.Helper()
	second := *s.world
	second.store, second.contents = memstore.New(), map[kvmbackup.BackupID]map[kvmbackup.VolumeID]kvmbackuptest.Content{}
	if !shared {
		second.dir = filepath.Join(s.dir, "second")
		s.must(os.Mkdir(second.dir, 0o755))
		var err error
		second.repo, err = repository.Init(s.t.Context(), second.dir, repository.Options{NoSync: true})
		s.must(err)
	}
	second.cfg.Prefix = prefix
	s.must(second.open(plan{}))
	return &teller{world: &second, t: s.t}
}

// inTurns lets two consumers take three backups each, with writes between them.
func inTurns(s, o *teller, take func(*teller)) {
	for range 3 {
		s.must(s.write("vda", 1, 1))
		take(s)
		o.seed = 1000 + s.seed
		s.must(o.write("vda", 2, 1))
		take(o)
	}
}

// Two consumers of one VM, each with its own store and repository: with a prefix of its own, or with none.
func TestTwoConsumers(t *testing.T) {
	for _, prefix := range []string{"other", ""} {
		story(t, false, func(t *testing.T, s *teller) {
			o := s.beside(prefix, false)
			inTurns(s, o, func(c *teller) { c.backup(everyday) })
			s.want("FII")
			o.want("FII")
		})
	}
}

// Two stores on one repository, without prefixes of their own: each leaves alone what the other's backups need, and
// says so.
func TestTwoStoresOnOneRepository(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		o := s.beside("", true)
		var log bytes.Buffer
		s.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		s.must(s.open(plan{}))
		inTurns(s, o, func(c *teller) {
			_, err := c.engine.Backup(t.Context(), c.request(everyday))
			s.must(err)
		})
		s.want("FII")
		o.want("FII")
		if !strings.Contains(log.String(), "give each store a prefix of its own") {
			t.Errorf("not a word of the other store:\n%s", &log)
		}
		d, err := s.engine.Inspect(t.Context(), s.request(everyday).Target())
		s.must(err)
		for _, f := range d.Findings {
			if f.Code == engine.FindingForeignCheckpoint && strings.Contains(f.Detail, "in this repository") {
				return
			}
		}
		t.Errorf("the doctor finds %+v", d.Findings)
	})
}

// A store that is lost knows nothing of the checkpoint. It stays as long as it may be another store's, and goes when
// the backups are imported.
func TestCheckpointOfALostStore(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		s.four()
		s.store = memstore.New()
		s.must(s.open(plan{}))
		<-time.After(time.Second) // the story's clock, which names the folders
		first, err := s.engine.Backup(t.Context(), s.request(everyday))
		s.must(err)
		names, err := s.h.Checkpoints(vm)
		if s.must(err); len(names) != 2 || first.Kind != kvmbackup.KindFull {
			t.Fatalf("%v with %q", first.Kind, names)
		}
		_, err = s.engine.Import(t.Context(), vm)
		s.must(err)
		_, err = s.engine.Backup(t.Context(), s.request(everyday))
		s.must(err)
		if names, err = s.h.Checkpoints(vm); err != nil || len(names) != 1 {
			t.Errorf("%q are left: %v", names, err)
		}
	})
}

// A consumer that changes its prefix goes on incrementally, and what it has left under the old one goes: here at once,
// and also when a crash comes before that.
func TestPrefixThatChanges(t *testing.T) {
	for _, before := range []string{"kvmbackup", "nas-1"} {
		for _, p := range []plan{{}, {op: "DropCheckpoint", mode: killBefore}} {
			story(t, false, func(t *testing.T, s *teller) {
				s.cfg.Prefix = before
				s.must(s.open(plan{}))
				s.backup(everyday)
				s.must(s.write("vda", 1, 1))
				s.cfg.Prefix = ""
				s.must(s.open(p))
				_, err := s.engine.Backup(t.Context(), s.request(everyday))
				if s.must(s.open(plan{})); p.op == "" {
					s.must(err)
				}
				s.stray = nil // names of the old prefix
				s.must(s.write("vda", 2, 1))
				_, err = s.engine.Backup(t.Context(), s.request(everyday))
				s.must(err)
				s.stray = nil
				s.want("FII")
				if names, err := s.h.Checkpoints(vm); err != nil || len(names) != 1 {
					t.Errorf("%q are left: %v", names, err)
				}
			})
		}
	}
}
