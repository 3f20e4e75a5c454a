package qcow2_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// A sealed index opens under its own key, as it was sealed, and as nothing else; it shows nothing.
func TestSealedIndex(t *testing.T) {
	t.Parallel()
	const size = 20<<20 + 512
	sums := [][32]byte{{1}, {}, sha256.Sum256(make([]byte, qcow2.IndexPieceBytes)), {4}, {5}, {6}}
	index, err := qcow2.MakeIndex(size, func(piece, _ int64) ([32]byte, error) { return sums[piece], nil })
	lab.OK(t, err)
	lab.Equal(t, "known", index.Known(0) && !index.Known(1) && index.Known(2) && index.Zero(2) && !index.Known(6), true)
	lab.Equal(t, "unknown", index.UnknownBytes(), qcow2.IndexPieceBytes)
	key, other := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32)
	data, err := index.Seal(key)
	lab.OK(t, err)
	if bytes.Contains(data, sums[0][:]) {
		t.Error("a sum is in the clear")
	}
	file := filepath.Join(t.TempDir(), "index")
	lab.OK(t, os.WriteFile(file, data, 0o600))
	tool, err := qcow2.New(qcow2.Config{})
	lab.OK(t, err)
	again, err := tool.ReadSealedIndex(t.Context(), file, key)
	lab.OK(t, err)
	for i, sum := range sums {
		length := min(int64(qcow2.IndexPieceBytes), size-int64(i)*qcow2.IndexPieceBytes)
		lab.Equal(t, "a sum", again.Is(int64(i), length, sum), true)
		lab.Equal(t, "another piece's", again.Is(int64(i), length, [32]byte{77}), false)
	}
	if _, err := tool.ReadSealedIndex(t.Context(), file, other); !errors.Is(err, qcow2.ErrIndex) {
		t.Errorf("under another key: %v", err)
	}
	if _, err := qcow2.OpenIndex(bytes.Clone(data), key, size+512); !errors.Is(err, qcow2.ErrIndex) {
		t.Errorf("of another size: %v", err)
	}
	if _, err := qcow2.OpenIndex(bytes.Clone(data), key[:31], size); !errors.Is(err, qcow2.ErrInvalidOption) {
		t.Errorf("a short key: %v", err)
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1
		if _, err := qcow2.OpenIndex(bad, key, size); !errors.Is(err, qcow2.ErrIndex) {
			t.Fatalf("with byte %d changed: %v", i, err)
		}
		if _, err := qcow2.OpenIndex(bytes.Clone(data[:i]), key, size); !errors.Is(err, qcow2.ErrIndex) {
			t.Fatalf("cut off at %d: %v", i, err)
		}
	}
}

// Of a chain whose top alone is read, what that has whole is known, what it has nothing of is as it was, and what it
// has a part of isn't known.
func TestOwnIndex(t *testing.T) {
	t.Parallel()
	lab.Need(t, "qemu-img", "qemu-nbd", "qemu-io", "qemu-storage-daemon")
	tool, err := qcow2.New(qcow2.Config{})
	lab.OK(t, err)
	const piece = qcow2.IndexPieceBytes
	dir := t.TempDir()
	image := func(name, backing string, size int64, commands ...string) qcow2.Layer {
		path := filepath.Join(dir, name)
		lab.OK(t, tool.Create(t.Context(), path, qcow2.CreateOptions{SizeBytes: size, BackingFile: backing}))
		for _, c := range commands {
			if out, err := exec.CommandContext(t.Context(), "qemu-io", "-f", "qcow2", "-c", c, path).
				CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", c, err, out)
			}
		}
		return qcow2.Layer{Path: path}
	}
	full := image("full", "", 38<<20, "write -P 1 0 20M", "write -P 2 30M 1M")
	_, whole, err := tool.DigestIndex(t.Context(), full.Path, []qcow2.Layer{}, nil)
	lab.OK(t, err)
	below, err := tool.OwnIndex(t.Context(), full, nil)
	lab.OK(t, err)
	lab.Equal(t, "a full's index", below.Digest(), whole.Digest())

	top := image("top", "full", 50<<20, "write -P 3 4M 4M", "write -P 4 9M 64k", "write -z 12M 4M", "write -P 5 48M 64k")
	third := image("third", "top", 50<<20, "write -P 6 8M 4M")
	unknown := map[string][]int64{ // what is stored in part, and where the full ends
		"top": {2, 9, 12}, "third": {9, 12},
	}
	for _, chain := range [][]qcow2.Layer{{top, full}, {third, top, full}} {
		name := filepath.Base(chain[0].Path)
		below, err = tool.OwnIndex(t.Context(), chain[0], below)
		lab.OK(t, err)
		raw := filepath.Join(dir, "raw")
		lab.OK(t, tool.Convert(t.Context(), chain[0].Path, raw, qcow2.ConvertOptions{
			Backing: chain[1:], TargetFormat: qcow2.FormatRaw,
		}))
		content, err := os.ReadFile(raw)
		lab.OK(t, errors.Join(err, os.Remove(raw)))
		for i := range int64(13) {
			p := content[i*piece : min((i+1)*piece, 50<<20)]
			want := !slices.Contains(unknown[name], i)
			if below.Known(i) != want || below.Is(i, int64(len(p)), sha256.Sum256(p)) != want {
				t.Errorf("%s: piece %d is known: %v, and right: %v; want %v", name, i, below.Known(i),
					below.Is(i, int64(len(p)), sha256.Sum256(p)), want)
			}
		}
	}
}
