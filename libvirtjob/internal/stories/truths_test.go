package stories_test

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/repository"
)

// inOrder compares the four truths after a step: nothing of ours is there that doesn't count.
func (s *story) inOrder() {
	s.Helper()
	for _, c := range s.consumers {
		active := s.recordsInOrder(c)
		s.domainInOrder(c, active)
	}
}

// recordsInOrder compares the store with the repository, and returns the active checkpoint.
func (s *story) recordsInOrder(c *consumer) string {
	s.Helper()
	records, err := c.engine.List(s.ctx, kvmbackup.Query{VM: s.vm()})
	s.must(err)
	published := map[string]kvmbackup.Backup{}
	for _, b := range records {
		switch b.Status {
		case kvmbackup.StatusCompleted, kvmbackup.StatusDeletePending:
			published[b.Path] = b
		case kvmbackup.StatusFailed:
		default:
			s.Errorf("record %s is %v", b.ID, b.Status)
		}
	}
	entries, err := c.repo.List(s.ctx, s.vm())
	s.must(err)
	for _, e := range entries {
		b, ok := published[e.Path]
		if e.Kind != repository.FolderPublished || !ok || e.ID != b.ID || e.Err != nil {
			s.Errorf("folder %s is %v of backup %q: %v", e.Name, e.Kind, e.ID, e.Err)
		}
		m, err := c.repo.ReadManifest(s.ctx, e.Path)
		s.must(err)
		s.filesInOrder(c, b, m)
		delete(published, e.Path)
	}
	for p := range published {
		s.Errorf("backup %s has no folder", p)
	}
	vm, err := c.cfg.Store.VM(s.ctx, s.vm())
	s.must(err)
	return string(vm.ActiveCheckpoint)
}

// filesInOrder checks that a backup's folder holds just what its manifest says.
func (s *story) filesInOrder(c *consumer, b kvmbackup.Backup, m repository.Manifest) {
	s.Helper()
	want := []string{"backup.json"}
	for _, v := range m.Volumes {
		want = append(want, v.File)
	}
	for _, f := range m.Files {
		want = append(want, f.Name)
	}
	slices.Sort(want)
	var got []string
	for _, f := range s.files(path.Join(c.dir, b.Path))[1:] {
		got = append(got, strings.TrimPrefix(f, "/"))
	}
	if !slices.Equal(got, want) {
		s.Errorf("folder %s holds %q, want %q", b.Path, got, want)
	}
}

// domainInOrder checks that of a consumer's checkpoints and bitmaps the active one alone is on the domain, at most
// once per disk, and that libvirt lists no checkpoint on a disk that has no bitmap.
func (s *story) domainInOrder(c *consumer, active string) {
	s.Helper()
	bitmaps := map[string][]string{}
	for _, d := range s.disks {
		if d.Empty {
			continue
		}
		bitmaps[d.Device] = s.guest.Bitmaps(d.Device)
		for _, name := range bitmaps[d.Device] {
			if kvmbackup.CheckpointName(strings.TrimSuffix(name, "!")).HasPrefix(c.prefix) && name != active {
				s.Errorf("%s has the bitmap %s, active is %q", d.Device, name, active)
			}
		}
	}
	for name, devices := range s.listed() {
		if !kvmbackup.CheckpointName(name).HasPrefix(c.prefix) {
			continue
		}
		if name != active {
			s.Errorf("libvirt lists the checkpoint %s, active is %q", name, active)
		}
		for _, d := range devices {
			if !slices.Contains(bitmaps[d], name) && !s.crashed {
				s.Errorf("checkpoint %s lists %s, which has the bitmaps %q", name, d, bitmaps[d])
			}
		}
	}
}

// bitmapsOf checks that the backup just taken has its bitmap on every volume that it tracks, and that the doctor
// finds nothing to mend.
func (s *story) bitmapsOf(c *consumer, b kvmbackup.Backup) {
	s.Helper()
	for _, v := range b.Volumes {
		has := slices.Contains(s.guest.Bitmaps(v.Device), string(b.Checkpoint))
		if v.Tracked != has {
			s.Errorf("%s is tracked=%v by %s and has the bitmaps %q", v.Device, v.Tracked, b.Checkpoint,
				s.guest.Bitmaps(v.Device))
		}
	}
	d, err := c.engine.Inspect(s.ctx, s.request().Target())
	s.must(err)
	for _, f := range d.Findings {
		if f.Repair != "" || f.Code == engine.FindingBitmapMissing || f.Code == engine.FindingBitmapBroken {
			s.Errorf("after backup %d the doctor finds %s: %s", b.Sequence, f.Code, f.Detail)
		}
	}
}

// everything is all that a refused operation could have changed, as lines.
func (s *story) everything() []string {
	s.Helper()
	var lines []string
	for name, devices := range s.listed() {
		lines = append(lines, fmt.Sprintf("checkpoint %s on %q", name, devices))
	}
	for _, d := range s.disks {
		if !d.Empty {
			lines = append(lines, fmt.Sprintf("bitmaps on %s: %q", d.Device, s.guest.Bitmaps(d.Device)))
		}
	}
	for _, c := range s.consumers {
		records, err := c.cfg.Store.List(s.ctx, kvmbackup.Query{})
		s.must(err)
		for _, b := range records {
			lines = append(lines, fmt.Sprintf("record %s %v", b.ID, b.Status))
		}
		vm, err := c.cfg.Store.VM(s.ctx, s.vm())
		s.must(err)
		lines = append(lines, fmt.Sprintf("active %q", vm.ActiveCheckpoint))
		lines = append(lines, s.files(c.dir)...)
	}
	slices.Sort(lines)
	return lines
}

// owned returns this consumer's bitmaps and checkpoints on the domain, sorted.
func (s *story) owned(c *consumer) []string {
	s.Helper()
	names := map[string]bool{}
	for _, d := range s.disks {
		if d.Empty {
			continue
		}
		for _, name := range s.guest.Bitmaps(d.Device) {
			names[strings.TrimSuffix(name, "!")] = true
		}
	}
	for name := range s.listed() {
		names[name] = true
	}
	maps.DeleteFunc(names, func(name string, _ bool) bool { return !kvmbackup.CheckpointName(name).HasPrefix(c.prefix) })
	return slices.Sorted(maps.Keys(names))
}
