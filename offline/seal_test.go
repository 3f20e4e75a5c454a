package offline_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestSealedTargets: a full and an incremental of a stopped VM, each under a key of its own, compressed or not. They
// show nothing, and are what the guest had.
func TestSealedTargets(t *testing.T) {
	b := newBench(t)
	tool, err := qcow2.New(qcow2.Config{})
	b.must(err)
	vda := b.create("vda.qcow2", "qcow2")
	b.write(vda, 1, 0, 4<<20)
	var layers []qcow2.Layer
	take := func(spec kvmbackup.JobSpec) {
		key := kvmbackup.NewDataKey()
		spec.DataKey = &key
		spec.Volumes[0].Compression = map[string]kvmbackup.Compression{
			"a1": "", "a2": kvmbackup.CompressionZstd,
		}[spec.Volumes[0].File]
		job := b.prepare(spec, vda)
		b.must(job.Begin(b.Context()))
		_, err := job.Wait(b.Context(), nil)
		b.must(err)
		file := spec.Volumes[0].File
		layers = append([]qcow2.Layer{{Path: b.path(file), Secret: qcow2.NewSecret(key.ImageSecret(file))}}, layers...)
	}
	take(b.spec("c1", "", volume(vda, "a1", "")))
	b.write(vda, 3, 1<<20, 1<<20)
	take(b.spec("c2", "c1", volume(vda, "a2", "a1")))
	o := qcow2.ConvertOptions{Secret: layers[0].Secret, Backing: layers[1:], TargetFormat: qcow2.FormatRaw}
	b.must(tool.Convert(b.Context(), layers[0].Path, b.path("out"), o))
	b.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", vda.Path, b.path("out"))
	for i, l := range layers {
		h, err := tool.Header(b.Context(), l.Path, l.Secret)
		if err = errors.Join(err,
			h.Validate(qcow2.Expect{VirtualSizeBytes: size, BackingFile: []string{"a1", ""}[i]})); err != nil {
			t.Error(err)
		}
		raw, err := os.ReadFile(l.Path)
		if err != nil || bytes.Contains(raw, bytes.Repeat([]byte{3}, 64)) ||
			bytes.Contains(raw, bytes.Repeat([]byte{1}, 64)) {
			t.Errorf("%s shows what is in it: %v", l.Path, err)
		}
	}
	if info, err := os.Stat(layers[0].Path); err != nil || info.Size() > 4<<20 {
		t.Errorf("a compressed MiB takes %v, %v", info, err)
	}
}
