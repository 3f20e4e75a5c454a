package qcow2_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestStrangeDaemon talks to daemons that break the protocol. None may hang the caller.
func TestStrangeDaemon(t *testing.T) {
	t.Parallel()
	const greeting = `echo '{"QMP": {"version": {}, "capabilities": []}}'; `
	path := filepath.Join(t.TempDir(), "i")
	create(t, newTool(t), path, qcow2.CreateOptions{})
	for name, c := range map[string]struct {
		body string
		want error
		hang bool // the daemon never gets on with it
	}{
		"endless line":   {greeting + `head -c 1000000 /dev/zero; exec sleep 1000`, qcow2.ErrOutputTooLarge, false},
		"not JSON":       {greeting + `echo hello; exec sleep 1000`, qcow2.ErrProtocol, false},
		"no answer":      {greeting + `echo '{"hello": 1}'; exec sleep 1000`, qcow2.ErrProtocol, false},
		"unknown answer": {greeting + `echo '{"return": {}, "id": "99"}'; exec sleep 1000`, qcow2.ErrProtocol, false},
		"greeting again": {greeting + greeting + `exec sleep 1000`, qcow2.ErrProtocol, false},
		"says nothing":   {`exec sleep 1000`, qcow2.ErrTimeout, true},
		"never answers":  {greeting + `exec sleep 1000`, qcow2.ErrTimeout, true},
		"events only":    {greeting + `exec yes '{"event": "X", "timestamp": {}}'`, qcow2.ErrTimeout, true},
		"result of a kind": {greeting +
			`for r in {} {} 7; do read a; n=$((n+1)); echo '{"return": '$r', "id": "'$n'"}'; done; exec sleep 1000`,
			qcow2.ErrProtocol, false},
	} {
		cfg := qcow2.Config{StorageDaemon: script(t, c.body), MaxOutputBytes: 1 << 17}
		if c.hang {
			cfg.InspectTimeout = 300 * time.Millisecond
		}
		tool := newToolWith(t, cfg)
		_, err := tool.DirtyBytes(t.Context(), path, "b")
		if !errors.Is(err, c.want) || errors.Is(err, qcow2.ErrHung) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %.300v, want %v", name, err, c.want)
		}
	}
}
