package bench_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"time"
)

// virtnbdbackup is that tool on one guest.
type virtnbdbackup struct {
	*guest
	dir string // of the newest chain
}

// virtnbdbackup skips the benchmark where the tool is missing.
func (g *guest) virtnbdbackup() *virtnbdbackup {
	g.lab.Helper()
	if _, err := exec.LookPath("virtnbdbackup"); err != nil {
		g.lab.Skip(err)
	}
	return &virtnbdbackup{guest: g}
}

// backup measures one backup; all but incrementals begin a new folder.
func (v *virtnbdbackup) backup(level string) cost {
	v.lab.Helper()
	if level != "inc" {
		v.serial++
		v.dir = v.lab.folder(fmt.Sprintf("virtnbdbackup-%d", v.serial))
	}
	before := v.lab.stored(v.dir)
	c, _ := v.process(nil, "virtnbdbackup", "-U", v.uri(), "-d", v.Name, "-l", level, "-o", v.dir, "-n",
		"-S", v.lab.dir, "-f", filepath.Join(v.lab.host.Root, "nbd"))
	c.stored = v.lab.stored(v.dir) - before
	return c
}

// full measures a backup and removes its files.
func (v *virtnbdbackup) full(level string) cost {
	v.lab.Helper()
	c := v.backup(level)
	v.lab.run("rm", "-r", v.dir)
	return c
}

// restore measures one restore of the newest chain.
func (v *virtnbdbackup) restore(dir string) cost {
	v.lab.Helper()
	c, _ := v.process(nil, "virtnbdrestore", "-U", v.uri(), "-i", v.dir, "-o", dir, "-n",
		"-L", filepath.Join(v.lab.dir, "virtnbdrestore.log"), "-f", filepath.Join(v.lab.host.Root, "nbd"))
	v.awaitServer(dir)
	return c
}

// awaitServer waits for the qemu-nbd that virtnbdrestore has left in the background: until it ends, what was restored
// isn't whole.
func (v *virtnbdbackup) awaitServer(dir string) {
	v.lab.Helper()
	image := filepath.Join(dir, "vda.qcow2")
	limit, tick := time.After(time.Minute), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for exec.Command("qemu-img", "info", image).Run() != nil { // refused while somebody writes
		select {
		case <-tick.C:
		case <-limit:
			v.lab.Fatalf("%s is still being written", image)
		}
	}
}

// uri is the lab's in the form that the tool doesn't ask a password for.
func (v *virtnbdbackup) uri() string {
	return "qemu:///system?socket=" + filepath.Join(v.lab.host.Root, "run", "libvirt-sock")
}
