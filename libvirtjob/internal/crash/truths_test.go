package crash_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// inOrder checks that nothing is there that doesn't count: in the store, in the repository, at libvirt, in the images,
// and among the processes.
func (a *app) inOrder() {
	a.Helper()
	a.recordsInOrder()
	a.domainInOrder()
	a.nothingRuns()
	if jobs := a.guest.qemuJobs(); jobs != "" {
		a.Errorf("QEMU has jobs: %s", jobs)
	}
	for _, f := range files(a, a.guest.dir) {
		if !strings.HasSuffix(f, ".qcow2") && !strings.HasSuffix(f, ".model") {
			a.Errorf("file %s is left beside the images", f)
		}
	}
	var rooms []string // also those that are not configured any more
	for _, scratch := range a.cfg.Scratch {
		all, err := filepath.Glob(filepath.Join(filepath.Dir(scratch), "scratch*"))
		a.must(err)
		rooms = append(rooms, all...)
	}
	for _, scratch := range rooms {
		if left := files(a, scratch); len(left) > 0 {
			a.Errorf("left in the scratch: %q", left)
		}
	}
	d, err := a.engine.Inspect(a.ctx, a.request().Target())
	a.must(err)
	for _, f := range d.Findings {
		if f.Repair != "" {
			a.Errorf("the doctor finds %s: %s", f.Code, f.Detail)
		}
	}
}

func files(a *app, dir string) (found []string) {
	a.Helper()
	a.must(filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			found = append(found, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	}))
	slices.Sort(found)
	return found
}

// recordsInOrder checks that no record is running, and that the repository holds the recorded backups' files and no
// others.
func (a *app) recordsInOrder() {
	a.Helper()
	want := []string{repository.MarkerName}
	for _, b := range a.records() {
		switch b.Status {
		case kvmbackup.StatusFailed:
			continue
		case kvmbackup.StatusCompleted, kvmbackup.StatusDeletePending:
		default:
			a.Errorf("record %d is %v", b.Sequence, b.Status)
		}
		xml := repository.DomainXMLName
		if b.Sealed() {
			xml += repository.SealedSuffix
		}
		want = append(want, b.Path+"/"+repository.ManifestName, b.Path+"/"+xml)
		for _, v := range b.Volumes {
			want = append(want, b.Path+"/"+v.File)
			index := v.File + ".index" // of digests that were made on the way
			if slices.ContainsFunc(b.Files, func(f kvmbackup.SideFile) bool { return f.Name == index }) {
				want = append(want, b.Path+"/"+index)
			}
		}
		m, err := a.repo.ReadManifest(a.ctx, b.Path)
		if err != nil || m.ID != b.ID {
			a.Errorf("folder of record %d is backup %q's: %v", b.Sequence, m.ID, err)
		}
	}
	slices.Sort(want)
	got := slices.DeleteFunc(files(a, a.repoDir()), func(name string) bool {
		return !a.probed && strings.HasSuffix(name, "-probe") // the next backup's probe removes it
	})
	if !slices.Equal(got, want) {
		a.Errorf("the repository holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	entries, err := a.repo.List(a.ctx, "")
	a.must(err)
	for _, e := range entries {
		if e.Kind != repository.FolderPublished {
			a.Errorf("folder %s is %v", e.Name, e.Kind)
		}
	}
}

// domainInOrder checks that of our checkpoints and bitmaps only the active one is there, on each disk once, and that
// libvirt lists no checkpoint on a disk that has no such bitmap.
func (a *app) domainInOrder() {
	a.Helper()
	vm, err := a.store.VM(a.ctx, a.vm())
	a.must(err)
	active := string(vm.ActiveCheckpoint)
	bitmaps := map[string][]string{}
	for _, d := range a.guest.devices {
		bitmaps[d] = a.guest.bitmaps(d)
		for _, name := range bitmaps[d] {
			if strings.TrimSuffix(name, "!") != active {
				a.Errorf("%s has the bitmap %s, active is %q", d, name, active)
			}
		}
	}
	for name, devices := range a.guest.checkpoints() {
		if name != active {
			a.Errorf("libvirt lists the checkpoint %s, active is %q", name, active)
		}
		for _, d := range devices {
			if !slices.Contains(bitmaps[d], name) && !a.cut {
				a.Errorf("checkpoint %s lists %s, which has the bitmaps %q", name, d, bitmaps[d])
			}
		}
	}
}

// nothingRuns checks that of the processes that were started for this application only QEMU is left.
func (a *app) nothingRuns() {
	a.Helper()
	var left string
	eventually(a.T, "helper processes have ended", func() bool {
		left = a.processes()
		return left == ""
	})
}

func (a *app) processes() string {
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range dirs {
		text, err := os.ReadFile(path)
		line := strings.ReplaceAll(string(text), "\x00", " ")
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || pid == os.Getpid() || !strings.Contains(line, a.dir) && !strings.Contains(line, a.guest.dir) {
			continue
		}
		if !strings.Contains(line, "-name guest="+a.guest.name) {
			return fmt.Sprintf("%d: %s", pid, line)
		}
	}
	return ""
}

// tracked checks that a backup's bitmap is on every disk of a guest.
func (a *app) tracked(b kvmbackup.Backup) {
	a.Helper()
	for _, d := range a.guest.devices {
		if got := a.guest.bitmaps(d); !slices.Equal(got, []string{string(b.Checkpoint)}) {
			a.Errorf("%s has the bitmaps %q after a backup with %s", d, got, b.Checkpoint)
		}
	}
}

// restoreAll restores every completed backup, which verifies it first, and compares it with what the disks held. Sealed
// ones are restored where the identity is.
func (a *app) restoreAll() {
	a.Helper()
	reader := a.engine
	if cfg := a.cfg; cfg.Keys != nil {
		withIdentity(&cfg)
		var err error
		reader, err = engine.New(cfg)
		a.must(err)
	}
	for _, b := range a.records(kvmbackup.StatusCompleted) {
		dir, err := os.MkdirTemp(a.TempDir(), "restored-")
		a.must(err)
		done, err := reader.Restore(a.ctx, engine.RestoreRequest{Backup: b.ID, Dir: dir})
		a.must(err)
		if len(done.Volumes) != len(a.guest.devices) {
			a.Errorf("%d volumes were restored", len(done.Volumes))
		}
		for _, v := range done.Volumes {
			was := filepath.Join(a.contentDir(b.Sequence), v.Device)
			if err := a.images.Compare(a.ctx, was, v.Path, qcow2.CompareOptions{FormatA: qcow2.FormatRaw}); err != nil {
				a.Errorf("backup %d (%v), %s: %v", b.Sequence, b.Kind, v.Device, err)
			}
		}
		a.must(os.RemoveAll(dir))
	}
}
