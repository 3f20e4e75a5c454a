package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

type extension struct {
	kind uint32
	data []byte
}

// buildImage builds the start of a qcow2 file: a header, extensions and a backing
// name, in 8 clusters of 64 KiB. L1 is in cluster 3, the refcount table in 1, a bitmap
// directory may go to cluster 5.
func buildImage(version int, backing string, extensions ...extension) []byte {
	be := binary.BigEndian
	image := make([]byte, 8<<16)
	be.PutUint32(image, 0x514649fb)
	be.PutUint32(image[4:], uint32(version))
	be.PutUint32(image[20:], 16)
	be.PutUint64(image[24:], 16*mib)
	be.PutUint32(image[36:], 1)
	be.PutUint64(image[40:], 3<<16)
	be.PutUint64(image[48:], 1<<16)
	be.PutUint32(image[56:], 1)
	end := 72
	if version >= 3 {
		be.PutUint32(image[96:], 4)
		be.PutUint32(image[100:], 104)
		be.PutUint64(image[88:], 1)
		end = 104
	}
	for _, e := range extensions {
		be.PutUint32(image[end:], e.kind)
		be.PutUint32(image[end+4:], uint32(len(e.data)))
		end += 8 + copy(image[end+8:], e.data)
		end = (end + 7) &^ 7
	}
	end += 8 // the end extension
	if backing != "" {
		be.PutUint64(image[8:], uint64(end))
		be.PutUint32(image[16:], uint32(len(backing)))
		copy(image[end:], backing)
	}
	return image
}

// bitmapsExtension points at a directory in cluster 5.
func bitmapsExtension(count uint32, size uint64) extension {
	data := make([]byte, 24)
	binary.BigEndian.PutUint32(data, count)
	binary.BigEndian.PutUint64(data[8:], size)
	binary.BigEndian.PutUint64(data[16:], 5<<16)
	return extension{0x23852875, data}
}

func bitmapEntry(name string, flags uint32, granularityBits byte) []byte {
	entry := make([]byte, (24+len(name)+7)&^7)
	binary.BigEndian.PutUint64(entry, 6<<16)
	binary.BigEndian.PutUint32(entry[8:], 1)
	binary.BigEndian.PutUint32(entry[12:], flags)
	entry[16], entry[17] = 1, granularityBits
	binary.BigEndian.PutUint16(entry[18:], uint16(len(name)))
	copy(entry[24:], name)
	return entry
}

// withBitmaps builds an image with a bitmap directory of the given entries.
func withBitmaps(entries ...[]byte) []byte {
	directory := bytes.Join(entries, nil)
	image := buildImage(3, "", bitmapsExtension(uint32(len(entries)), uint64(len(directory))))
	copy(image[5<<16:], directory)
	return image
}

func readHeader(image []byte) (qcow2.Header, error) {
	return qcow2.ReadHeader(bytes.NewReader(image), int64(len(image)))
}

func TestReadHeader(t *testing.T) {
	t.Parallel()
	h, err := readHeader(buildImage(3, "b,a:s\ne", extension{0xe2792aca, []byte("qcow2")},
		extension{0x6803f857, make([]byte, 48)}, extension{0x44415441, []byte("data.raw")}))
	if err != nil {
		t.Fatal(err)
	}
	if h.Version != 3 || h.VirtualSizeBytes != 16*mib || h.ClusterSizeBytes() != 64<<10 || h.BackingFile != "b,a:s\ne" ||
		h.BackingFormat != qcow2.FormatQcow2 || h.DataFile != "data.raw" || !h.ExternalDataFile() || h.RefcountBits != 16 ||
		h.L1Entries != 1 || h.L1OffsetBytes != 3<<16 || h.RefcountTableBytes != 1<<16 || h.Dirty() || h.Corrupt() ||
		h.Encrypted() {
		t.Errorf("header %+v", h)
	}
	if h, err := readHeader(buildImage(2, "base")); err != nil || h.Version != 2 || h.BackingFile != "base" ||
		h.BackingFormat != "" {
		t.Errorf("version 2: %+v, %v", h, err)
	}
}

// put returns an edit that writes a big-endian number.
func put(offset, width int, value uint64) func([]byte) []byte {
	return func(image []byte) []byte {
		number := binary.BigEndian.AppendUint64(nil, value)
		copy(image[offset:], number[8-width:])
		return image
	}
}

func cut(size int) func([]byte) []byte {
	return func(image []byte) []byte { return image[:size] }
}

func TestReadHeaderRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		edit func([]byte) []byte
		want error
	}{
		{"empty", cut(0), qcow2.ErrFormat},
		{"short magic", cut(7), qcow2.ErrFormat},
		{"magic", put(0, 4, 0x7f454c46), qcow2.ErrFormat},
		{"cut in header", cut(100), qcow2.ErrHeader},
		{"cut in cluster", cut(200), qcow2.ErrHeader},
		{"version 1", put(4, 4, 1), qcow2.ErrTooNew},
		{"version 4", put(4, 4, 4), qcow2.ErrTooNew},
		{"feature", put(72, 8, 1<<5), qcow2.ErrTooNew},
		{"small clusters", put(20, 4, 8), qcow2.ErrHeader},
		{"large clusters", put(20, 4, 22), qcow2.ErrHeader},
		{"huge clusters", put(20, 4, 1<<31), qcow2.ErrHeader},
		{"huge disk", put(24, 8, 1<<63), qcow2.ErrHeader},
		{"disk beyond L1", put(24, 8, 1<<40), qcow2.ErrHeader},
		{"encryption", put(32, 4, 3), qcow2.ErrHeader},
		{"L1 entries", put(36, 4, 1<<30), qcow2.ErrHeader},
		{"L1 beyond end", put(40, 8, 8<<16), qcow2.ErrHeader},
		{"L1 unaligned", put(40, 8, 3<<16+8), qcow2.ErrHeader},
		{"L1 negative", put(40, 8, 1<<63), qcow2.ErrHeader},
		{"L1 at 0", put(40, 8, 0), qcow2.ErrHeader},
		{"refcount table beyond end", put(48, 8, 1<<62), qcow2.ErrHeader},
		{"refcount table clusters", put(56, 4, 1<<20), qcow2.ErrHeader},
		{"no refcount table", put(56, 4, 0), qcow2.ErrHeader},
		{"snapshots", put(60, 4, 65537), qcow2.ErrHeader},
		{"refcount order", put(96, 4, 7), qcow2.ErrHeader},
		{"header length short", put(100, 4, 72), qcow2.ErrHeader},
		{"header length odd", put(100, 4, 107), qcow2.ErrHeader},
		{"header length huge", put(100, 4, 1<<31), qcow2.ErrHeader},
		{"backing in header", put(8, 8, 16), qcow2.ErrHeader},
		{"backing beyond cluster", put(8, 8, 1<<16), qcow2.ErrHeader},
		{"backing far away", put(8, 8, 1<<63), qcow2.ErrHeader},
		{"backing too long", put(16, 4, 1024), qcow2.ErrHeader},
		{"backing huge", put(16, 4, 1<<32-1), qcow2.ErrHeader},
		{"backing empty", put(16, 4, 0), qcow2.ErrHeader},
		{"extension too long", put(108, 4, 1<<31), qcow2.ErrHeader},
		{"format too long", put(108, 4, 17), qcow2.ErrHeader},
	} {
		image := buildImage(3, "base", extension{0xe2792aca, []byte("qcow2")}, extension{0x12345678, make([]byte, 64)})
		if _, err := readHeader(c.edit(image)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	twice := extension{0xe2792aca, []byte("raw")}
	if _, err := readHeader(buildImage(3, "base", twice, twice)); !errors.Is(err, qcow2.ErrHeader) {
		t.Errorf("format twice: got %v, want ErrHeader", err)
	}
}

// TestBitmapDirectory: where the bitmaps are is checked like any table, as QEMU reads it when it opens the image.
func TestBitmapDirectory(t *testing.T) {
	t.Parallel()
	if _, err := readHeader(withBitmaps(bitmapEntry("a", 2, 16))); err != nil {
		t.Error(err)
	}
	for name, edit := range map[string]func([]byte) []byte{
		"count":          put(104+8, 4, 65536),
		"directory size": put(104+16, 8, 1<<40),
		"directory away": put(104+24, 8, 1<<61),
	} {
		if _, err := readHeader(edit(withBitmaps(bitmapEntry("a", 2, 16)))); !errors.Is(err, qcow2.ErrHeader) {
			t.Errorf("%s: got %v, want ErrHeader", name, err)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	good := func() []byte {
		return buildImage(3, "./nbd:x", extension{0xe2792aca, []byte("qcow2")})
	}
	for _, c := range []struct {
		name  string
		image []byte
		want  qcow2.Expect
		err   error
	}{
		{"good", good(), qcow2.Expect{BackingFile: "nbd:x", VirtualSizeBytes: 16 * mib}, nil},
		{"unexpected backing", good(), qcow2.Expect{}, qcow2.ErrBackingMismatch},
		{"other backing", good(), qcow2.Expect{BackingFile: "other"}, qcow2.ErrBackingMismatch},
		{"other format", good(), qcow2.Expect{BackingFile: "nbd:x", BackingFormat: qcow2.FormatRaw},
			qcow2.ErrBackingMismatch},
		{"no format", buildImage(3, "base"), qcow2.Expect{BackingFile: "base"}, qcow2.ErrBackingMismatch},
		{"no backing", buildImage(3, ""), qcow2.Expect{BackingFile: "base"}, qcow2.ErrBackingMismatch},
		{"size", good(), qcow2.Expect{BackingFile: "nbd:x", VirtualSizeBytes: 1}, qcow2.ErrSizeMismatch},
		{"data file", buildImage(3, "", extension{0x44415441, []byte("/etc/shadow")}), qcow2.Expect{}, qcow2.ErrDataFile},
		{"unnamed data file", put(72, 8, 4)(buildImage(3, "")), qcow2.Expect{}, qcow2.ErrDataFile},
		{"corrupt", put(72, 8, 2)(buildImage(3, "")), qcow2.Expect{}, qcow2.ErrCorrupt},
		{"encrypted", put(32, 4, 2)(buildImage(3, "")), qcow2.Expect{}, qcow2.ErrEncrypted},
		{"snapshots", put(60, 4, 1)(buildImage(3, "")), qcow2.Expect{}, qcow2.ErrHeader},
		{"bitmaps", withBitmaps(bitmapEntry("b", 0, 9)), qcow2.Expect{}, qcow2.ErrHeader},
		{"allowed", put(32, 4, 2)(buildImage(3, "")), qcow2.Expect{AllowEncrypted: true}, nil},
	} {
		h, err := readHeader(c.image)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err := h.Validate(c.want); !errors.Is(err, c.err) || (c.err == nil && err != nil) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
	}
}

func TestReadHeaderFileRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, link, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := errors.Join(
		os.WriteFile(file, buildImage(3, ""), 0o600), os.Symlink(file, link), syscall.Mkfifo(fifo, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := qcow2.ReadHeaderFile(file); err != nil {
		t.Error(err)
	}
	for _, path := range []string{link, fifo, dir, "/dev/zero"} {
		if _, err := qcow2.ReadHeaderFile(path); !errors.Is(err, qcow2.ErrNotRegular) {
			t.Errorf("%s: got %v, want ErrNotRegular", path, err)
		}
	}
	if _, err := qcow2.ReadHeaderFile(file + "x"); !errors.Is(err, qcow2.ErrNotFound) {
		t.Errorf("missing: got %v, want ErrNotFound", err)
	}
}

// TestOneTableForAll: a file of a few clusters that has 16 TiB of data is refused by its header and its map, which are
// small.
func TestOneTableForAll(t *testing.T) {
	t.Parallel()
	lab.Need(t, "qemu-img", "qemu-io")
	path := filepath.Join(t.TempDir(), "a.qcow2")
	const entries = 1 << 15 // of 512 MiB each
	create(t, newTool(t), path, qcow2.CreateOptions{SizeBytes: entries << 29})
	write(t, path, 1, 0, 1<<16)
	h, err := qcow2.ReadHeaderFile(path)
	if err != nil || h.L1Entries != entries {
		t.Fatal(h, err)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	l1 := image[h.L1OffsetBytes:][:8*entries]
	for at, name := range map[uint64]string{
		0: "several entries", uint64(len(image)): "behind the end", 1 << 55: "far away", 512: "between clusters",
	} {
		bad := binary.BigEndian.Uint64(l1)
		if at != 0 {
			bad = 1<<63 | at
		}
		for i := 1; i < entries; i++ {
			binary.BigEndian.PutUint64(l1[8*i:], bad)
		}
		if err := os.WriteFile(path, image, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := qcow2.ReadHeaderFile(path); !errors.Is(err, qcow2.ErrHeader) {
			t.Errorf("%s: got %v, want ErrHeader", name, err)
		}
	}
}

// TestHeaderAgreesWithQEMU compares what is read here with what qemu-img says.
func TestHeaderAgreesWithQEMU(t *testing.T) {
	t.Parallel()
	tool, dir := newTool(t), t.TempDir()
	for i, options := range [][]string{
		{}, {"-o", "compat=0.10"}, {"-o", "cluster_size=512"}, {"-o", "cluster_size=2M"}, {"-o", "refcount_bits=1"},
		{"-o", "extended_l2=on,cluster_size=128k"}, {"-o", "lazy_refcounts=on,compression_type=zstd"},
		{"-o", "preallocation=metadata"}, {"-u", "-b", "base", "-F", "raw"}, {"-u", "-b", "json:{}"},
		{"-o", "data_file=" + filepath.Join(dir, "data")},
		{"-o", "encrypt.format=aes,encrypt.key-secret=s", "--object", "secret,id=s,data=x"},
	} {
		path := filepath.Join(dir, string(rune('a'+i)))
		args := append([]string{"create", "-q", "-f", "qcow2"}, options...)
		if slices.Contains(options, "json:{}") {
			args = append(args, "-F", "qcow2")
		}
		if out, err := run("qemu-img", append(args, path, "100M")...); err != nil {
			t.Fatalf("%v: %v %s", options, err, out)
		}
		h, err := qcow2.ReadHeaderFile(path)
		if err != nil {
			t.Errorf("%v: %v", options, err)
			continue
		}
		info, err := tool.Info(t.Context(), path, qcow2.InfoOptions{})
		if err != nil {
			t.Fatal(err)
		}
		compat := map[int]string{2: "0.10", 3: "1.1"}[h.Version]
		if h.VirtualSizeBytes != info.VirtualSizeBytes || h.ClusterSizeBytes() != info.ClusterSizeBytes ||
			h.BackingFile != info.BackingFile || h.BackingFormat != info.BackingFormat || h.ExtendedL2() != info.ExtendedL2 ||
			h.Encrypted() != info.Encrypted || h.ExternalDataFile() != (info.DataFile != "") || compat != info.Compat {
			t.Errorf("%v: header %+v\ninfo %+v", options, h, info)
		}
	}
}

// FuzzReadHeader puts its input where an image has its header and its bitmap directory;
// the rest of the file is zeroes, and its length is free.
func FuzzReadHeader(f *testing.F) {
	add := func(image []byte, size int) { f.Add(image[:512], image[5<<16:5<<16+256], size) }
	add(buildImage(2, "base"), 8<<16)
	add(buildImage(3, "base", extension{0xe2792aca, []byte("qcow2")}, extension{0x44415441, []byte("d")}), 8<<16)
	add(withBitmaps(bitmapEntry("a", 2, 16), bitmapEntry("b", 3, 9)), 8<<16)
	add(buildImage(3, ""), 100)
	whole := make([]byte, 8<<16)
	f.Fuzz(func(t *testing.T, header, directory []byte, length int) {
		if length < 0 || length > len(whole) || len(header) > 5<<16 || len(directory) > 3<<16 {
			return
		}
		clear(whole)
		copy(whole, header)
		copy(whole[5<<16:], directory)
		image := whole[:length]
		h, err := readHeader(image)
		if err != nil {
			return
		}
		if h.VirtualSizeBytes < 0 || h.ClusterBits < 9 || h.ClusterBits > 21 || len(h.BackingFile) > 1023 ||
			h.L1Entries > 0 && h.L1OffsetBytes+h.L1Entries*8 > int64(length) ||
			h.RefcountTableOffsetBytes+h.RefcountTableBytes > int64(length) {
			t.Errorf("accepted %+v in a file of %d bytes", h, length)
		}
		if err := h.Validate(qcow2.Expect{BackingFile: "x"}); h.BackingFile != "x" &&
			!errors.Is(err, qcow2.ErrBackingMismatch) {
			t.Errorf("validated %q as %q", h.BackingFile, "x")
		}
	})
}
