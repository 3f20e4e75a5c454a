//go:build cgo

package realguest

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Model is what a disk holds: a sparse raw file written beside every write to the guest.
type Model struct {
	tb   testing.TB
	path string
}

func newModel(tb testing.TB, path string, size int64) *Model {
	tb.Helper()
	m := &Model{tb: tb, path: path}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		tb.Fatal(err)
	}
	m.resize(size)
	return m
}

// OpenModel returns the model that another process has kept at the path.
func OpenModel(tb testing.TB, path string) *Model { return &Model{tb: tb, path: path} }

func (m *Model) resize(size int64) {
	m.tb.Helper()
	if err := os.Truncate(m.path, size); err != nil {
		m.tb.Fatal(err)
	}
}

func (m *Model) fill(pattern byte, offset, length int64) {
	m.tb.Helper()
	f, err := os.OpenFile(m.path, os.O_WRONLY, 0)
	if err != nil {
		m.tb.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	block := bytes.Repeat([]byte{pattern}, 1<<20)
	for end := offset + length; offset < end; {
		n := min(int64(len(block)), end-offset)
		if _, err := f.WriteAt(block[:n], offset); err != nil {
			m.tb.Fatal(err)
		}
		offset += n
	}
}

// punch makes a hole, which reads as zeroes.
func (m *Model) punch(offset, length int64) {
	m.tb.Helper()
	f, err := os.OpenFile(m.path, os.O_WRONLY, 0)
	if err != nil {
		m.tb.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const keepSize, punchHole = 1, 2
	if err := syscall.Fallocate(int(f.Fd()), keepSize|punchHole, offset, length); err != nil {
		m.tb.Fatal(err)
	}
}

// Snapshot keeps the content as it is now, for a backup that is compared later.
func (m *Model) Snapshot() *Model {
	m.tb.Helper()
	f, err := os.CreateTemp(filepath.Dir(m.path), filepath.Base(m.path)+".*")
	if err != nil {
		m.tb.Fatal(err)
	}
	_ = f.Close()
	if out, err := exec.CommandContext(m.tb.Context(), "cp", "--sparse=always", "--reflink=auto", m.path,
		f.Name()).CombinedOutput(); err != nil {
		m.tb.Fatalf("copy model: %v: %s", err, out)
	}
	return &Model{tb: m.tb, path: f.Name()}
}

// Path is the raw file.
func (m *Model) Path() string { return m.path }

// Compare fails the test when the qcow2 image, with its backing chain, doesn't hold the model's bytes.
func (m *Model) Compare(tb testing.TB, image string) {
	tb.Helper()
	var info imageInfo
	if err := json.Unmarshal(qemuImg(tb, "info", "--output=json", "-f", "qcow2", image), &info); err != nil {
		tb.Fatal(err)
	}
	if stat, err := os.Stat(m.path); err != nil || stat.Size() != info.Size {
		tb.Errorf("%s has %d bytes, the disk had another size (%v)", filepath.Base(image), info.Size, err)
	}
	out, err := exec.CommandContext(tb.Context(), "qemu-img", "compare", "-f", "raw", "-F", "qcow2", m.path,
		image).CombinedOutput()
	if err != nil {
		tb.Errorf("%s does not hold what the disk held: %v: %s", filepath.Base(image), err, out)
	}
}

// Random fills the range with bytes that don't compress, in the model and the guest's image. The guest has to be
// stopped.
func (g *Guest) Random(device string, offset, length int64) {
	g.tb.Helper()
	m := g.Model(device)
	src, err := os.Open("/dev/urandom")
	g.must("random", err)
	defer func() { _ = src.Close() }()
	f, err := os.OpenFile(m.path, os.O_RDWR, 0)
	g.must("random", err)
	_, err = io.Copy(io.NewOffsetWriter(f, offset), io.LimitReader(src, length))
	g.must("random", err)
	g.must("random", f.Close())
	d := g.disk(device)
	qemuImg(g.tb, "convert", "-n", "-f", "raw", "-O", d.Format, m.path, d.path)
}

func qemuImg(tb testing.TB, args ...string) []byte {
	tb.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(tb.Context(), "qemu-img", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("qemu-img %q: %v: %s", args, err, stderr.String())
	}
	return out
}

func qemuImgBacking(tb testing.TB, path string) string {
	tb.Helper()
	var info imageInfo
	if err := json.Unmarshal(qemuImg(tb, "info", "-U", "--output=json", path), &info); err != nil {
		tb.Fatal(err)
	}
	return info.Backing
}
