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
	}{
		"endless line":     {greeting + `head -c 1000000 /dev/zero; exec sleep 1000`, qcow2.ErrOutputTooLarge},
		"not JSON":         {greeting + `echo hello; exec sleep 1000`, qcow2.ErrProtocol},
		"no answer":        {greeting + `echo '{"hello": 1}'; exec sleep 1000`, qcow2.ErrProtocol},
		"unknown answer":   {greeting + `echo '{"return": {}, "id": "99"}'; exec sleep 1000`, qcow2.ErrProtocol},
		"greeting again":   {greeting + greeting + `exec sleep 1000`, qcow2.ErrProtocol},
		"says nothing":     {`exec sleep 1000`, qcow2.ErrTimeout},
		"never answers":    {greeting + `exec sleep 1000`, qcow2.ErrTimeout},
		"events only":      {greeting + `exec yes '{"event": "X", "timestamp": {}}'`, qcow2.ErrTimeout},
		"result of a kind": {greeting + `read a; echo '{"return": {}, "id": "1"}'; read a; echo '{"return": {}, "id": "2"}'; read a; echo '{"return": 7, "id": "3"}'; exec sleep 1000`, qcow2.ErrProtocol},
	} {
		tool := newToolWith(t, qcow2.Config{
			StorageDaemon: script(t, c.body), InspectTimeout: 300 * time.Millisecond, MaxOutputBytes: 1 << 17,
		})
		if c.want != qcow2.ErrTimeout {
			tool = newToolWith(t, qcow2.Config{StorageDaemon: script(t, c.body), MaxOutputBytes: 1 << 17})
		}
		_, err := tool.DirtyBytes(t.Context(), path, "b")
		if !errors.Is(err, c.want) || errors.Is(err, qcow2.ErrHung) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %.300v, want %v", name, err, c.want)
		}
	}
}
