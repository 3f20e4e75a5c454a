package qcow2

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// deadSource is a file on storage that doesn't answer.
type deadSource struct{ release chan struct{} }

func (deadSource) sizeBytes() int64 { return digestPiece }

func (d deadSource) extents(int64) ([]digestExtent, error) {
	return []digestExtent{{length: digestPiece}}, nil
}

func (d deadSource) readAt([]byte, int64) error { <-d.release; return nil }

// TestDeadFile: the digest of a file that can't be read ends all the same, and leaves the read behind.
func TestDeadFile(t *testing.T) {
	t.Parallel()
	lab.Need(t, "qemu-img")
	tool, err := New(Config{StallTimeout: 200 * time.Millisecond, KillGrace: 50 * time.Millisecond})
	lab.OK(t, err)
	dead := deadSource{make(chan struct{})}
	defer close(dead.release)
	_, err = tool.detachedDigest(t.Context(), filepath.Join(t.TempDir(), "file"),
		func(ctx context.Context, source *countedSource) (string, error) {
			source.digestSource = dead
			return digest(ctx, source)
		})
	if !errors.Is(err, ErrTimeout) || !errors.Is(err, ErrHung) {
		t.Errorf("got %v, want %v and %v", err, ErrTimeout, ErrHung)
	}
}
