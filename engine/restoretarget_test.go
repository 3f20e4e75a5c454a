package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/swap"
)

// TestTargetOfWorkThatHangs: what a restore that was left behind has published is not taken for somebody's file. It is
// taken back.
func TestTargetOfWorkThatHangs(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	lab.OK(t, err)
	path := filepath.Join(dir, "vda.qcow2")
	ctx, leave := context.WithCancel(t.Context())
	answers := make(chan struct{})
	_, err = swap.Do(ctx, 0, []string{path}, func(*swap.Work) (struct{}, error) {
		err := os.WriteFile(path, nil, 0o600)
		leave()
		<-answers
		return struct{}{}, err
	}, func(*swap.Work) { lab.OK(t, os.Remove(path)) })
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := lookAt(t.Context(), path); !errors.Is(err, swap.ErrHangs) {
		t.Errorf("error is %v, want %v", err, swap.ErrHangs)
	}
	close(answers)
	lab.Eventually(t, "the target is free", func() bool {
		found, err := lookAt(t.Context(), path)
		if err == nil && found.kind == targetFile {
			t.Fatal("what is taken back counts as a file that is there")
		}
		return err == nil
	})
}
