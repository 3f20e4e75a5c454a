package kvmbackup_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// TestDecideStories plays testdata/decide/*.txt: what happens to a VM, line by line, and after "=>" what is decided.
// There is no hypervisor and no file: only the decider, the records, and which bitmaps are on the disks. -update
// rewrites the decisions.
//
// A backup's decision reads "b3 I on b2 at 1: incremental", or "b1 F: no-active-checkpoint"; "untracked" is added where
// no checkpoint is taken, and volumes that are not as the whole are listed with their reasons.
//
//	vm vda vdb=raw          a VM with these disks; the first line
//	full-every N            the policy; also: incremental on|off, offline-incremental on|off
//	compare on|off          the policy's; "compare-every N" too
//	comparing on|off        whether contents can be compared
//	backup                  take one; "backup force" a full; "backup compare" compares all; "backup fails" after it began
//	backups N               take N and show their kinds
//	start, stop, pause      the guest; bitmaps stay
//	crash                   QEMU is killed: the bitmaps of running disks are inconsistent
//	restart-lost DISK       a restart that lost the disk's bitmaps; "bitmap-unknown DISK" when they could not be listed
//	restore                 over the VM's own disks
//	delete bN               by the user
//	attach DISK[=raw], detach DISK, replace DISK, move DISK NEW, grow DISK, shrink DISK, convert DISK raw|qcow2
//	repository NAME         backups go to another repository from now on
//	lose bN                 the backup's files are gone from the repository
//	untracked N             N backups that an earlier version took, without chain and checkpoint in use
//	active NAME             somebody set the active checkpoint
func TestDecideStories(t *testing.T) {
	files, err := filepath.Glob("testdata/decide/*.txt")
	lab.OK(t, err)
	if len(files) == 0 {
		t.Fatal("no stories in testdata/decide")
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			lab.OK(t, err)
			s := &decideStory{
				t: t, store: memstore.New(), repository: "repo1", state: kvmbackup.DomainRunning,
				lost: map[kvmbackup.BackupID]bool{},
			}
			var out strings.Builder
			for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
				line, _, _ = strings.Cut(line, "=>")
				line = strings.TrimRight(line, " ")
				out.WriteString(line)
				if words := strings.Fields(line); len(words) > 0 && words[0] != "#" {
					if says := s.play(words); says != "" {
						fmt.Fprintf(&out, "%*s=> %s", max(1, 20-len(line)), "", says)
					}
				}
				out.WriteString("\n")
			}
			golden(t, filepath.Join("decide", filepath.Base(f)), out.String())
		})
	}
}

// storyDisk is one disk of the VM in a story.
type storyDisk struct {
	id      kvmbackup.VolumeID
	device  string
	raw     bool
	size    int64
	bitmaps map[kvmbackup.CheckpointName]kvmbackup.BitmapState
}

type decideStory struct {
	t          *testing.T
	store      *memstore.Store
	policy     kvmbackup.Policy
	repository string
	state      kvmbackup.DomainState
	disks      []*storyDisk
	backups    []kvmbackup.BackupID
	lost       map[kvmbackup.BackupID]bool
	cant       string // why contents can't be compared
	given      int    // disks that were given an identity
}

func (s *decideStory) play(words []string) string {
	s.t.Helper()
	arg := func(i int) string {
		if i >= len(words) {
			s.t.Fatalf("%q needs more words", words)
		}
		return words[i]
	}
	number := func(i int) int {
		n, err := strconv.Atoi(arg(i))
		lab.OK(s.t, err)
		return n
	}
	switch words[0] {
	case "vm":
		for _, d := range words[1:] {
			s.attach(d)
		}
	case "full-every":
		s.policy.FullEvery = number(1)
	case "incremental":
		s.policy.DisableIncremental = arg(1) == "off"
	case "offline-incremental":
		s.policy.OfflineIncremental = arg(1) == "on"
	case "compare":
		s.policy.Compare = arg(1) == "on"
	case "compare-every":
		s.policy.CompareEvery = number(1)
	case "comparing":
		s.cant = map[string]string{"off": "there is no scratch"}[arg(1)]
	case "backup":
		return s.backup(words[1:])
	case "backups":
		var kinds []string
		for range number(1) {
			kinds = append(kinds, s.kindOf(s.backup(nil)))
		}
		return strings.Join(kinds, " ")
	case "untracked":
		for range number(1) {
			s.policy.DisableIncremental = true
			s.backup(nil)
			s.policy.DisableIncremental = false
		}
	case "start", "stop", "pause":
		s.state = map[string]kvmbackup.DomainState{"start": kvmbackup.DomainRunning, "stop": kvmbackup.DomainStopped,
			"pause": kvmbackup.DomainPaused}[words[0]]
	case "restore":
		s.write(func(l kvmbackup.Lease) error { return s.store.SetActive(s.t.Context(), l, "") })
		s.mark(s.disks, "")
	case "active":
		s.write(func(l kvmbackup.Lease) error {
			return s.store.SetActive(s.t.Context(), l, kvmbackup.CheckpointName(arg(1)))
		})
	case "delete":
		s.delete(s.named(arg(1)))
		return s.left()
	case "lose":
		s.lost[s.named(arg(1))] = true
	case "repository":
		s.repository = arg(1)
	case "crash":
		s.mark(s.disks, "inconsistent")
	default:
		s.disk(words[0], arg(1), words)
	}
	return ""
}

// disk plays what happens to one disk.
func (s *decideStory) disk(what, device string, words []string) {
	s.t.Helper()
	if what == "attach" {
		s.attach(device)
		return
	}
	i := slices.IndexFunc(s.disks, func(d *storyDisk) bool { return d.device == device })
	if i < 0 {
		s.t.Fatalf("%q: no such disk", words)
	}
	d := s.disks[i]
	switch what {
	case "detach":
		s.disks = slices.Delete(s.disks, i, i+1)
	case "replace":
		s.given++
		d.id, d.bitmaps = kvmbackup.VolumeID(fmt.Sprintf("volume%d", s.given)),
			map[kvmbackup.CheckpointName]kvmbackup.BitmapState{}
	case "move":
		d.device = words[2]
	case "grow":
		d.size *= 2
	case "shrink":
		d.size /= 2
	case "convert":
		d.raw, d.bitmaps = words[2] == "raw", map[kvmbackup.CheckpointName]kvmbackup.BitmapState{}
	case "restart-lost":
		s.mark([]*storyDisk{d}, "")
	case "bitmap-unknown":
		s.mark([]*storyDisk{d}, "unknown")
	default:
		s.t.Fatalf("%q is not understood", words)
	}
}

func (s *decideStory) attach(device string) {
	name, format, _ := strings.Cut(device, "=")
	s.given++
	s.disks = append(s.disks, &storyDisk{
		id: kvmbackup.VolumeID(fmt.Sprintf("volume%d", s.given)), device: name, raw: format == "raw", size: 1 << 30,
		bitmaps: map[kvmbackup.CheckpointName]kvmbackup.BitmapState{},
	})
}

// mark changes what is known of the disks' bitmaps; "" loses them.
func (s *decideStory) mark(disks []*storyDisk, how string) {
	for _, d := range disks {
		for name := range d.bitmaps {
			switch how {
			case "":
				delete(d.bitmaps, name)
			case "inconsistent":
				d.bitmaps[name] = kvmbackup.BitmapInconsistent
			case "unknown":
				d.bitmaps[name] = kvmbackup.BitmapUnknown
			}
		}
	}
}

func (s *decideStory) write(f func(l kvmbackup.Lease) error) {
	s.t.Helper()
	l, err := s.store.AcquireLease(s.t.Context(), lab.VM, "story", time.Hour)
	lab.OK(s.t, err)
	lab.OK(s.t, f(l))
	lab.OK(s.t, s.store.ReleaseLease(s.t.Context(), l))
}

func (s *decideStory) named(name string) kvmbackup.BackupID {
	s.t.Helper()
	n, err := strconv.Atoi(strings.TrimPrefix(name, "b"))
	lab.OK(s.t, err)
	return s.backups[n-1]
}

func (s *decideStory) nameOf(id kvmbackup.BackupID) string {
	return fmt.Sprintf("b%d", slices.Index(s.backups, id)+1)
}

// delete marks, and removes what nothing stands on.
func (s *decideStory) delete(id kvmbackup.BackupID) {
	s.t.Helper()
	ctx := s.t.Context()
	s.write(func(l kvmbackup.Lease) error {
		if err := s.store.MarkDeletePending(ctx, l, id); err != nil {
			return err
		}
		for {
			b, err := s.store.Backup(ctx, id)
			if err != nil || b.Status != kvmbackup.StatusDeletePending {
				return nil
			}
			if children, err := s.store.Children(ctx, id); err != nil || len(children) > 0 {
				return err
			}
			if err := s.store.Remove(ctx, l, id, 0); err != nil {
				return err
			}
			id = b.ParentID
		}
	})
}

func (s *decideStory) left() string {
	s.t.Helper()
	all, err := s.store.List(s.t.Context(), kvmbackup.Query{})
	lab.OK(s.t, err)
	out := []string{"left:"}
	for _, b := range all {
		name := s.nameOf(b.ID)
		if b.Status != kvmbackup.StatusCompleted {
			name += " (" + b.Status.String() + ")"
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

func (s *decideStory) kindOf(says string) string { return strings.Trim(strings.Fields(says)[1], ":") }

func (s *decideStory) input(how []string) kvmbackup.DecideInput {
	s.t.Helper()
	vm, err := s.store.VM(s.t.Context(), lab.VM)
	lab.OK(s.t, err)
	last, _ := kvmbackup.ParseStamp(vm.LastStamp) // none before the first
	stamp := last.Next(lab.Epoch.Add(time.Duration(len(s.backups))*time.Hour), nil)
	in := kvmbackup.DecideInput{
		VM: lab.VM, Policy: s.policy, State: s.state, ActiveCheckpoint: vm.ActiveCheckpoint, Repository: s.repository,
		NewCheckpoint: kvmbackup.NewCheckpointName("kvmbackup", stamp, lab.VM), NewChain: kvmbackup.NewChainID(),
	}
	in.Policy.ForceFull, in.Policy.ForceCompare, in.CantCompare = slices.Contains(how, "force"),
		slices.Contains(how, "compare"), s.cant
	if newest, err := s.store.Newest(s.t.Context(), lab.VM); err == nil {
		in.Newest = &newest
		for b := newest; ; {
			if s.lost[b.ID] {
				in.MissingFiles = append(in.MissingFiles, b.Path+"/"+b.Volumes[0].File)
			}
			if b.ParentID == "" {
				break
			}
			b, err = s.store.Backup(s.t.Context(), b.ParentID)
			lab.OK(s.t, err)
		}
	}
	for _, d := range s.disks {
		v := kvmbackup.VolumeFacts{
			VolumeID: d.id, Device: d.device, Format: "qcow2", VirtualSize: d.size, Bitmap: kvmbackup.BitmapMissing,
		}
		if state, there := d.bitmaps[vm.ActiveCheckpoint]; there {
			v.Bitmap = state
		}
		if d.raw {
			v.Format, v.Untrackable = "raw", "raw has no bitmaps"
		}
		in.Volumes = append(in.Volumes, v)
	}
	return in
}

// backup decides, and does to records and bitmaps what a backup does.
func (s *decideStory) backup(how []string) string {
	s.t.Helper()
	ctx := s.t.Context()
	in := s.input(how)
	d := decide(s.t, in)
	b := kvmbackup.Backup{
		ID: kvmbackup.NewBackupID(), VM: lab.VM, Kind: d.Kind, Status: kvmbackup.StatusRunning, ChainID: d.ChainID,
		Position: d.Position, ParentID: d.ParentID, Checkpoint: d.Checkpoint, Repository: s.repository, StartedAt: lab.Epoch,
		Consistency: kvmbackup.ConsistencyCrash, Path: string(lab.VM) + "/" +
			strings.TrimPrefix(in.NewCheckpoint.String(), "kvmbackup-"),
	}
	for i, v := range d.Volumes {
		b.Volumes = append(b.Volumes, kvmbackup.VolumeBackup{
			VolumeID: v.VolumeID, Device: v.Device, Kind: v.Kind, File: "disk." + v.VolumeID.String() + ".qcow2",
			ParentFile: v.ParentFile, VirtualSize: in.Volumes[i].VirtualSize, Tracked: v.Tracked,
		})
	}
	lab.OK(s.t, b.Validate())
	failed := slices.Contains(how, "fails")
	s.write(func(l kvmbackup.Lease) (err error) {
		if b, err = s.store.Begin(ctx, l, b); err != nil {
			return err
		}
		if failed {
			return s.store.Fail(ctx, l, b.ID, "story")
		}
		b.Status, b.CompletedAt = kvmbackup.StatusCompleted, lab.Epoch
		return s.store.Complete(ctx, l, b)
	})
	s.backups = append(s.backups, b.ID)
	if !failed && d.Checkpoint != "" {
		s.mark(s.disks, "") // the parent's checkpoint goes
		for i, v := range d.Volumes {
			if v.Tracked {
				s.disks[i].bitmaps[d.Checkpoint] = kvmbackup.BitmapUsable
			}
		}
	}
	return s.describe(b, d, failed)
}

func (s *decideStory) describe(b kvmbackup.Backup, d kvmbackup.Decision, failed bool) string {
	says := s.nameOf(b.ID) + " F"
	if d.Kind == kvmbackup.KindIncremental {
		says = fmt.Sprintf("%s I on %s at %d", s.nameOf(b.ID), s.nameOf(d.ParentID), d.Position)
	}
	if d.Checkpoint == "" {
		says += " untracked"
	}
	var codes []string
	for _, r := range d.Reasons {
		codes = append(codes, string(r.Code))
	}
	says += ": " + strings.Join(codes, ", ")
	for _, v := range d.Volumes {
		if v.Kind != d.Kind ||
			v.Reason.Code != kvmbackup.ReasonBackupFull && v.Reason.Code != kvmbackup.ReasonVolumeIncremental {
			says += fmt.Sprintf("; %s %s %s", v.Device,
				map[kvmbackup.Kind]string{kvmbackup.KindFull: "F", kvmbackup.KindIncremental: "I"}[v.Kind], v.Reason.Code)
		}
	}
	if failed {
		says += " (failed)"
	}
	return says
}
