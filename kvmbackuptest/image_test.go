package kvmbackuptest

import (
	"errors"
	"maps"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

func data(seed uint64) []byte { return Pattern(seed, ClusterBytes) }

func TestImagesAreRealQcow2(t *testing.T) {
	dir := t.TempDir()
	full := image{size: 20*ClusterBytes + 512, clusters: map[int64][]byte{0: data(1), 3: data(2), 20: data(3)}}
	inc := image{size: 530 << 20, backing: "full.qcow2", clusters: map[int64][]byte{3: nil, 4: data(5), 8200: data(6)}}
	for name, im := range map[string]image{"full.qcow2": full, "inc.qcow2": inc, "empty.qcow2": {size: 512}} {
		if err := writeImage(filepath.Join(dir, name), im, true); err != nil {
			t.Fatal(err)
		}
		r, err := Images{}.Check(t.Context(), filepath.Join(dir, name), qcow2.CheckOptions{})
		if err != nil || !r.Clean() {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	top := filepath.Join(dir, "inc.qcow2")
	want := flatten([]image{inc, full})
	got, err := ReadChain(top)
	if err != nil || !got.Equal(want) {
		t.Errorf("chain: %v %s", err, got.Diff(want))
	}
	tool, err := qcow2.New(qcow2.Config{})
	if err != nil {
		lab.Missing(t, "no qemu-img: ", err)
	}
	for _, name := range []string{"full.qcow2", "inc.qcow2", "empty.qcow2"} {
		r, err := tool.Check(t.Context(), filepath.Join(dir, name), qcow2.CheckOptions{})
		if err != nil || !r.Clean() || r.Leaks != 0 {
			t.Errorf("qemu-img check %s: %+v, %v", name, r, err)
		}
	}
	raw, ours := filepath.Join(dir, "qemu.raw"), filepath.Join(dir, "ours.raw")
	if err := tool.Convert(t.Context(), top, raw, qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw}); err != nil {
		t.Fatal(err)
	}
	if err := (Images{}).Convert(t.Context(), top, ours, qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{raw, ours} {
		c, err := ReadRaw(p)
		if err != nil || !c.Equal(want) {
			t.Errorf("%s: %v, %s", p, err, c.Diff(want))
		}
	}
	small, smallRaw := filepath.Join(dir, "small.qcow2"), filepath.Join(dir, "small.raw")
	lab.OK(t, writeImage(small, image{size: full.size, backing: "full.qcow2", clusters: inc.upTo(20)}, true))
	lab.OK(t, tool.Convert(t.Context(), small, smallRaw, qcow2.ConvertOptions{TargetFormat: qcow2.FormatRaw}))
	servedNBD(t, small, smallRaw)
	back := filepath.Join(dir, "back.qcow2") // what qemu-img writes can be read too
	if err := tool.Convert(t.Context(), raw, back, qcow2.ConvertOptions{SourceFormat: qcow2.FormatRaw}); err != nil {
		t.Fatal(err)
	}
	if c, err := ReadChain(back); err != nil || !c.Equal(want) {
		t.Errorf("qemu-img's own: %v, %s", err, c.Diff(want))
	}
}

// upTo are the clusters before that one.
func (im image) upTo(cluster int64) map[int64][]byte {
	clusters := maps.Clone(im.clusters)
	maps.DeleteFunc(clusters, func(i int64, _ []byte) bool { return i >= cluster })
	return clusters
}

// servedNBD wants QEMU to read over NBD what is in the raw file, and the socket to end with the server.
func servedNBD(t *testing.T, image, raw string) {
	t.Helper()
	socket := filepath.Join(filepath.Dir(raw), "s")
	o := qcow2.NBDOptions{Path: image, Socket: socket, ReadOnly: true}
	server, err := Images{}.ServeNBD(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Images{}).ServeNBD(t.Context(), o); !errors.Is(err, qcow2.ErrExist) {
		t.Errorf("a second server on the socket: %v", err)
	}
	out, err := exec.CommandContext(t.Context(), "qemu-img", "compare", "-f", "raw", "-F", "raw",
		"nbd+unix:///?socket="+server.Socket(), raw).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if err := errors.Join(server.Close(), server.Close(), server.Wait(t.Context())); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(socket); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
