package stories_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// story is one guest and those who back it up; the first consumer is embedded.
type story struct {
	*testing.T
	*consumer
	ctx       context.Context //nolint:containedctx // a test has one, and every helper needs it
	cfg       config
	guest     *guest
	disks     []disk
	volumes   []engine.Volume // the host's identities; empty: they are derived
	policy    kvmbackup.Policy
	digests   bool // of every backup
	pulls     bool // there is a scratch: backups of the running guest go by pull, unless the policy says otherwise
	consumers []*consumer
	crashed   bool // QEMU has taken bitmaps along, and no backup was taken since
	unproved  int  // backups that were not restored yet
}

// consumer is one backup application: an engine with its prefix, store and repository.
type consumer struct {
	prefix string
	dir    string // of the repository
	db     string // the store's file
	cfg    engine.Config
	engine *engine.Engine
	repo   *repository.Repository
	images *qcow2.Tool
	taken  []taken
}

// taken is a backup and what the disks held at the time.
type taken struct {
	kvmbackup.Backup
	content map[kvmbackup.VolumeID]*model
}

// errEnough is the cause of the stories' cancels.
var errEnough = errors.New("enough")

func tell(t *testing.T, cfg config) *story {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	s := &story{T: t, ctx: ctx, pulls: pulls(t), cfg: cfg, disks: cfg.Disks, guest: startGuest(t, cfg)}
	t.Cleanup(func() {
		if s.unproved > 0 && !t.Failed() {
			t.Errorf("the story ends with %d backups that nobody restored", s.unproved)
		}
	})
	for _, d := range cfg.Disks {
		if (d.Kind == "" || d.Kind == "disk") && !d.ReadOnly && !d.Empty {
			s.volumes = append(s.volumes, engine.Volume{ID: kvmbackup.VolumeID("vol-" + d.Device), Device: d.Device})
		}
	}
	dir := t.TempDir()
	s.must(os.Chmod(dir, 0o777))
	s.consumer = s.newConsumer("", dir, filepath.Join(t.TempDir(), "backups.db"))
	return s
}

// byPull has every story go by pull. The full tier tells each of them twice.
var byPull bool

// pulls draws one story in four in the quick tier, another one in each run.
func pulls(t *testing.T) bool {
	t.Helper()
	if lab.Thorough() {
		return byPull
	}
	drawn := fnv.New64a()
	_, _ = fmt.Fprint(drawn, lab.Seed(t), t.Name())
	return drawn.Sum64()%4 == 0
}

// newConsumer opens a backup application on a folder and a database, which may have been there before.
func (s *story) newConsumer(prefix, dir, db string, change ...func(*engine.Config)) *consumer {
	s.Helper()
	c := &consumer{prefix: prefix, dir: dir, db: db}
	var err error
	c.images, err = qcow2.New(qcow2.Config{})
	s.must(err)
	c.repo, err = repository.Init(s.ctx, dir, repository.Options{NoSync: true, Space: apart})
	s.must(err)
	hypervisor, err := libvirtjob.New(s.guest.Host.Conn, libvirtjob.Config{
		Images: c.images, ProgressInterval: 50 * time.Millisecond,
	})
	s.must(err)
	s.Cleanup(func() { _ = hypervisor.Close() })
	c.cfg = engine.Config{
		Store: s.openStore(db), Repository: c.repo, Executor: hypervisor, Images: c.images, Prefix: prefix,
		ReserveBytes: engine.NoReserve,
	}
	if s.pulls {
		room, err := os.MkdirTemp("/tmp", "s-") // a socket has to fit into its path
		s.must(err)
		s.Cleanup(func() { _ = os.RemoveAll(room) })
		c.cfg.Scratch = []string{room}
	}
	for _, f := range change {
		f(&c.cfg)
	}
	c.engine, err = engine.New(c.cfg)
	s.must(err)
	if prefix == "" {
		c.prefix = c.repo.CheckpointPrefix()
	}
	s.consumers = append(s.consumers, c)
	return c
}

func (s *story) openStore(file string) kvmbackup.Store {
	s.Helper()
	db, err := sql.Open("sqlite",
		"file:"+file+"?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(OFF)")
	s.must(err)
	s.Cleanup(func() { _ = db.Close() })
	store, err := sqlstore.New(s.ctx, db, sqlstore.Config{})
	s.must(err)
	s.must(store.Migrate(s.ctx))
	return store
}

func (s *story) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *story) vm() kvmbackup.VMID { return kvmbackup.VMID(s.guest.Name) }

// request asks for a backup of the guest as it is now. The disks of a transient guest are described, in case it is
// stopped.
func (s *story) request() engine.BackupRequest {
	s.Helper()
	r := engine.BackupRequest{VM: s.vm(), Volumes: s.volumes, Policy: s.policy, Digests: s.digests}
	if s.cfg.Persistent {
		return r
	}
	for _, d := range s.disks {
		if d.Kind == "cdrom" {
			continue
		}
		format := d.Format
		if format == "" {
			format = "qcow2"
		}
		r.Disks = append(r.Disks, kvmbackup.DiskRef{
			Device: d.Device, Source: s.guest.Image(d.Device), Format: format, ReadOnly: d.ReadOnly,
		})
	}
	return r
}

func (s *story) ref() kvmbackup.DomainRef {
	s.Helper()
	return kvmbackup.DomainRef{Name: s.guest.Name, Disks: s.request().Disks}
}

// write fills whole MiBs of a disk with a byte.
func (s *story) write(device string, pattern byte, at, length int64) {
	s.Helper()
	s.guest.Write(device, pattern, at*mib, length*mib)
}

// backup takes a backup and checks that everything is in order afterwards. The story has to restore it before it ends.
func (s *story) backup() kvmbackup.Backup {
	s.Helper()
	return s.backupBy(s.consumer, s.request())
}

func (s *story) backupBy(c *consumer, req engine.BackupRequest) kvmbackup.Backup {
	s.Helper()
	state := s.state()
	b, err := c.engine.Backup(s.ctx, req)
	s.must(err)
	if got := s.state(); got != state {
		s.Errorf("the guest is %v, was %v", got, state)
	}
	c.keep(s, b)
	return b
}

// keep notes what the disks held at a backup, and checks that everything is in order.
func (c *consumer) keep(s *story, b kvmbackup.Backup) {
	s.Helper()
	t := taken{Backup: b, content: map[kvmbackup.VolumeID]*model{}}
	for _, v := range b.Volumes {
		t.content[v.VolumeID] = s.guest.Model(v.Device).Snapshot()
	}
	c.taken = append(c.taken, t)
	s.crashed = false
	s.unproved++
	s.inOrder()
	s.bitmapsOf(c, b)
}

// full takes a backup that has to be full for the reason.
func (s *story) full(reason kvmbackup.ReasonCode) kvmbackup.Backup {
	s.Helper()
	b := s.backup()
	if b.Kind != kvmbackup.KindFull || b.Reasons[0].Code != reason {
		s.Errorf("backup is %v because %v, want full because %s", b.Kind, b.Reasons, reason)
	}
	return b
}

// incremental takes a backup that has to be incremental, except for the volumes that are named with the reason why they
// are full in it: "vol-vda: volume-new".
func (s *story) incremental(but ...string) kvmbackup.Backup {
	s.Helper()
	b := s.backup()
	if b.Kind != kvmbackup.KindIncremental {
		s.Errorf("backup is %v because %v, want incremental", b.Kind, b.Reasons)
		return b
	}
	s.wantFullVolumes(b, but...)
	return b
}

func (s *story) wantFullVolumes(b kvmbackup.Backup, want ...string) {
	s.Helper()
	var got []string
	for _, v := range b.Volumes {
		if v.Kind != kvmbackup.KindFull {
			continue
		}
		code := "no reason"
		for _, r := range b.Reasons {
			if r.VolumeID == v.VolumeID {
				code = string(r.Code)
			}
		}
		got = append(got, fmt.Sprintf("%s: %s", v.VolumeID, code))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.Errorf("full volumes are %q, want %q (reasons: %v)", got, want, b.Reasons)
	}
}

// wantReasons checks that the backup gives each volume's reason: "vol-vda: volume-bitmap-missing".
func (s *story) wantReasons(b kvmbackup.Backup, want ...string) {
	s.Helper()
	var got []string
	for _, r := range b.Reasons {
		if r.VolumeID != "" {
			got = append(got, fmt.Sprintf("%s: %s", r.VolumeID, r.Code))
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		s.Errorf("reasons are %q, want %q", got, want)
	}
}

// restore restores a backup to new files and compares them with what the disks held.
func (s *story) restore(c *consumer, t taken) {
	s.Helper()
	dir, err := os.MkdirTemp(s.TempDir(), "restored-")
	s.must(err)
	done, err := c.engine.Restore(s.ctx, engine.RestoreRequest{Backup: t.ID, Dir: dir})
	s.must(err)
	if len(done.Volumes) != len(t.Volumes) {
		s.Errorf("%d volumes were restored, %d backed up", len(done.Volumes), len(t.Volumes))
	}
	for _, v := range done.Volumes {
		was := t.content[v.VolumeID].Path()
		if v.VirtualSize != sizeOf(s.T, was) {
			s.Errorf("%s has %d bytes, the disk had %d", v.VolumeID, v.VirtualSize, sizeOf(s.T, was))
		}
		if err := c.images.Compare(s.ctx, was, v.Path, qcow2.CompareOptions{FormatA: qcow2.FormatRaw}); err != nil {
			s.Errorf("backup %d (%v), volume %s: %v", t.Sequence, t.Kind, v.VolumeID, err)
		}
	}
	s.must(os.RemoveAll(dir))
}

// restoreAll restores every backup of every consumer; each is verified before it is copied.
func (s *story) restoreAll() {
	s.Helper()
	s.unproved = 0
	for _, c := range s.consumers {
		for _, t := range c.taken {
			s.restore(c, t)
		}
	}
}

// refuses asks for a backup that has to fail with all of the errors, fast, and without changing anything at all.
func (s *story) refuses(req engine.BackupRequest, want ...error) error {
	s.Helper()
	before := s.everything()
	began := time.Now()
	_, err := s.engine.Backup(s.ctx, req)
	if took := time.Since(began); took > 10*time.Second { // libvirt itself would wait for 30
		s.Errorf("the refusal took %v", took)
	}
	s.wantErr(err, want...)
	s.Log(err)
	if after := s.everything(); !slices.Equal(before, after) {
		s.Errorf("the refused backup has changed something:\n%s\nwas\n%s", strings.Join(after, "\n"),
			strings.Join(before, "\n"))
	}
	return err
}

// fails asks for a backup that has to fail with all of the errors after it had begun, and leave nothing but its record.
func (s *story) fails(ctx context.Context, req engine.BackupRequest, want ...error) error {
	s.Helper()
	active := s.record().ActiveCheckpoint
	_, err := s.engine.Backup(ctx, req)
	s.wantErr(err, want...)
	s.Log(err)
	if got := s.record().ActiveCheckpoint; got != active {
		s.Errorf("active checkpoint is %q, was %q", got, active)
	}
	s.inOrder()
	return err
}

// wantErr checks the sentinels, and that the error is an *OpError that names the VM.
func (s *story) wantErr(err error, want ...error) {
	s.Helper()
	var op *kvmbackup.OpError
	if !errors.As(err, &op) {
		s.Errorf("error is %v, want an OpError", err)
	}
	for _, w := range want {
		if !errors.Is(err, w) {
			s.Errorf("error is %v, want %q", err, w)
		}
	}
}

func (s *story) record() kvmbackup.VMRecord {
	s.Helper()
	r, err := s.consumer.cfg.Store.VM(s.ctx, s.vm())
	s.must(err)
	return r
}

func (s *story) files(dir string) []string {
	s.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		found = append(found, strings.TrimPrefix(path, dir))
		return err
	})
	s.must(err)
	return found
}

// apart has the repository on another file system than the scratch.
func apart(s repository.Space) repository.Space {
	s.Device = ^s.Device
	return s
}
