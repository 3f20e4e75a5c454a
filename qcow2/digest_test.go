package qcow2_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

const digestPiece = 4 * mib

// digestOf is the definition, word for word.
func digestOf(data []byte) string {
	var sums []byte
	for len(data) > 0 {
		n := min(len(data), digestPiece)
		sum := sha256.Sum256(data[:n])
		sums = append(sums, sum[:]...)
		data = data[n:]
	}
	root := sha256.Sum256(sums)
	return "sha256-4m:" + hex.EncodeToString(root[:])
}

// random returns bytes that depend on the seed alone.
func random(seed uint64, n int) []byte {
	data := make([]byte, n)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}), data); err != nil {
		panic(err)
	}
	return data
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// fileDigest and digest fail the test on an error.
func fileDigest(t testing.TB, tool *qcow2.Tool, path string) string {
	t.Helper()
	sum, err := tool.FileDigest(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func digest(t testing.TB, tool *qcow2.Tool, path string, backing ...qcow2.Layer) string {
	t.Helper()
	sum, err := tool.Digest(t.Context(), path, backing)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// convert copies an image of the given format to a new one.
func convert(t testing.TB, tool *qcow2.Tool, src, dst string, from, to qcow2.Format, backing ...qcow2.Layer) {
	t.Helper()
	o := qcow2.ConvertOptions{SourceFormat: from, TargetFormat: to, TargetCache: qcow2.CacheUnsafe}
	if len(backing) > 0 {
		o.Backing = backing
	}
	if err := tool.Convert(t.Context(), src, dst, o); err != nil {
		t.Fatal(err)
	}
}

func TestFileDigestSizes(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	for _, size := range []int{
		0, 1, 511, 4096, 64<<10 - 1, 64 << 10, 64<<10 + 1, digestPiece - 1, digestPiece, digestPiece + 1,
		3*digestPiece + 12345, 20 * digestPiece, 33*digestPiece - 1,
	} {
		path := filepath.Join(dir, strconv.Itoa(size))
		data := random(uint64(size), size)
		writeFile(t, path, data)
		if has, want := fileDigest(t, tool, path), digestOf(data); has != want {
			t.Errorf("%d bytes: %s, want %s", size, has, want)
		}
	}
}

// TestFileDigestKnown pins the definition with sums that sha256sum has computed.
func TestFileDigestKnown(t *testing.T) {
	t.Parallel()
	tool, path := newTool(t), filepath.Join(t.TempDir(), "f")
	for content, want := range map[string]string{
		"":    "sha256-4m:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"abc": "sha256-4m:4f8b42c22dd3729b519ba6f68d2da7cc5b2d606d05daed5ad5128cc03e6c6358",

		strings.Repeat("\x00", digestPiece):   "sha256-4m:c7e946d101855255d919ef0c70718633adf77d3dfb3adeeecf5d0cb4e951be58",
		strings.Repeat("\x00", digestPiece+1): "sha256-4m:14a4d47f23a30177885d9820122f17d2d3a55fe63f7f5c27b95f689e0b2accd6",
	} {
		writeFile(t, path, []byte(content))
		if has := fileDigest(t, tool, path); has != want {
			t.Errorf("%.10q: %s, want %s", content, has, want)
		}
	}
}

// TestFileDigestHoles has holes at all kinds of places, and the same file without any.
func TestFileDigestHoles(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	rnd := rand.New(rand.NewPCG(lab.Seed(t), 2))
	for i := range lab.Rounds(6/lab.Sparse(3), 30) {
		data := make([]byte, rnd.IntN(12*digestPiece))
		sparse := filepath.Join(dir, fmt.Sprint("sparse", i))
		file, err := os.Create(sparse)
		if err != nil {
			t.Fatal(err)
		}
		for range rnd.IntN(12) {
			offset := rnd.IntN(len(data) + 1)
			chunk := random(rnd.Uint64(), min(rnd.IntN(1<<rnd.IntN(23)+1), len(data)-offset))
			copy(data[offset:], chunk)
			if _, err := file.WriteAt(chunk, int64(offset)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(file.Truncate(int64(len(data))), file.Close()); err != nil {
			t.Fatal(err)
		}
		if has, want := fileDigest(t, tool, sparse), digestOf(data); has != want {
			t.Errorf("file %d, %d bytes: %s, want %s", i, len(data), has, want)
		}
	}
}

func TestFileDigestHugeHole(t *testing.T) {
	t.Parallel()
	tool, path := newTool(t), filepath.Join(t.TempDir(), "f")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	const size = 4 << 40
	if err := file.Truncate(size + 5); err != nil {
		lab.Missing(t, err.Error()) // the file system has a limit
	}
	if _, err := file.WriteAt([]byte("x"), size/2+7); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	zero := sha256.Sum256(make([]byte, digestPiece))
	sums := bytes.Repeat(zero[:], size/digestPiece)
	middle := make([]byte, digestPiece)
	middle[7] = 'x'
	sum := sha256.Sum256(middle)
	copy(sums[len(sums)/2:], sum[:])
	last := sha256.Sum256(make([]byte, 5))
	root := sha256.Sum256(append(sums, last[:]...))
	if has, want := fileDigest(t, tool, path), "sha256-4m:"+hex.EncodeToString(root[:]); has != want {
		t.Errorf("%s, want %s", has, want)
	}
}

func TestFileDigestRefuses(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	file, link, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	writeFile(t, file, []byte("x"))
	if err := errors.Join(os.Symlink(file, link), syscall.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		link: qcow2.ErrNotRegular, fifo: qcow2.ErrNotRegular, dir: qcow2.ErrNotRegular, "/dev/null": qcow2.ErrNotRegular,
		filepath.Join(dir, "none"): qcow2.ErrNotFound,
	} {
		if sum, err := tool.FileDigest(t.Context(), path); !errors.Is(err, want) || sum != "" {
			t.Errorf("%s: %q, %v, want %v", path, sum, err, want)
		}
	}
}

func TestFileDigestCancel(t *testing.T) {
	t.Parallel()
	tool, path := newTool(t), filepath.Join(t.TempDir(), "f")
	writeFile(t, path, nil)
	if err := os.Truncate(path, 1<<43); err != nil {
		lab.Missing(t, err.Error())
	}
	why := errors.New("why")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
	if _, err := tool.FileDigest(ctx, path); err != nil && !errors.Is(err, why) {
		t.Errorf("during: %v", err)
	}
	cancel(why)
	if _, err := tool.FileDigest(ctx, path); !errors.Is(err, why) {
		t.Errorf("before: %v", err)
	}
}

// TestDigestIsOfTheContent has one disk as a chain, restored as qcow2 and raw.
func TestDigestIsOfTheContent(t *testing.T) {
	t.Parallel()
	tool := newTool(t)
	n, stride := lab.Every(t, lab.Sparse(3))
	for _, size := range []int64{512, 1024, 64<<10 - 512, 64 << 10, digestPiece, digestPiece + 512, 13*mib + 3*512,
		16 * mib, 45*mib - 512} {
		if n++; n%stride != 0 {
			continue
		}
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			full, inc, top := filepath.Join(dir, "full"), filepath.Join(dir, "inc"), filepath.Join(dir, "top")
			raw := filepath.Join(dir, "raw0")
			data := random(uint64(size), int(size))
			clear(data[size/3 : size*3/4])
			writeFile(t, raw, data)
			convert(t, tool, raw, full, qcow2.FormatRaw, qcow2.FormatQcow2)
			create(t, tool, inc, qcow2.CreateOptions{BackingFile: "full", SizeBytes: size})
			write(t, inc, 7, size/2&^511, 512)
			create(t, tool, top, qcow2.CreateOptions{BackingFile: "inc", SizeBytes: size})
			write(t, top, 0, 0, 512)
			checkDigests(t, tool, dir, top, qcow2.Layer{Path: inc}, qcow2.Layer{Path: full})
		})
	}
}

// checkDigests compares the digest of a chain with those of what is restored from it.
func checkDigests(t *testing.T, tool *qcow2.Tool, dir, top string, backing ...qcow2.Layer) {
	t.Helper()
	raw, restored, compressed := filepath.Join(dir, "raw"), filepath.Join(dir, "restored"),
		filepath.Join(dir, "compressed")
	convert(t, tool, top, raw, qcow2.FormatQcow2, qcow2.FormatRaw, backing...)
	convert(t, tool, raw, restored, qcow2.FormatRaw, qcow2.FormatQcow2)
	err := tool.Convert(t.Context(), raw, compressed, qcow2.ConvertOptions{
		SourceFormat: qcow2.FormatRaw, Compress: true, ClusterSizeBytes: 4096,
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := digestOf(data)
	for name, has := range map[string]string{
		"raw file": fileDigest(t, tool, raw), "chain": digest(t, tool, top, backing...),
		"restored": digest(t, tool, restored), "compressed": digest(t, tool, compressed),
	} {
		if has != want {
			t.Errorf("%s: %s, want %s", name, has, want)
		}
	}
}

// TestDigestGrownDisk has layers that are larger and smaller than the one above.
func TestDigestGrownDisk(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	full, inc, top := filepath.Join(dir, "full"), filepath.Join(dir, "inc"), filepath.Join(dir, "top")
	create(t, tool, full, qcow2.CreateOptions{SizeBytes: 9*mib + 512})
	write(t, full, 1, 0, 9*mib+512)
	create(t, tool, inc, qcow2.CreateOptions{SizeBytes: 7*mib + 1024, BackingFile: "full"})
	write(t, inc, 2, 5*mib, 512)
	create(t, tool, top, qcow2.CreateOptions{SizeBytes: 30*mib + 512, BackingFile: "inc"})
	write(t, top, 3, 22*mib, 4096)
	checkDigests(t, tool, dir, top, qcow2.Layer{Path: inc}, qcow2.Layer{Path: full})
}

func TestDigestRawLayer(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	base, top := filepath.Join(dir, "base"), filepath.Join(dir, "top")
	data := random(3, 6*mib)
	writeFile(t, base, data)
	create(t, tool, top, qcow2.CreateOptions{SizeBytes: 10 * mib, BackingFile: "base", BackingFormat: qcow2.FormatRaw})
	write(t, top, 9, mib, 512)
	checkDigests(t, tool, dir, top, qcow2.Layer{Path: base, Format: qcow2.FormatRaw})
}

func TestDigestEmptyImage(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	path := filepath.Join(dir, "i")
	if out, err := run("qemu-img", "create", "-q", "-f", "qcow2", path, "0"); err != nil {
		t.Fatal(err, out)
	}
	if has, want := digest(t, tool, path), digestOf(nil); has != want {
		t.Errorf("no bytes: %s, want %s", has, want)
	}
	large := filepath.Join(dir, "large")
	create(t, tool, large, qcow2.CreateOptions{SizeBytes: 40 << 30})
	zero := sha256.Sum256(make([]byte, digestPiece))
	root := sha256.Sum256(bytes.Repeat(zero[:], 40<<30/digestPiece))
	if has, want := digest(t, tool, large), "sha256-4m:"+hex.EncodeToString(root[:]); has != want {
		t.Errorf("nothing written: %s, want %s", has, want)
	}
}

// TestDigestIgnoresLinks gives other layers than the header names.
func TestDigestIgnoresLinks(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	full, _, top := chain(t, tool, dir)
	if err := os.Remove(filepath.Join(dir, "inc1")); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 16*mib)
	copy(want[2*mib:], bytes.Repeat([]byte{3}, 64<<10))
	for _, none := range [][]qcow2.Layer{nil, {}} {
		if has := digest(t, tool, top, none...); has != digestOf(want) {
			t.Errorf("alone: %s, want %s", has, digestOf(want))
		}
	}
	copy(want, bytes.Repeat([]byte{1}, 2*mib))
	copy(want[2*mib+64<<10:], bytes.Repeat([]byte{1}, mib-64<<10))
	if has := digest(t, tool, top, qcow2.Layer{Path: full}); has != digestOf(want) {
		t.Errorf("over full: %s, want %s", has, digestOf(want))
	}
}

// TestDigestSeesEveryByte flips one byte at a time.
func TestDigestSeesEveryByte(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	const size = 11*mib + 512
	raw, top := filepath.Join(dir, "raw"), filepath.Join(dir, "top")
	data := random(5, size)
	clear(data[3*mib : 9*mib])
	writeFile(t, raw, data)
	convert(t, tool, raw, top, qcow2.FormatRaw, qcow2.FormatQcow2)
	before := digest(t, tool, top)
	rnd := rand.New(rand.NewPCG(lab.Seed(t), 6))
	offsets := []int{0, size - 1, 3*mib - 1, 3 * mib, digestPiece - 1, digestPiece, 2*digestPiece - 1, 2 * digestPiece,
		9*mib - 1, 9 * mib}
	for range lab.Rounds(3, 30) {
		offsets = append(offsets, rnd.IntN(size))
	}
	for _, offset := range offsets {
		old := data[offset]
		flipped := old ^ byte(1+rnd.IntN(255))
		write(t, top, flipped, int64(offset), 1)
		data[offset] = flipped
		after := digest(t, tool, top)
		if after == before || after != digestOf(data) {
			t.Errorf("byte %d: before %s, after %s", offset, before, after)
		}
		write(t, top, old, int64(offset), 1)
		data[offset] = old
	}
	if after := digest(t, tool, top); after != before {
		t.Errorf("flipped back: %s, want %s", after, before)
	}
}

// TestDigestRandomChains compares with qemu-img's own view of random chains.
func TestDigestRandomChains(t *testing.T) {
	t.Parallel()
	tool := newTool(t)
	first := lab.Seed(t)
	for n := range lab.Rounds(2/lab.Sparse(2), 6) {
		seed := first + uint64(n)
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 8))
			dir := t.TempDir()
			var layers []qcow2.Layer
			for i := range 4 {
				name := filepath.Join(dir, strconv.Itoa(i))
				size := int64(1+rnd.IntN(60000)) * 512
				o := qcow2.CreateOptions{SizeBytes: size, ClusterSizeBytes: 1 << (9 + rnd.IntN(13))}
				if i > 0 {
					o.BackingFile = strconv.Itoa(i - 1)
				}
				create(t, tool, name, o)
				for range 8 {
					offset := rnd.Int64N(size)
					write(t, name, byte(rnd.IntN(3)), offset, 1+rnd.Int64N(min(size-offset, 3*mib)))
				}
				layers = append([]qcow2.Layer{{Path: name}}, layers...)
			}
			checkDigests(t, tool, dir, layers[0].Path, layers[1:]...)
		})
	}
}

func TestDigestRefuses(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	full, inc1, inc2 := chain(t, tool, dir)
	noise := filepath.Join(dir, "noise")
	writeFile(t, noise, random(1, mib))
	for name, c := range map[string]struct {
		path    string
		backing []qcow2.Layer
		want    error
	}{
		"missing image":    {filepath.Join(dir, "none"), nil, qcow2.ErrNotFound},
		"missing layer":    {inc2, []qcow2.Layer{{Path: filepath.Join(dir, "none")}}, qcow2.ErrNotFound},
		"image is noise":   {noise, nil, qcow2.ErrFormat},
		"layer is noise":   {inc2, []qcow2.Layer{{Path: inc1}, {Path: noise}}, qcow2.ErrFormat},
		"layer is no vmdk": {inc2, []qcow2.Layer{{Path: inc1, Format: "vmdk"}, {Path: full}}, qcow2.ErrBackingFile},
		"guessed layer":    {inc2, []qcow2.Layer{{Path: inc1, Format: qcow2.FormatAuto}}, qcow2.ErrInvalidOption},
		"layer under raw": {inc2, []qcow2.Layer{{Path: inc1, Format: qcow2.FormatRaw}, {Path: full}},
			qcow2.ErrInvalidOption},
		"image is a folder": {dir, nil, qcow2.ErrNotRegular},
		"not UTF-8":         {dir + "/\xff", nil, qcow2.ErrBadName},
		"no name":           {"", nil, qcow2.ErrBadName},
	} {
		sum, err := tool.Digest(t.Context(), c.path, c.backing)
		if !errors.Is(err, c.want) || sum != "" {
			t.Errorf("%s: %q, %v, want %v", name, sum, err, c.want)
		}
	}
}

func TestDigestLocked(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	full, inc1, inc2 := chain(t, tool, dir)
	release := openForWriting(t, inc2, qcow2.FormatQcow2)
	layers := []qcow2.Layer{{Path: inc1}, {Path: full}}
	if _, err := tool.Digest(t.Context(), inc2, layers); !errors.Is(err, qcow2.ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
	release()
	digest(t, tool, inc2, layers...)
}

func TestDigestHostileNames(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	plain := filepath.Join(dir, "0")
	create(t, tool, plain, qcow2.CreateOptions{})
	write(t, plain, 5, mib, mib)
	want := digest(t, tool, plain)
	data, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range hostileNames {
		path := filepath.Join(dir, name)
		writeFile(t, path, data)
		if has := digest(t, tool, path); has != want {
			t.Errorf("%q: %s, want %s", name, has, want)
		}
		top := filepath.Join(dir, "top")
		create(t, tool, top, qcow2.CreateOptions{})
		if has := digest(t, tool, top, qcow2.Layer{Path: path}); has != want {
			t.Errorf("layer %q: %s, want %s", name, has, want)
		}
		has, want := fileDigest(t, tool, path), digestOf(data)
		if has != want {
			t.Errorf("file %q: %s, want %s", name, has, want)
		}
		if err := errors.Join(os.Remove(top), os.Remove(path)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDigestDamaged has a cluster map that points nowhere, and a file cut short.
func TestDigestDamaged(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	path := filepath.Join(dir, "i")
	create(t, tool, path, qcow2.CreateOptions{})
	write(t, path, 1, 0, 4*mib)
	h, err := qcow2.ReadHeaderFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte{0x80, 0, 0, 0, 0, 0, 2, 1}, h.L1OffsetBytes); err != nil { // not aligned
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if sum, err := tool.Digest(t.Context(), path, nil); !errors.Is(err, qcow2.ErrIO) {
		t.Errorf("%q, %v, want ErrIO", sum, err)
	}
}

// TestDigestCancel ends the context at many moments; nothing may be left of the call.
func TestDigestCancel(t *testing.T) {
	lab.Further(t)
	tool, dir := newTool(t), t.TempDir()
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	path := filepath.Join(dir, "i")
	create(t, tool, path, qcow2.CreateOptions{SizeBytes: 200 * mib})
	write(t, path, 1, 0, 200*mib)
	why := errors.New("why")
	done := false
	for after := time.Duration(0); !done; after += time.Millisecond + after/4 {
		ctx, cancel := context.WithCancelCause(t.Context())
		timer := time.AfterFunc(after, func() { cancel(why) })
		sum, err := tool.Digest(ctx, path, nil)
		done = timer.Stop()
		cancel(nil)
		if err != nil &&
			(!errors.Is(err, why) || !errors.Is(err, context.Canceled) || errors.Is(err, qcow2.ErrHung) || sum != "") {
			t.Errorf("after %s: %q, %v", after, sum, err)
		}
		if n := processesWith(t, path); n != 0 {
			t.Errorf("after %s: %d processes left", after, n)
		}
		if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
			t.Errorf("after %s: left %v, %v", after, left, err)
		}
	}
}

func TestDigestLongTempDir(t *testing.T) {
	tool, dir := newTool(t), t.TempDir()
	temp := filepath.Join(dir, strings.Repeat("x", 120))
	if err := os.Mkdir(temp, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", temp)
	path := filepath.Join(dir, "i")
	create(t, tool, path, qcow2.CreateOptions{})
	if has, want := digest(t, tool, path), digestOf(make([]byte, 16*mib)); has != want {
		t.Errorf("%s, want %s", has, want)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// TestDigestStrangeServers has programs in the place of qemu-nbd.
func TestDigestStrangeServers(t *testing.T) {
	t.Parallel()
	newTool(t)
	path := filepath.Join(t.TempDir(), "i")
	writeFile(t, path, nil)
	for body, want := range map[string]error{
		"exit 0":     nil,
		"kill -9 $$": nil,
		"echo 'Could not read L1 table: Input/output error' >&2; exit 1": qcow2.ErrIO,
		"exec sleep 1000": qcow2.ErrTimeout,
	} {
		cfg := qcow2.Config{QemuNBD: script(t, body)}
		if errors.Is(want, qcow2.ErrTimeout) {
			cfg.InspectTimeout = 300 * time.Millisecond
		}
		tool := newToolWith(t, cfg)
		_, err := tool.Digest(t.Context(), path, nil)
		if err == nil || want != nil && !errors.Is(err, want) || errors.Is(err, qcow2.ErrHung) {
			t.Errorf("%q: %v, want %v", body, err, want)
		}
	}
	tool := newToolWith(t, qcow2.Config{QemuNBD: filepath.Join(t.TempDir(), "none")})
	if _, err := tool.Digest(t.Context(), path, nil); !errors.Is(err, qcow2.ErrToolMissing) {
		t.Errorf("no server: %v, want ErrToolMissing", err)
	}
}

// benchmarkBytes is the size of the image that the benchmarks read from the page cache.
const benchmarkBytes = 2 << 30

// benchmarkImage is full of bytes that do not compress, half of them in a layer below.
func benchmarkImage(b *testing.B, tool *qcow2.Tool) (raw, top string, backing qcow2.Layer) {
	b.Helper()
	dir := b.TempDir()
	raw, full, top := filepath.Join(dir, "raw"), filepath.Join(dir, "full"), filepath.Join(dir, "top")
	file, err := os.Create(raw)
	if err != nil {
		b.Fatal(err)
	}
	_, err = io.CopyN(file, rand.NewChaCha8([32]byte{1}), benchmarkBytes)
	if err := errors.Join(err, file.Close()); err != nil {
		b.Fatal(err)
	}
	convert(b, tool, raw, full, qcow2.FormatRaw, qcow2.FormatQcow2)
	create(b, tool, top, qcow2.CreateOptions{SizeBytes: benchmarkBytes, BackingFile: "full"})
	for offset := int64(0); offset < benchmarkBytes; offset += benchmarkBytes / 8 {
		write(b, top, 0xa5, offset, benchmarkBytes/16)
	}
	b.SetBytes(benchmarkBytes)
	return raw, top, qcow2.Layer{Path: full}
}

func BenchmarkFileDigest(b *testing.B) {
	tool := newTool(b)
	raw, _, _ := benchmarkImage(b, tool)
	for b.Loop() {
		fileDigest(b, tool, raw)
	}
}

func BenchmarkDigest(b *testing.B) {
	tool := newTool(b)
	_, top, backing := benchmarkImage(b, tool)
	for b.Loop() {
		digest(b, tool, top, backing)
	}
}

// convertToNothing copies an image to where nothing is written.
func convertToNothing(b *testing.B, source string) {
	b.Helper()
	out, err := run("qemu-img", "convert", "-n", "-W", "-m", "16", "--image-opts", "--target-image-opts", source,
		fmt.Sprintf("driver=null-co,size=%d", int64(benchmarkBytes)))
	if err != nil {
		b.Fatal(err, out)
	}
}

// BenchmarkConvertToNothing is what BenchmarkDigest is measured against: QEMU reads, and nobody hashes.
func BenchmarkConvertToNothing(b *testing.B) {
	tool := newTool(b)
	_, top, _ := benchmarkImage(b, tool)
	for b.Loop() {
		convertToNothing(b, "driver=qcow2,file.filename="+top)
	}
}

// BenchmarkConvertNBDToNothing is the same with a qemu-nbd between, as the digest has it.
func BenchmarkConvertNBDToNothing(b *testing.B) {
	tool := newTool(b)
	_, top, _ := benchmarkImage(b, tool)
	dir, err := os.MkdirTemp("", "b") //nolint:usetesting // a socket's path must be short
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	server, err := tool.ServeNBD(b.Context(), qcow2.NBDOptions{Path: top, Socket: filepath.Join(dir, "s"), ReadOnly: true})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		convertToNothing(b, "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path="+server.Socket())
	}
	if err := server.Close(); err != nil {
		b.Error(err)
	}
}
