package libvirtjob_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// TestTargetExchangedAtTheBegin: what QEMU opens by push is another file than was made and looked at. The job is ended
// right after its begin, which says so; the guest runs on, and the next backup succeeds.
func TestTargetExchangedAtTheBegin(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	const size = 256 << 20
	b := newBench(t, realguest.Config{Disks: []realguest.Disk{{Device: "vda"}, {Device: "vdb", SizeBytes: size}}})
	for at := int64(0); at < size; at += 64 << 20 {
		b.guest.Write("vdb", 0x11, at, 64<<20)
	}
	other := filepath.Join(t.TempDir(), "other.qcow2")
	n := 0
	for name, exchange := range map[string]func(target string){
		"by a link": func(target string) {
			b.qemuImg("create", "-q", "-f", "qcow2", other, fmt.Sprint(size))
			b.must(os.Remove(target))
			b.must(os.Symlink(other, target))
		},
		"by a hard link": func(target string) {
			other := filepath.Join(filepath.Dir(target), "other")
			b.qemuImg("create", "-q", "-f", "qcow2", other, fmt.Sprint(size))
			b.must(os.Remove(target))
			b.must(os.Link(other, target))
		},
		"by its header": func(target string) { // in the very file
			lying := filepath.Join(t.TempDir(), "lying.qcow2")
			b.qemuImg("create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(t.TempDir(), "data"), lying,
				fmt.Sprint(size))
			data, err := os.ReadFile(lying)
			b.must(err)
			b.must(os.WriteFile(target, data, 0o600))
		},
	} {
		err := fmt.Errorf("%s: every job was over before it was looked at", name)
		for range 10 { // a job that is over is looked at by its file
			n++
			if err = b.beginExchanged(fmt.Sprint("exchanged", n), exchange); err != nil {
				break
			}
		}
		b.wantErr(err, kvmbackup.ErrDamaged)
		t.Logf("%s: %v", name, err)
	}
	b.backup("c1", "", full("vda"), full("vdb"))
}

// beginExchanged begins a job of which the second target was exchanged since it was looked at, and undoes it.
func (b *bench) beginExchanged(checkpoint string, exchange func(target string)) error {
	b.Helper()
	spec := b.spec(checkpoint, "", full("vda"), full("vdb"))
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	exchange(filepath.Join(b.dir, spec.Volumes[1].File))
	outcome := libvirtjob.BeginUnforeseen(b.ctx, job)
	b.must(job.Abort(b.ctx))
	b.must(job.Close(context.Background()))
	if job := b.inspect().Job; job != kvmbackup.JobNone {
		b.Errorf("the domain has the job %v", job)
	}
	b.drop(string(spec.Checkpoint))
	return outcome
}
