package libvirtjob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// By push QEMU opens the targets by their names, and somebody who can write to the share can have a name lead
// elsewhere, or change the header, after PrepareJob and before QEMU. What QEMU has open is looked at right after the
// begin.

// checkOpened is an ErrDamaged when QEMU writes elsewhere than to the files that PrepareJob has made; then the job is
// told to end at once. What can't be seen is no error: another user's open files are shown to root alone. A job that is
// over already has no nodes, so that of its targets only the names can be looked at.
func (j *job) checkOpened(ctx context.Context) error {
	err := j.opened(ctx)
	if !errors.Is(err, kvmbackup.ErrDamaged) {
		if err != nil {
			logctx.Logger(ctx, j.exec.log).Warn("can't see which files the backup is written to", "domain", j.dom.name,
				"error", err)
		}
		return nil
	}
	return errors.Join(err, j.end(ctx))
}

func (j *job) opened(ctx context.Context) error {
	g, err := queryGraph(ctx, j.dom)
	if err != nil {
		return err
	}
	qemu, err := detached(ctx, j.dom.name, func() ([]fs.FileInfo, error) { return openFiles(j.dom.uuid) }, nil)
	if err != nil {
		return err
	}
	var absent []int // of those that QEMU had when the list was made
	for i, v := range j.spec.Volumes {
		path := targetPath(j.spec, v)
		format, ok := g.target(path)
		if !ok {
			if err := j.named(ctx, path, j.targets[i]); err != nil {
				return err
			}
			continue
		}
		if data := format.Image.Specific.Data.DataFile; data != "" {
			return fmt.Errorf("%w: target of %s: the header of %s was exchanged, QEMU writes to %q", kvmbackup.ErrDamaged,
				v.Device, path, data)
		}
		if len(qemu) > 0 && !isOpen(j.targets[i], qemu) {
			absent = append(absent, i)
		}
	}
	if absent == nil {
		return nil
	}
	if g, err = queryGraph(ctx, j.dom); err != nil {
		return err
	}
	for _, i := range absent {
		path := targetPath(j.spec, j.spec.Volumes[i])
		if _, ok := g.target(path); ok { // it was open all the time
			return fmt.Errorf("%w: %s was exchanged: QEMU has another file open", kvmbackup.ErrDamaged, path)
		}
		if err := j.named(ctx, path, j.targets[i]); err != nil { // the job has ended meanwhile
			return err
		}
	}
	return nil
}

// named is an ErrDamaged when another file than was made has its name.
func (j *job) named(ctx context.Context, path string, made fs.FileInfo) error {
	file, err := detached(ctx, j.dom.name, func() (fs.FileInfo, error) { return os.Lstat(path) }, nil)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(made, file) {
		return fmt.Errorf("%w: %s was exchanged", kvmbackup.ErrDamaged, path)
	}
	return err
}

// target is the node of the image in a target, by the names that libvirt gives to a file's two nodes.
func (g graph) target(path string) (node, bool) {
	for name, n := range g {
		if prefix, ok := strings.CutSuffix(name, "-storage"); ok && n.Drv == "file" && n.File == path {
			format, ok := g[prefix+"-format"]
			return format, ok
		}
	}
	return node{}, false
}

func isOpen(made fs.FileInfo, files []fs.FileInfo) bool {
	return slices.ContainsFunc(files, func(f fs.FileInfo) bool { return os.SameFile(f, made) })
}

// openFiles are those that a domain's QEMU has open, as far as this process may know: libvirt starts it with the
// domain's UUID.
func openFiles(uuid string) ([]fs.FileInfo, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var files []fs.FileInfo
	for _, name := range lines {
		line, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(line, []byte("\x00-uuid\x00"+uuid+"\x00")) {
			continue // it has ended, or is another
		}
		dir := filepath.Join(filepath.Dir(name), "fd")
		fds, _ := os.ReadDir(dir) // of another user's process there are none
		for _, fd := range fds {
			if info, err := os.Stat(filepath.Join(dir, fd.Name())); err == nil && info.Mode().IsRegular() {
				files = append(files, info)
			}
		}
	}
	return files, nil
}
