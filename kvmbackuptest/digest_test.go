package kvmbackuptest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestDigestKnown pins the definition with the table of docs/digest.md.
func TestDigestKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for digest, data := range map[string][]byte{
		"sha256-4m:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": nil,
		"sha256-4m:4f8b42c22dd3729b519ba6f68d2da7cc5b2d606d05daed5ad5128cc03e6c6358": []byte("abc"),
		"sha256-4m:c7e946d101855255d919ef0c70718633adf77d3dfb3adeeecf5d0cb4e951be58": make([]byte, digestPiece),
		"sha256-4m:14a4d47f23a30177885d9820122f17d2d3a55fe63f7f5c27b95f689e0b2accd6": make([]byte, digestPiece+1),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if has, err := (Images{}).FileDigest(t.Context(), path); err != nil || has != digest {
			t.Errorf("%d bytes: %s, %v, want %s", len(data), has, err, digest)
		}
	}
}

// TestDigestIsTheRealOne: package qcow2 has the same digests for chains that the simulator writes, for the images that
// the real qemu-img makes of them, and for the files of both.
func TestDigestIsTheRealOne(t *testing.T) {
	tool, err := qcow2.New(qcow2.Config{})
	if err != nil {
		lab.Missing(t, "no qemu-img: ", err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 4 {
		dir := t.TempDir()
		full, inc, raw, flat := filepath.Join(dir, "full"), filepath.Join(dir, "inc"), filepath.Join(dir, "raw"),
			filepath.Join(dir, "flat")
		writeRandom(t, rnd, full, "")
		writeRandom(t, rnd, inc, "full")
		below := []qcow2.Layer{{Path: full}}
		toRaw := qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw, Backing: below}
		err := errors.Join(tool.Convert(t.Context(), inc, raw, toRaw),
			tool.Convert(t.Context(), raw, flat, qcow2.ConvertOptions{SourceFormat: qcow2.FormatRaw}))
		if err != nil {
			t.Fatal(err)
		}
		content := sameDigest(t, tool, inc, below)
		if flattened := sameDigest(t, tool, flat, []qcow2.Layer{}); flattened != content {
			t.Errorf("the chain has %s, qemu-img's image of it %s", content, flattened)
		}
		if file := sameFileDigest(t, tool, raw); file != content {
			t.Errorf("the chain has %s, the raw file %s", content, file)
		}
		sameFileDigest(t, tool, full)
		sameFileDigest(t, tool, flat)
		sameDigest(t, tool, inc, nil) // what the links say isn't followed
	}
}

// writeRandom writes an image of any size up to 24 MiB, some of whose clusters are written, and some cleared.
func writeRandom(t *testing.T, rnd *rand.Rand, path, backing string) {
	t.Helper()
	im := image{size: 512 * (1 + rnd.Int64N(24<<20/512)), backing: backing, clusters: map[int64][]byte{}}
	for range rnd.IntN(12) {
		im.clusters[rnd.Int64N((im.size+ClusterBytes-1)/ClusterBytes)] = data(rnd.Uint64())
		im.clusters[rnd.Int64N((im.size+ClusterBytes-1)/ClusterBytes)] = nil
	}
	if err := writeImage(path, im, true); err != nil {
		t.Fatal(err)
	}
}

func sameDigest(t *testing.T, tool *qcow2.Tool, path string, below []qcow2.Layer) string {
	t.Helper()
	want, err := tool.Digest(t.Context(), path, below)
	if err != nil {
		t.Fatal(err)
	}
	if has, err := (Images{}).Digest(t.Context(), path, below); err != nil || has != want {
		t.Errorf("%s over %v: %s, %v, want %s", path, below, has, err, want)
	}
	return want
}

func sameFileDigest(t *testing.T, tool *qcow2.Tool, path string) string {
	t.Helper()
	want, err := tool.FileDigest(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if has, err := (Images{}).FileDigest(t.Context(), path); err != nil || has != want {
		t.Errorf("%s: %s, %v, want %s", path, has, err, want)
	}
	return want
}

// TestDigestErrors are those of qcow2.Tool.
func TestDigestErrors(t *testing.T) {
	dir := t.TempDir()
	file, link, none := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "none")
	if err := errors.Join(os.WriteFile(file, bytes.Repeat([]byte("x"), 1024), 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	fileDigest, deviceDigest := Images{}.FileDigest, func(path string) (string, error) {
		return Images{}.DeviceDigest(t.Context(), path, 512)
	}
	for name, c := range map[string]struct {
		digest func() (string, error)
		want   error
	}{
		"no file":            {func() (string, error) { return fileDigest(t.Context(), none) }, qcow2.ErrNotFound},
		"a link":             {func() (string, error) { return fileDigest(t.Context(), link) }, qcow2.ErrNotRegular},
		"a folder":           {func() (string, error) { return fileDigest(t.Context(), dir) }, qcow2.ErrNotRegular},
		"no image":           {func() (string, error) { return Images{}.Digest(t.Context(), none, nil) }, qcow2.ErrNotFound},
		"no qcow2":           {func() (string, error) { return Images{}.Digest(t.Context(), file, nil) }, qcow2.ErrFormat},
		"no device":          {func() (string, error) { return deviceDigest(none) }, qcow2.ErrNotFound},
		"a file as a device": {func() (string, error) { return deviceDigest(file) }, qcow2.ErrNotRegular},
		"a character device": {func() (string, error) { return deviceDigest("/dev/null") }, qcow2.ErrNotRegular},
	} {
		got, err := c.digest()
		if !errors.Is(err, c.want) || got != "" {
			t.Errorf("%s: %q, %v, want %v", name, got, err, c.want)
		}
	}
}
