package libvirtjob_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/libvirtjob/realguest"
)

// TestLatency compares a job with the bare calls: begin, and a look at the job's state every ten milliseconds as a
// script with virsh would. The limits are those of the design, with room for a machine that is busy with other tests.
func TestLatency(t *testing.T) {
	b := newBench(t, realguest.Config{Disks: []realguest.Disk{{Device: "vda", SizeBytes: 1 << 30}}})
	b.guest.Write("vda", 0x11, 0, 320<<20)
	run := func(i int, kind string, take func(spec kvmbackup.JobSpec)) time.Duration {
		spec := b.spec(fmt.Sprintf("%s%d", kind, i), "", full("vda"))
		if kind[0] == 'i' {
			spec = b.spec(fmt.Sprintf("%s%d", kind, i), "base", incr("vda"))
		}
		began := time.Now()
		take(spec)
		took := time.Since(began)
		for _, v := range spec.Volumes {
			b.must(os.Remove(filepath.Join(b.dir, v.File)))
		}
		b.must(b.exec.DropCheckpoint(b.ctx, b.ref, spec.Checkpoint))
		return took
	}
	b.backup("base", "", full("vda"))
	for _, kind := range []string{"incr", "full"} {
		ours, bare := time.Hour, time.Hour
		for i := range 3 {
			ours = min(ours, run(i, kind+"-ours", b.take))
			bare = min(bare, run(i, kind+"-bare", b.takeBare))
		}
		t.Logf("%s: %v, bare %v", kind, ours, bare)
		if limit := bare + bare/10 + 100*time.Millisecond; ours > limit {
			t.Errorf("%s took %v, bare %v", kind, ours, bare)
		}
	}
}

func (b *bench) take(spec kvmbackup.JobSpec) {
	b.Helper()
	job, err := b.exec.PrepareJob(b.ctx, b.ref, spec)
	b.must(err)
	b.must(job.Begin(b.ctx))
	_, err = job.Wait(b.ctx, nil)
	b.must(err)
	b.must(job.Close())
}

func (b *bench) takeBare(spec kvmbackup.JobSpec) {
	b.Helper()
	v := spec.Volumes[0]
	target := filepath.Join(spec.Dir, v.File)
	b.must(exec.Command("qemu-img", "create", "-q", "-f", "qcow2", target, fmt.Sprint(v.VirtualSize)).Run())
	incremental := ""
	if v.Kind == kvmbackup.KindIncremental {
		incremental = "<incremental>" + string(spec.Base) + "</incremental>"
	}
	backup := "<domainbackup>" + incremental + "<disks><disk name='vda' type='file'><driver type='qcow2'/><target file='" + target + "'/></disk></disks></domainbackup>"
	checkpoint := "<domaincheckpoint><name>" + string(spec.Checkpoint) + "</name><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>"
	dom := b.guest.Domain()
	b.must(dom.BackupBegin(backup, checkpoint, libvirt.DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		info, err := dom.GetJobStats(0)
		b.must(err)
		if info.Type == libvirt.DOMAIN_JOB_NONE {
			return
		}
	}
}
