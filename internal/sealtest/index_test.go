package sealtest

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// meeting are images whose digest and index of one file each go on when the other has begun.
type meeting struct {
	kvmbackuptest.Images
	both sync.WaitGroup
}

func (m *meeting) arrive() error {
	m.both.Done()
	arrived := make(chan struct{})
	go func() { m.both.Wait(); close(arrived) }()
	select {
	case <-arrived:
		return nil
	case <-time.After(time.Minute):
		return errors.New("the other doesn't come")
	}
}

func (m *meeting) FileDigest(ctx context.Context, path string) (string, error) {
	if err := m.arrive(); err != nil {
		return "", err
	}
	return m.Images.FileDigest(ctx, path)
}

func (m *meeting) OwnIndex(ctx context.Context, top qcow2.Layer, below *qcow2.Index) (*qcow2.Index, error) {
	if err := m.arrive(); err != nil {
		return nil, err
	}
	return m.Images.OwnIndex(ctx, top, below)
}

// TestIndexBesideTheDigest: a new sealed file is read back at once for its digest and its index, which are those of its
// bytes.
func TestIndexBesideTheDigest(t *testing.T) {
	w := newWorld(t)
	w.cfg.IndexKey = kvmbackup.NewDataKey()
	m := &meeting{}
	w.cfg.Images = m
	for range 2 {
		m.both.Add(2)
		b := w.backup(sealed)
		file := w.repo.FilePath(b.Path, b.Volumes[0].File)
		digest, err := m.Images.FileDigest(t.Context(), file)
		lab.OK(t, err)
		lab.Equal(t, "the digest of "+file, b.Volumes[0].FileDigest, digest)
		if _, err := os.Stat(file + ".index"); err != nil {
			t.Error(err)
		}
	}
	w.cfg.Images = kvmbackuptest.Images{}
	if b := w.backup(compares()); b.Kind != kvmbackup.KindIncremental {
		t.Errorf("compared by the index it is %v: %v", b.Kind, b.Reasons)
	}
}
