package bench_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"libvirt.org/go/libvirt"
)

// bareJob is what a script does with virsh, without its processes: libvirt's own calls in this process, and nothing
// around them. libvirt creates the targets.
type bareJob struct {
	dir         string
	incremental bool
	poll        time.Duration // between two looks at the job
	rebase      bool          // put the newest files below the new ones
}

// bare runs the job over all disks, and removes its checkpoint unless it is to be the next one's base.
func (g *guest) bare(j bareJob, keep bool) cost {
	g.lab.Helper()
	g.serial++
	name := fmt.Sprintf("bare.%d", g.serial)
	var backup, checkpoint strings.Builder
	targets := map[string]string{}
	for _, device := range g.devices {
		targets[device] = filepath.Join(j.dir, g.Name+"."+device+"."+name+".qcow2")
		fmt.Fprintf(&backup, "<disk name='%s' type='file'><driver type='qcow2'/><target file='%s'/></disk>", device,
			targets[device])
		fmt.Fprintf(&checkpoint, "<disk name='%s' checkpoint='bitmap'/>", device)
	}
	base := ""
	if j.incremental {
		base = "<incremental>" + g.base + "</incremental>"
	}
	began := time.Now()
	g.lab.must(g.dom.BackupBegin("<domainbackup>"+base+"<disks>"+backup.String()+"</disks></domainbackup>",
		"<domaincheckpoint><name>"+name+"</name><disks>"+checkpoint.String()+"</disks></domaincheckpoint>", 0))
	g.awaitJob(j.poll)
	if j.rebase {
		for device, target := range targets {
			g.lab.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", g.files[device], "-F", "qcow2", target)
		}
	}
	c := cost{wall: time.Since(began)}
	for _, target := range targets {
		info, err := os.Stat(target)
		g.lab.must(err)
		c.stored += allocated(info)
	}
	g.settleBare(name, targets, keep)
	return c
}

func (g *guest) awaitJob(poll time.Duration) {
	g.lab.Helper()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for ; ; <-tick.C {
		info, err := g.dom.GetJobStats(0)
		g.lab.must(err)
		if info.Type == libvirt.DOMAIN_JOB_NONE {
			break
		}
	}
	info, err := g.dom.GetJobStats(libvirt.DOMAIN_JOB_STATS_COMPLETED)
	g.lab.must(err)
	if info.Type != libvirt.DOMAIN_JOB_COMPLETED {
		g.lab.Fatalf("bare job: %s", info.ErrorMessage)
	}
}

// settleBare makes the job's checkpoint the next base, or removes what the job has left.
func (g *guest) settleBare(name string, targets map[string]string, keep bool) {
	g.lab.Helper()
	drop := name
	if keep {
		drop, g.base, g.files = g.base, name, targets
	} else {
		for _, target := range targets {
			g.lab.must(os.Remove(target))
		}
	}
	if drop == "" {
		return
	}
	cp, err := g.dom.CheckpointLookupByName(drop, 0)
	g.lab.must(err)
	g.lab.must(cp.Delete(0))
	g.lab.must(cp.Free())
}
