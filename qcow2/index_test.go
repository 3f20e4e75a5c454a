package qcow2_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// indexed makes an image with some data, and its index's file.
func indexed(t *testing.T, tool *qcow2.Tool, name string, size int64, commands ...string) (data []byte, digest string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	lab.OK(t, tool.Create(t.Context(), path, qcow2.CreateOptions{SizeBytes: size}))
	for _, c := range commands {
		if out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", c, path).
			CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", c, err, out)
		}
	}
	digest, index, err := tool.DigestIndex(t.Context(), path, []qcow2.Layer{}, nil)
	lab.OK(t, err)
	data, err = index.MarshalBinary()
	lab.OK(t, err)
	return data, digest
}

// An index proves itself by the digest on record: whatever else a file holds, it isn't used.
func TestIndexProvesItself(t *testing.T) {
	t.Parallel()
	lab.Need(t, "qemu-img", "qemu-nbd", "qemu-io")
	tool, err := qcow2.New(qcow2.Config{})
	lab.OK(t, err)
	data, digest := indexed(t, tool, "a", 300<<20+512, "write -P 1 0 9M", "write -P 2 200M 1M")
	other, otherDigest := indexed(t, tool, "b", 300<<20+512, "write -P 1 0 9M", "write -P 3 200M 1M")
	index, err := qcow2.ParseIndex(data, digest, 300<<20+512)
	lab.OK(t, err)
	lab.Equal(t, "size", index.SizeBytes(), 300<<20+512)
	lab.Equal(t, "digest", index.Digest(), digest)
	piece := make([]byte, qcow2.IndexPieceBytes)
	for i := range piece {
		piece[i] = 1
	}
	lab.Equal(t, "a piece that is so", index.Is(1, int64(len(piece)), sha256.Sum256(piece)), true)
	lab.Equal(t, "one that isn't", index.Is(2, int64(len(piece)), sha256.Sum256(piece)), false)
	lab.Equal(t, "zeroes", index.Zero(10) && !index.Zero(0) && !index.Zero(75), true)
	lab.Equal(t, "one of another length", index.Is(75, int64(len(piece)), sha256.Sum256(make([]byte, len(piece)))), false)
	lab.Equal(t, "one behind the end", index.Is(76, 0, sha256.Sum256(nil)), false)

	file := filepath.Join(t.TempDir(), "index")
	for name, c := range map[string]struct {
		data   []byte
		digest string
	}{
		"another's":        {other, digest},
		"another's digest": {data, otherDigest},
		"nothing":          {nil, digest},
		"cut off":          {data[:len(data)-1], digest},
		"no index":         {bytes.Repeat([]byte("x"), 1000), digest},
	} {
		if _, err := qcow2.ParseIndex(c.data, c.digest, 300<<20+512); !errors.Is(err, qcow2.ErrIndex) {
			t.Errorf("%s: %v", name, err)
		}
		lab.OK(t, os.WriteFile(file, c.data, 0o600))
		if _, err := tool.ReadIndex(t.Context(), file, c.digest); !errors.Is(err, qcow2.ErrIndex) {
			t.Errorf("%s, of a file: %v", name, err)
		}
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 0x10
		if _, err := qcow2.ParseIndex(bad, digest, 300<<20+512); !errors.Is(err, qcow2.ErrIndex) {
			t.Fatalf("with byte %d changed: %v", i, err)
		}
		sum := sha256.Sum256(bad[:len(bad)-sha256.Size]) // by somebody who knows the format
		copy(bad[len(bad)-sha256.Size:], sum[:])
		if _, err := qcow2.ParseIndex(bad, digest, 300<<20+512); !errors.Is(err, qcow2.ErrIndex) && i < len(bad)-sha256.Size {
			t.Fatalf("with byte %d changed and a new checksum: %v", i, err)
		}
	}
	lab.OK(t, os.WriteFile(file, data, 0o600))
	index, err = tool.ReadIndex(t.Context(), file, digest)
	lab.OK(t, err)
	lab.Equal(t, "digest of what was read", index.Digest(), digest)
	lab.OK(t, os.Symlink(file, file+".link"))
	if _, err := tool.ReadIndex(t.Context(), file+".link", digest); err == nil {
		t.Error("a link was followed")
	}
}

// FuzzParseIndex: nothing is accepted but what has the digest.
func FuzzParseIndex(f *testing.F) {
	f.Add([]byte("kvmbackup index1"), "sha256-4m:")
	f.Add([]byte("kvmbackup index2"), "sha256-4m:")
	f.Fuzz(func(t *testing.T, data []byte, digest string) {
		if x, err := qcow2.ParseIndex(data, digest, 0); err == nil && x.Digest() != digest {
			t.Fatal(fmt.Sprint("accepted ", x.Digest()))
		}
		sum := sha256.Sum256(data)
		if x, err := qcow2.ParseIndex(append(data, sum[:]...), digest, 0); err == nil && x.Digest() != digest {
			t.Fatal(fmt.Sprint("accepted ", x.Digest()))
		}
	})
}
