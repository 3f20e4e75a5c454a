package bench_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
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
	return c
}

// uri is the lab's in the form that the tool doesn't ask a password for.
func (v *virtnbdbackup) uri() string {
	return "qemu:///system?socket=" + filepath.Join(v.lab.host.Root, "run", "libvirt-sock")
}
