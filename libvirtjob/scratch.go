package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/leave"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// scratchLimit bounds what is done in a scratch, which is on local storage.
const scratchLimit = 10 * time.Second

// makeScratch makes the job's own folder, which nobody enters except QEMU's user and this process.
func makeScratch(ctx context.Context, scratch string, def libvirtxml.Domain) error {
	return inScratch(ctx, scratch, func() error {
		if err := os.Mkdir(scratch, 0o700); err != nil {
			return err
		}
		if err := giveToQEMU(scratch, def); err != nil {
			return errors.Join(err, os.Remove(scratch))
		}
		return nil
	})
}

// giveToQEMU makes a file or folder its user's.
func giveToQEMU(path string, def libvirtxml.Domain) error {
	uid, gid, ok := qemuUser(def)
	if !ok || uid == os.Geteuid() {
		return nil
	}
	if err := os.Lchown(path, uid, gid); err != nil {
		return fmt.Errorf("give it to QEMU's user: %w", err)
	}
	return nil
}

// makeScratches makes the images that libvirt would have QEMU make. QEMU 7.2 does that in a job of its own, in which
// the image is open and for a moment not yet a qcow2. A query for QEMU's block nodes then ends it ("Assertion `false'
// failed" in qcow2_get_specific_info), and libvirt makes that query for any program that asks for a disk's size.
func (e *Executor) makeScratches(ctx context.Context, spec kvmbackup.JobSpec, def libvirtxml.Domain) error {
	for _, v := range spec.Volumes {
		path := scratchPath(spec, v)
		err := e.cfg.Images.Create(ctx, path, qcow2.CreateOptions{SizeBytes: v.VirtualSize})
		if err == nil {
			err = giveToQEMU(path, def)
		}
		if err != nil {
			return fmt.Errorf("%w: of %s: %w", kvmbackup.ErrScratch, v.Device, err)
		}
	}
	return nil
}

// removeScratch removes the job's own folder. One that is not there is no error.
func removeScratch(ctx context.Context, scratch string) error {
	return inScratch(ctx, scratch, func() error {
		parent, err := os.OpenRoot(filepath.Dir(scratch))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.Join(parent.RemoveAll(filepath.Base(scratch)), parent.Close())
	})
}

func inScratch(ctx context.Context, scratch string, f func() error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), scratchLimit)
	defer cancel()
	_, err := leave.Do(ctx, &hung, leave.Options{What: "scratch", Places: []string{scratch}},
		func(*leave.Work) (struct{}, error) { return struct{}{}, f() }, nil)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", kvmbackup.ErrScratch, scratch, err)
	}
	return nil
}

// qemuUser is whom a domain's QEMU runs as, where libvirt says it: it gives QEMU's files to that user.
func qemuUser(def libvirtxml.Domain) (uid, gid int, ok bool) {
	for _, label := range def.SecLabel {
		if label.Model != "dac" {
			continue
		}
		user, group, found := strings.Cut(label.Label, ":")
		uid, err := strconv.Atoi(strings.TrimPrefix(user, "+"))
		gid, again := strconv.Atoi(strings.TrimPrefix(group, "+"))
		if found && err == nil && again == nil {
			return uid, gid, true
		}
	}
	return 0, 0, false
}

// noPull is why a running domain can't be pulled from, and the way out; empty: it can.
func (e *Executor) noPull(m *machine) string {
	const daemon = "qemu-storage-daemon"
	if slices.Contains(e.cfg.Images.Missing(), daemon) {
		return daemon + " is not installed where it was looked for; install it"
	}
	if uid, _, ok := qemuUser(m.def); ok && os.Geteuid() != 0 && uid != os.Geteuid() {
		return fmt.Sprintf("QEMU runs as user %d, and this program can't give that user its scratch; run it as root, "+
			"or as that user", uid)
	}
	return ""
}

// freeBytes is what the file system of a folder has free for those who are not root.
func freeBytes(folder string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(folder, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Frsize, nil
}

// takenBytes is what the files in a folder take.
func takenBytes(folder string) (sum int64) {
	entries, _ := os.ReadDir(folder) // it is for a message
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			if s, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += s.Blocks * 512
			}
		}
	}
	return sum
}
