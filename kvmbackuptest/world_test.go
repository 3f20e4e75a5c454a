package kvmbackuptest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

const (
	vm      = "vm1"
	cluster = kvmbackuptest.ClusterBytes
)

// world is a host with one VM, a store, a repository and an engine, and what every backup has to contain.
type world struct {
	dir     string
	h       *kvmbackuptest.Hypervisor
	store   *memstore.Store
	repo    *repository.Repository
	engine  *engine.Engine
	gate    *gate
	cfg     engine.Config
	keys    *vault          // nil: nothing is sealed
	volumes []engine.Volume // what requests name
	disks   []kvmbackup.DiskRef
	mu      *sync.Mutex
	// contents is what each volume held at the instant that its backup's job began; begun writes it under mu.
	contents map[kvmbackup.BackupID]map[kvmbackup.VolumeID]kvmbackuptest.Content
	restores int
	seed     uint64
	stray    []string // calls that touched what is not ours
}

// newWorld makes a running VM with two disks of eight clusters; transient domains are described by their requests.
func newWorld(dir string, transient bool, agent kvmbackuptest.Agent) (*world, error) {
	l := &world{
		dir: dir, h: kvmbackuptest.NewHypervisor(), store: memstore.New(), mu: new(sync.Mutex),
		contents: map[kvmbackup.BackupID]map[kvmbackup.VolumeID]kvmbackuptest.Content{},
	}
	for _, sub := range []string{"images", "nas"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	var err error
	if l.repo, err = repository.Init(context.Background(), filepath.Join(dir, "nas"),
		repository.Options{NoSync: true}); err != nil {
		return nil, err
	}
	d := kvmbackuptest.Domain{Name: vm, Transient: transient, Agent: agent}
	for _, device := range []string{"vda", "vdb"} {
		d.Disks = append(d.Disks, l.newDisk(device, device))
		l.volumes = append(l.volumes, engine.Volume{ID: kvmbackup.VolumeID("vol-" + device), Device: device})
		if transient {
			l.disks = append(l.disks, kvmbackup.DiskRef{Device: device, Source: d.Disks[len(d.Disks)-1].Source, Format: "qcow2"})
		}
	}
	if err := l.h.Define(d); err != nil {
		return nil, err
	}
	err = l.open(plan{})
	return l, err
}

func (l *world) newDisk(device, name string) kvmbackuptest.Disk {
	return kvmbackuptest.Disk{
		Device: device, Source: filepath.Join(l.dir, "images", name+".qcow2"), SizeBytes: 8 * cluster,
	}
}

// open starts a new host process: an engine whose calls can be made to fail.
func (l *world) open(p plan) (err error) {
	l.gate = &gate{plan: p, kill: l.h.KillHost}
	l.cfg.Store = l.gate.store(l.store)
	if err = l.mount(repository.Options{AroundCall: l.gate.aroundCall}); err != nil {
		return err
	}
	l.cfg.Images = gatedImages{kvmbackuptest.Images{}, l.gate}
	l.cfg.Executor = gatedExecutor{l.h.Executor(), l.gate, l}
	l.engine, err = engine.New(l.cfg)
	return err
}

// mount has the next engine open the repository with these options.
func (l *world) mount(o repository.Options) (err error) {
	o.NoSync = true
	space := o.Space
	o.Space = func(s repository.Space) repository.Space {
		s.Device++ // the repository's file system is another than the scratch's
		if space != nil {
			s = space(s)
		}
		return s
	}
	l.cfg.Repository, err = repository.Open(context.Background(), l.repo.Root(), o)
	return err
}

// withScratch has backups of the running VM go by pull from now on.
func (l *world) withScratch() error {
	scratch := filepath.Join(l.dir, "scratch")
	l.cfg.Scratch = []string{scratch}
	return errors.Join(os.Mkdir(scratch, 0o755), l.open(plan{}))
}

// checkScratch says what jobs have left there.
func (l *world) checkScratch() error {
	for _, path := range l.cfg.Scratch {
		left, err := os.ReadDir(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
			return fmt.Errorf("the scratch has %v, %w", left, err)
		}
	}
	return nil
}

func (l *world) request(p kvmbackup.Policy) engine.BackupRequest {
	return engine.BackupRequest{VM: vm, Volumes: l.volumes, Disks: l.disks, Policy: p}
}

// begun notes the contents at the instant of a job's begin, by the volumes that the job names.
func (l *world) begun(spec kvmbackup.JobSpec) {
	held := map[kvmbackup.VolumeID]kvmbackuptest.Content{}
	for _, v := range spec.Volumes {
		c, err := l.h.Content(vm, v.Device)
		if err != nil {
			panic(err)
		}
		held[v.VolumeID] = c
	}
	l.mu.Lock() // VMs' backups may begin at once
	defer l.mu.Unlock()
	l.contents[spec.ID] = held
}

// write lets the guest write new data, clusters at a time.
func (l *world) write(device string, at, n int64) error {
	l.seed++
	return l.h.Write(vm, device, at*cluster, kvmbackuptest.Pattern(l.seed, int(n*cluster)))
}

// verify reads a completed backup's files and compares them with what the disks held; where they may be sealed it
// restores them.
func (l *world) verify(b kvmbackup.Backup) error {
	if l.keys != nil {
		return l.restore(b)
	}
	for _, v := range b.Volumes {
		got, err := kvmbackuptest.ReadChain(l.repo.FilePath(b.Path, v.File))
		if err != nil {
			return fmt.Errorf("backup %s: %w", b.Path, err)
		}
		if diff := got.Diff(l.contents[b.ID][v.VolumeID]); diff != "" {
			return fmt.Errorf("backup %s, %s: %s", b.Path, v.VolumeID, diff)
		}
	}
	return nil
}

// restore restores a backup to new files with the engine and compares those.
func (l *world) restore(b kvmbackup.Backup) error {
	l.restores++
	dir := filepath.Join(l.dir, fmt.Sprintf("restored-%d", l.restores))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	reader, err := l.reader()
	if err != nil {
		return err
	}
	r, err := reader.Restore(context.Background(), engine.RestoreRequest{Backup: b.ID, Dir: dir})
	if err != nil {
		return err
	}
	if len(r.Volumes) != len(b.Volumes) {
		return fmt.Errorf("restore of %s gave %d volumes of %d", b.Path, len(r.Volumes), len(b.Volumes))
	}
	for _, v := range r.Volumes {
		got, err := kvmbackuptest.ReadChain(v.Path)
		if err != nil {
			return err
		}
		if diff := got.Diff(l.contents[b.ID][v.VolumeID]); diff != "" {
			return fmt.Errorf("restore of %s, %s: %s", b.Path, v.VolumeID, diff)
		}
	}
	return os.RemoveAll(dir)
}

// restoreAll restores every backup that is offered.
func (l *world) restoreAll() error {
	offered, err := l.engine.List(context.Background(), kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted},
	})
	if err != nil {
		return err
	}
	for _, b := range offered {
		if _, err := l.engine.Chain(context.Background(), b.ID); err != nil {
			return err
		}
		if err := l.restore(b); err != nil {
			return err
		}
	}
	return nil
}

// ours returns the checkpoints and bitmaps with the engine's prefix on a device, and those of others.
func (l *world) names(device string) (ours, others []string, err error) {
	all, err := l.h.Checkpoints(vm)
	if err != nil {
		return nil, nil, err
	}
	bitmaps, err := l.h.Bitmaps(vm, device)
	for _, b := range bitmaps {
		all = append(all, b.Name)
	}
	seen := map[string]bool{}
	for _, n := range all {
		if seen[n] {
			continue
		}
		seen[n] = true
		if kvmbackup.CheckpointName(n).HasPrefix(l.prefix()) {
			ours = append(ours, n)
		} else {
			others = append(others, n)
		}
	}
	return ours, others, err
}

// checkClean says what is left over: records that are running, folders that belong to no record, checkpoints and
// bitmaps of ours but the active one.
func (l *world) checkClean() error {
	ctx := context.Background()
	records, err := l.store.List(ctx, kvmbackup.Query{VM: vm})
	if err != nil {
		return err
	}
	folders := map[string]bool{}
	for _, b := range records {
		switch b.Status {
		case kvmbackup.StatusRunning:
			return fmt.Errorf("backup %s is still running", b.Path)
		case kvmbackup.StatusCompleted, kvmbackup.StatusDeletePending:
			folders[b.Path] = true
		}
	}
	entries, err := l.repo.List(ctx, vm)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Kind != repository.FolderForeign && (e.Kind != repository.FolderPublished || !folders[e.Path]) {
			return fmt.Errorf("folder %s (%v) is left over", e.Name, e.Kind)
		}
		delete(folders, e.Path)
	}
	if len(folders) > 0 {
		return fmt.Errorf("folders of records are missing: %v", folders)
	}
	return errors.Join(l.checkNames(ctx), l.checkScratch())
}

func (l *world) checkThawed() error {
	g, err := l.h.Guest(vm)
	if err == nil && g.Frozen {
		err = errors.New("the guest is left frozen")
	}
	return err
}

func (l *world) checkNames(ctx context.Context) error {
	rec, err := l.store.VM(ctx, vm)
	if err != nil {
		return err
	}
	owners, err := l.store.List(ctx, kvmbackup.Query{VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted}})
	if err != nil {
		return err
	}
	if n := rec.ActiveCheckpoint; n != "" && !slices.ContainsFunc(owners, func(b kvmbackup.Backup) bool {
		return b.Checkpoint == n
	}) {
		return fmt.Errorf("the active checkpoint %s is no completed backup's", n)
	}
	for _, v := range l.volumes {
		ours, _, err := l.names(v.Device)
		if err != nil {
			return err
		}
		for _, n := range ours {
			if n != string(rec.ActiveCheckpoint) {
				return fmt.Errorf("%s has %q, active is %q", v.Device, n, rec.ActiveCheckpoint)
			}
		}
	}
	if len(l.stray) > 0 {
		return fmt.Errorf("calls that touch what is not ours: %v", l.stray)
	}
	return nil
}

// kinds spells the offered backups as F and I.
func (l *world) kinds() string {
	list, _ := l.engine.List(context.Background(), kvmbackup.Query{
		VM: vm, Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted},
	})
	var s strings.Builder
	for _, b := range list {
		s.WriteString(strings.ToUpper(b.Kind.String()[:1]))
	}
	return s.String()
}

// memoryDir is a folder in memory where there is one.
func memoryDir(t testing.TB) string {
	if space, err := repository.SpaceAt("/dev/shm"); err != nil || space.FreeBytes < 2<<30 { // a scratch has to have room
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "kvmbackuptest-") //nolint:usetesting // t.TempDir would be on a disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// story runs a test with a world in a bubble, in which waiting takes no time.
func story(t *testing.T, transient bool, tell func(t *testing.T, s *teller)) {
	t.Helper()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		l, err := newWorld(dir, transient, kvmbackuptest.AgentPresent)
		if err != nil {
			t.Fatal(err)
		}
		s := &teller{world: l, t: t}
		s.must(l.h.Start(vm))
		s.must(l.write("vda", 0, 3))
		s.must(l.write("vdb", 1, 2))
		tell(t, s)
		if len(l.stray) > 0 {
			t.Errorf("calls that touch what is not ours: %v", l.stray)
		}
	})
}

// teller is a world whose errors end the test.
type teller struct {
	*world
	t *testing.T
}

func (s *teller) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// backup takes a backup, which must succeed, verifies it and checks that nothing is left over.
func (s *teller) backup(p kvmbackup.Policy) kvmbackup.Backup {
	s.t.Helper()
	return s.take(s.request(p))
}

func (s *teller) take(req engine.BackupRequest) kvmbackup.Backup {
	s.t.Helper()
	b, err := s.engine.Backup(s.t.Context(), req)
	s.must(err)
	if b.Status != kvmbackup.StatusCompleted {
		s.t.Errorf("backup %s is %v", b.ID, b.Status)
	}
	s.must(s.verify(b))
	s.must(s.checkClean())
	return b
}

// want checks the kinds of all offered backups and restores each.
func (s *teller) want(kinds string) {
	s.t.Helper()
	if got := s.kinds(); got != kinds {
		s.t.Errorf("backups are %s, want %s", got, kinds)
	}
	s.must(s.restoreAll())
}

func reasonOf(b kvmbackup.Backup, volume kvmbackup.VolumeID) kvmbackup.ReasonCode {
	for _, r := range b.Reasons {
		if r.VolumeID == volume {
			return r.Code
		}
	}
	return ""
}

func hasReason(b kvmbackup.Backup, code kvmbackup.ReasonCode) bool {
	for _, r := range b.Reasons {
		if r.Code == code {
			return true
		}
	}
	return false
}

func (l *world) prefix() string {
	if l.cfg.Prefix == "" {
		return l.repo.CheckpointPrefix()
	}
	return l.cfg.Prefix
}
