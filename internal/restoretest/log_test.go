package restoretest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// uncommitted is a store on which no record is completed.
type uncommitted struct{ kvmbackup.Store }

var errUncommitted = errors.New("no record is completed")

func (uncommitted) Complete(context.Context, kvmbackup.Lease, kvmbackup.Backup) error {
	return errors.Join(kvmbackup.ErrStatus, errUncommitted)
}

// TestLogLines walks all lines of a backup, one that is left running, its recovery, a restore, a restore in place and a
// delete: the engine's, the repository's and qemu-img's. Each says which VM and which step it is about, and which
// backup as soon as there is one.
func TestLogLines(t *testing.T) {
	t.Parallel()
	l := newWorld(t)
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := l.cfg
	tool, err := qcow2.New(qcow2.Config{Logger: logger})
	l.ok(err)
	repo, err := repository.Open(t.Context(), l.nas, repository.Options{NoSync: true, Logger: logger})
	l.ok(err)
	log.Reset() // opening is no operation on a VM
	cfg.Logger, cfg.Images, cfg.Repository = logger, &watched{Tool: tool}, repo
	eng, err := engine.New(cfg)
	l.ok(err)
	cfg.Store = uncommitted{cfg.Store}
	cut, err := engine.New(cfg)
	l.ok(err)

	req := engine.BackupRequest{VM: vm, Volumes: l.volumes}
	b, err := eng.Backup(t.Context(), req)
	l.ok(err)
	_, err = cut.Backup(t.Context(), req)
	l.fails(err, errUncommitted)
	_, err = eng.Recover(t.Context(), engine.Target{VM: vm})
	l.ok(err)
	_, err = eng.Restore(t.Context(), engine.RestoreRequest{Backup: b.ID, Dir: l.out()})
	l.ok(err)
	l.ok(l.h.Shutdown(vm))
	_, err = eng.Restore(t.Context(), l.inPlace(b))
	l.ok(err)
	_, err = eng.Delete(t.Context(), b.ID, kvmbackup.DeleteOptions{Subtree: true})
	l.ok(err)

	seen := map[string]bool{}
	for line := range strings.Lines(log.String()) {
		var fields map[string]any
		l.ok(json.Unmarshal([]byte(line), &fields))
		seen[fields["msg"].(string)] = true
		_, named := fields["backup"]
		if fields["vm"] != string(vm) || fields["step"] == "" || fields["step"] == nil || !named {
			t.Errorf("not all of vm, backup and step: %s", line)
		}
		if folder, _ := fields["name"].(string); strings.Contains(folder, ".partial-") && fields["backup"] == "" {
			t.Errorf("no backup: %s", line)
		}
	}
	for _, msg := range []string{"step", "repository step", "ran tool", "settled what an earlier process left"} {
		if !seen[msg] {
			t.Errorf("no line %q among %v", msg, seen)
		}
	}
}
