package qcow2_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// half is data of which every cluster compresses to about a half.
func half(seed uint64, n int) []byte {
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	p := make([]byte, n)
	for at := 0; at < n; at += 64 << 10 {
		_, _ = random.Read(p[at:min(at+32<<10, n)])
	}
	return p
}

// What is written to a compressed target is in compressed clusters, also where the disk ends within one, and
// what doesn't compress is there too. Plain tools read it.
func TestCompressedTarget(t *testing.T) {
	t.Parallel()
	const size = 4*mib + 512
	tool, dir := newTool(t), t.TempDir()
	path := filepath.Join(dir, "t")
	server, client := targetClient(t, tool, qcow2.NewTarget{
		File: fresh(t, path), SizeBytes: size, CompressionType: "zstd",
	})
	want := make([]byte, size)
	copy(want, half(1, mib))
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want[mib : mib+128<<10]) // doesn't compress
	copy(want[4*mib:], bytes.Repeat([]byte{7}, 512))
	for _, r := range [][2]int{{0, mib}, {mib, mib + 128<<10}, {4 * mib, size}} {
		if err := client.WriteAt(want[r[0]:r[1]], int64(r[0])); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(client.Zero(2*mib, mib), client.Flush()); err != nil {
		t.Fatal(err)
	}
	client.Disconnect()
	if err := server.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := tool.Info(t.Context(), path, qcow2.InfoOptions{})
	if err != nil || info.CompressionType != "zstd" || info.ActualSizeBytes > mib {
		t.Errorf("%+v, %v", info, err)
	}
	if r, err := tool.Check(t.Context(), path, qcow2.CheckOptions{}); err != nil || !r.Whole() {
		t.Errorf("%+v, %v", r, err)
	}
	raw := filepath.Join(dir, "raw")
	if out, err := run("qemu-img", "convert", "-O", "raw", path, raw); err != nil {
		t.Fatal(err, out)
	}
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes that differ: %v", len(got), err)
	}
}

// A QEMU that was built without the compression, its filter or LUKS is told by its error.
func TestQEMULacksADriver(t *testing.T) {
	t.Parallel()
	for _, word := range []string{"zstd", "compress", "luks"} {
		tool := newToolWith(t, qcow2.Config{
			StorageDaemon: script(t, `sed -u 's/"`+word+`"/"nosuch"/' | qemu-storage-daemon "$@"`), Unconfined: true,
		})
		target := qcow2.NewTarget{
			File: fresh(t, filepath.Join(t.TempDir(), "t")), SizeBytes: mib, CompressionType: "zstd",
			Secret: qcow2.NewSecret("s"),
		}
		if _, err := tool.ServeTargets(t.Context(), []qcow2.NewTarget{target}); !errors.Is(err, qcow2.ErrUnsupported) {
			t.Errorf("without %s: got %v, want ErrUnsupported", word, err)
		}
	}
}
