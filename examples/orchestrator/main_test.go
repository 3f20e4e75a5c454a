package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	tools "github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestStart runs the program as it is called, on the hypervisor that libvirt simulates, which can't do backups.
func TestStart(t *testing.T) {
	if _, err := qcow2.New(qcow2.Config{}); errors.Is(err, qcow2.ErrToolMissing) {
		tools.Missing(t, err)
	}
	l := newLab(t)
	l.exec(`INSERT INTO orchestrator_vms (vm, daily) VALUES ('test', '02:30')`)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- start(ctx, []string{"--connect", "test:///default", "--database", l.cfg.Database, "--repo", l.cfg.Repository,
			"--listen", "127.0.0.1:0", "--poll", "20ms"})
	}()
	l.until("an attempt", func() bool { return query[int](l, `SELECT max(failures) FROM orchestrator_vms`) > 0 })
	stop()
	l.must(<-ended)
	t.Log(query[string](l, `SELECT last_error FROM orchestrator_vms`))
}

// TestHelp: asking for help is no failure, and the help doesn't print what the environment has.
func TestHelp(t *testing.T) {
	t.Setenv("ORCHESTRATOR_DATABASE", "postgres://backup:secret@db/backups")
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stderr := os.Stderr
	os.Stderr = file
	err = start(t.Context(), []string{"--help"})
	os.Stderr = stderr
	text, errRead := os.ReadFile(file.Name())
	if err != nil || errRead != nil || !strings.Contains(string(text), "-lease-ttl") ||
		strings.Contains(string(text), "secret") {
		t.Errorf("%v, %v; printed %s", err, errRead, text)
	}
}

func TestStartRefuses(t *testing.T) {
	t.Setenv("ORCHESTRATOR_DATABASE", "")
	l := newLab(t)
	for name, args := range map[string][]string{
		"no database": {"--database", "host=" + t.TempDir(), "--repo", l.cfg.Repository, "--connect", "test:///default"},
		"no share":    {"--database", l.cfg.Database, "--repo", t.TempDir(), "--connect", "test:///default"},
		"no libvirt": {"--database", l.cfg.Database, "--repo", l.cfg.Repository, "--connect",
			"qemu+unix:///system?socket=/nothing/there"},
		"no arguments": nil,
	} {
		if err := start(t.Context(), append(args, "--listen", "")); err == nil {
			t.Errorf("%s: it starts", name)
		}
	}
}
