package executortest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/kvmbackuptest"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// side is one of the two hosts, with those who back its guest up.
type side struct {
	name      string
	world     World
	ctx       context.Context //nolint:containedctx // a history has one, and every step needs it
	exec      kvmbackup.Executor
	consumers []*consumer
	names     map[string]string // what ours are called in comparisons: PREFIX#SEQUENCE
	scratch   string            // of the history
	room      string            // for pull jobs; empty: there are none
	domain    string
	tail      int64 // what the disks have behind what is written to
}

// consumer is one backup application.
type consumer struct {
	prefix   string
	engine   *engine.Engine
	store    *memstore.Store
	repo     *repository.Repository
	keys     *vault
	contents map[kvmbackup.BackupID]map[kvmbackup.VolumeID]content
	hooks    // of the backup under way
}

// hooks interfere with a backup.
type hooks struct {
	decided *kvmbackup.Decision
	cancel  func()            // called when it has decided
	halfway func()            // called when some is copied, and some isn't
	step    func(name string) // called when a step begins
	loses   string            // the call after which it is given up
}

var errEnough = errors.New("enough")

func newSide(p *play, name string, w World, d Domain, small bool, room string) *side {
	s := &side{name: name, world: w, room: room, ctx: p.ctx, exec: w.Executor(), names: map[string]string{},
		scratch: p.dir(), tail: d.Disks[0].SizeBytes - p.size}
	var err error
	s.domain, err = w.Make(d)
	must(err)
	for _, prefix := range []string{"kvmbackup", "other"} {
		s.consumers = append(s.consumers, s.newConsumer(p, prefix, small))
	}
	return s
}

func (s *side) newConsumer(p *play, prefix string, small bool) *consumer {
	c := &consumer{prefix: prefix, store: memstore.New(), keys: &vault{},
		contents: map[kvmbackup.BackupID]map[kvmbackup.VolumeID]content{}}
	share := s.world.Share
	if small {
		share = s.world.(Filler).SmallShare
	}
	dir, err := share()
	must(err)
	c.repo, err = repository.Init(s.ctx, dir, repository.Options{NoSync: true, AroundCall: c.aroundCall, Space: elsewhere})
	must(err)
	cfg := engine.Config{
		Store: losingStore{c.store, c}, Repository: c.repo, Executor: losingExecutor{s.exec, c},
		Images: s.world.Images(), Prefix: prefix, ReserveBytes: engine.NoReserve, OnEvent: c.event, Keys: c.keys,
	}
	if p.indexed {
		cfg.IndexKey = kvmbackup.NewDataKey()
	}
	if s.room != "" {
		cfg.Scratch = []string{s.room}
	}
	c.engine, err = engine.New(cfg)
	must(err)
	return c
}

// loseKeys has the host open no sealed backups any more, or all again.
func (s *side) loseKeys(gone bool) {
	for _, c := range s.consumers {
		c.keys.lose(gone)
	}
}

// elsewhere has the repository on another file system than the scratch.
func elsewhere(s repository.Space) repository.Space {
	s.Device = ^s.Device
	return s
}

func (c *consumer) event(e engine.Event) {
	switch {
	case e.Type == engine.EventStep && c.step != nil:
		c.step(e.Step)
	case e.Type == engine.EventProgress && c.halfway != nil && 0 < e.Progress.DoneBytes &&
		e.Progress.DoneBytes < e.Progress.TotalBytes:
		c.halfway()
	case e.Type == engine.EventDecided:
		c.decided = e.Decision
		if c.cancel != nil {
			c.cancel()
		}
	}
}

func (s *side) request(p *play) engine.BackupRequest {
	r := engine.BackupRequest{VM: kvmbackup.VMID(s.domain)}
	for _, device := range p.devices() {
		r.Volumes = append(r.Volumes, engine.Volume{ID: p.plugged[device].id, Device: device})
		if p.transient {
			r.Disks = append(r.Disks, kvmbackup.DiskRef{Device: device, Source: s.source(device), Format: "qcow2"})
		}
	}
	return r
}

func (s *side) ref(p *play) kvmbackup.DomainRef {
	return kvmbackup.DomainRef{Name: s.domain, Disks: s.request(p).Disks}
}

func (s *side) target(p *play) engine.Target {
	t := s.request(p).Target()
	t.Domain = s.domain
	return t
}

// operate lets an engine do something. Nothing of others may be touched by it, except that a restore replaces whole
// images.
func (s *side) operate(p *play, verb string, words []string) string {
	c := s.consumers[0]
	if slices.Contains(words, "other") {
		c = s.consumers[1]
	}
	before := s.others(p, c)
	var text string
	switch verb {
	case "backup":
		text = s.backup(p, c, words)
	case "delete":
		text = s.delete(c, words)
	case "forget":
		text = class(c.engine.Forget(s.ctx, s.target(p)))
	case "require-full":
		text = class(c.engine.RequireFull(s.ctx, engine.Target{VM: kvmbackup.VMID(s.domain)}))
	case "recover":
		settled, err := c.engine.Recover(s.ctx, s.target(p))
		for _, r := range settled {
			text += string(r.Outcome) + ", "
		}
		text += class(err)
	case "restore":
		text = s.restore(p, c, words)
		before = s.others(p, c)
	}
	if after := s.others(p, c); !slices.Equal(before, after) {
		panic(failure{fmt.Sprintf("%s: what belongs to others was touched: %q became %q", s.name, before, after)})
	}
	s.learnNames()
	return text
}

// backup takes a backup and describes it, or its failure.
func (s *side) backup(p *play, c *consumer, words []string) string {
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	req := s.request(p)
	s.arrange(c, &req, words, func() { cancel(errEnough) })
	b, err := c.engine.Backup(ctx, req)
	c.hooks = hooks{decided: c.decided}
	s.free(c)
	s.learnNames()
	var out strings.Builder
	if d := c.decided; d != nil {
		fmt.Fprintf(&out, "decided: %v, base %q, position %d\n", d.Kind, s.named(string(d.Base)), d.Position)
	}
	if err != nil {
		s.left(p, c, slices.Contains(words, "slow"))
		return out.String() + class(err)
	}
	c.contents[b.ID] = p.contents()
	s.onlyActive(p, c)
	fmt.Fprintf(&out, "backup: %v, %v-consistent, checkpoint %q, position %d, parent %s", b.Kind, b.Consistency,
		s.named(string(b.Checkpoint)), b.Position,
		s.sequence(c, b.ParentID))
	for _, r := range b.Reasons {
		fmt.Fprintf(&out, "\nreason: %s %s", r.VolumeID, r.Code)
	}
	for _, v := range b.Volumes {
		fmt.Fprintf(&out, "\nvolume: %s on %s, %v, %d bytes, tracked %v", v.VolumeID, v.Device, v.Kind, v.VirtualSize,
			v.Tracked)
		if v.Kind == kvmbackup.KindIncremental && p.plugged[v.Device].layers == 1 {
			fmt.Fprintf(&out, ", dirty %d", v.DirtyBytes)
		}
		if v.Digest != "" {
			fmt.Fprintf(&out, ", digest %s", v.Digest)
		}
		s.sane(c, b, v, p.plugged[v.Device].layers)
	}
	return out.String()
}

// arrange puts into a request and its consumer what the words after "backup" say.
func (s *side) arrange(c *consumer, req *engine.BackupRequest, words []string, cancel func()) {
	c.hooks = hooks{}
	req.Policy.FullEvery = 4
	for _, w := range words {
		switch w {
		case "off":
			req.Policy.DisableIncremental = true
		case "full":
			req.Policy.ForceFull = true
		case "offline":
			req.Policy.OfflineIncremental = true
		case "sealed":
			req.Policy.Encryption = kvmbackup.EncryptionLUKS
		case "compare":
			req.Policy.Compare = true
		case "check":
			req.Policy.ForceCompare = true
		case "digests":
			req.Digests = true
		case "long":
			req.Policy.FullEvery = 100
		case "quiesce":
			req.Quiesce = engine.QuiesceTry
		case "slow":
			req.BandwidthBytes = cluster
		case "cancel":
			c.cancel = cancel
		case "abort":
			req.OnJob = func(engine.JobControl) { cancel() }
		case "halfway":
			c.halfway = cancel
		case "full-target":
			c.step = func(step string) {
				switch step {
				case "begin job":
					must(s.world.(Filler).Fill(c.repo.Root()))
				case "check targets":
					s.free(c)
				}
			}
		}
		if call, ok := strings.CutPrefix(w, "lost="); ok {
			c.loses = call
		}
	}
}

func (s *side) source(device string) string {
	path, err := s.world.Source(device)
	must(err)
	return path
}

func (s *side) free(c *consumer) {
	if f, ok := s.world.(Filler); ok {
		must(f.Free(c.repo.Root()))
	}
}

// left sees to what a backup has left that was given up: its job goes on to its end, unless it is slow.
func (s *side) left(p *play, c *consumer, slow bool) {
	all, err := c.store.List(s.ctx, kvmbackup.Query{VM: kvmbackup.VMID(s.domain)})
	must(err)
	for _, b := range all {
		if c.contents[b.ID] == nil {
			c.contents[b.ID] = p.contents()
		}
		if b.Status == kvmbackup.StatusRunning && !slow {
			must(s.world.FinishJob())
		}
	}
}

// restore restores what the guest still has of a backup's volumes over its disks.
func (s *side) restore(p *play, c *consumer, words []string) string {
	b, ok := s.pick(c, words)
	if !ok {
		return "nothing to restore"
	}
	now := s.request(p)
	req := engine.RestoreRequest{Backup: b.ID, InPlace: &engine.InPlace{Volumes: now.Volumes, Disks: now.Disks}}
	for _, v := range now.Volumes {
		if _, ok := b.Volume(v.ID); ok {
			req.Volumes = append(req.Volumes, engine.RestoreVolume{ID: v.ID})
		}
	}
	if len(req.Volumes) == 0 {
		return "nothing to restore"
	}
	r, err := c.engine.Restore(s.ctx, req)
	if err != nil {
		return "restore: " + class(err)
	}
	for _, restored := range r.Volumes {
		v := p.plugged[now.Volumes[slices.IndexFunc(now.Volumes,
			func(v engine.Volume) bool { return v.ID == restored.VolumeID })].Device]
		v.content, v.layers = c.contents[b.ID][v.id].clone(), 1
	}
	return fmt.Sprintf("restore: %d volumes of %d", len(r.Volumes), b.Sequence)
}

// pick returns one of the backups that are offered.
func (s *side) pick(c *consumer, words []string) (kvmbackup.Backup, bool) {
	offered, err := c.engine.List(s.ctx, kvmbackup.Query{VM: kvmbackup.VMID(s.domain),
		Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted}})
	must(err)
	if len(offered) == 0 {
		return kvmbackup.Backup{}, false
	}
	n, _ := strconv.Atoi(words[0])
	return offered[n%len(offered)], true
}

func (s *side) sequence(c *consumer, id kvmbackup.BackupID) string {
	if id == "" {
		return "none"
	}
	b, err := c.store.Backup(s.ctx, id)
	must(err)
	return strconv.FormatInt(b.Sequence, 10)
}

// delete deletes one of the backups that are offered.
func (s *side) delete(c *consumer, words []string) string {
	b, ok := s.pick(c, words)
	if !ok {
		return "nothing to delete"
	}
	plan, err := c.engine.Delete(s.ctx, b.ID, kvmbackup.DeleteOptions{Subtree: slices.Contains(words, "force")})
	return fmt.Sprintf("delete: %d go, %d wait, clears active %v: %s", len(plan.Remove), len(plan.Pending),
		plan.ClearsActive, class(err))
}

// learnNames gives the checkpoints of new records their names in comparisons.
func (s *side) learnNames() {
	for _, c := range s.consumers {
		all, err := c.store.List(s.ctx, kvmbackup.Query{VM: kvmbackup.VMID(s.domain)})
		must(err)
		for _, b := range all {
			if b.Checkpoint != "" {
				s.names[string(b.Checkpoint)] = fmt.Sprintf("%s#%d", c.prefix, b.Sequence)
			}
		}
	}
}

func (s *side) named(name string) string {
	if n, ok := s.names[name]; ok {
		return n
	}
	return name
}

// state is what the host shows of the guest, and the stores of its backups.
func (s *side) state(p *play) string {
	st, err := s.exec.Inspect(s.ctx, s.ref(p))
	must(err)
	var out strings.Builder
	fmt.Fprintf(&out, "domain: %v, defined %v, persistent %v, clean %v, job %v\n", st.State, st.Defined, st.Persistent,
		st.CleanShutdown, st.Job)
	slices.SortFunc(st.Disks, func(a, b kvmbackup.DiskStatus) int { return strings.Compare(a.Device, b.Device) })
	for _, d := range st.Disks {
		fmt.Fprintf(&out, "disk %s: %s, %d bytes, skip %q, unreadable %v, untrackable %q, unknown %v, bitmaps %q\n",
			d.Device, d.Format, d.VirtualSize,
			d.Skip, d.Unreadable != "", d.Untrackable, d.BitmapsUnknown != "", s.bitmaps(d))
	}
	var listed []string
	for _, cp := range st.Checkpoints {
		slices.Sort(cp.Devices)
		listed = append(listed, fmt.Sprintf("%s on %v", s.named(cp.Name), cp.Devices))
	}
	slices.Sort(listed)
	fmt.Fprintf(&out, "checkpoints: %q", listed)
	for _, c := range s.consumers {
		out.WriteString(s.records(p, c))
	}
	return out.String()
}

// bitmaps spells a disk's bitmaps, with "!" behind an inconsistent one and "~" behind one that isn't persistent.
func (s *side) bitmaps(d kvmbackup.DiskStatus) []string {
	var out []string
	for _, b := range d.Bitmaps {
		name := s.named(b.Name)
		if b.Inconsistent {
			name += "!"
		}
		if !b.Persistent {
			name += "~"
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// records describes what a consumer's store has, and what its active checkpoint's bitmaps have recorded.
func (s *side) records(p *play, c *consumer) string {
	vm, err := c.store.VM(s.ctx, kvmbackup.VMID(s.domain))
	must(err)
	all, err := c.store.List(s.ctx, kvmbackup.Query{VM: kvmbackup.VMID(s.domain)})
	must(err)
	slices.SortFunc(all, func(a, b kvmbackup.Backup) int { return int(a.Sequence - b.Sequence) })
	var list []string
	for _, b := range all {
		list = append(list, fmt.Sprintf("%d %v %v", b.Sequence, b.Kind, b.Status))
	}
	text := fmt.Sprintf("\n%s: active %q, backups %q", c.prefix, s.named(string(vm.ActiveCheckpoint)), list)
	if vm.ActiveCheckpoint == "" {
		return text
	}
	dirty, err := s.exec.DirtyBytes(s.ctx, s.ref(p), vm.ActiveCheckpoint)
	must(err)
	for device, n := range dirty {
		if p.plugged[device].layers > 1 { // the executor for libvirt counts a cluster once per layer
			delete(dirty, device)
			continue
		}
		dirty[device] = (n + cluster - 1) / cluster * cluster
	}
	return fmt.Sprintf("%s, dirty %v", text, dirty)
}

// onlyActive is what holds after each completed backup: of a consumer's bitmaps each disk has the active checkpoint's,
// or none.
func (s *side) onlyActive(p *play, c *consumer) {
	st, err := s.exec.Inspect(s.ctx, s.ref(p))
	must(err)
	active := s.active(c)
	for _, d := range st.Disks {
		for _, b := range d.Bitmaps {
			if kvmbackup.CheckpointName(b.Name).HasPrefix(c.prefix) && b.Name != active {
				panic(failure{fmt.Sprintf("%s: %s has bitmap %q of ours, active is %q", s.name, d.Device,
					s.named(b.Name), s.named(active))})
			}
		}
	}
}

// others lists what doesn't belong to a consumer.
func (s *side) others(p *play, c *consumer) []string {
	st, err := s.exec.Inspect(s.ctx, s.ref(p))
	must(err)
	var all []string
	for _, d := range st.Disks {
		for _, b := range d.Bitmaps {
			if !kvmbackup.CheckpointName(b.Name).HasPrefix(c.prefix) {
				all = append(all, fmt.Sprintf("bitmap %s:%s inconsistent %v", d.Device, b.Name, b.Inconsistent))
			}
		}
	}
	for _, cp := range st.Checkpoints {
		if !kvmbackup.CheckpointName(cp.Name).HasPrefix(c.prefix) {
			all = append(all, fmt.Sprintf("checkpoint %s on %v", cp.Name, cp.Devices))
		}
	}
	slices.Sort(all)
	return all
}

// lose lets somebody delete our checkpoint. libvirt refuses that with the bitmaps where one is missing.
func (s *side) lose(p *play, metadataOnly bool) string {
	active := s.active(s.consumers[0])
	st, err := s.exec.Inspect(s.ctx, s.ref(p))
	must(err)
	for _, cp := range st.Checkpoints {
		if cp.Name == active && (metadataOnly || complete(st, cp)) {
			must(s.world.(Meddler).RemoveCheckpoint(active, metadataOnly))
			return "deleted"
		}
	}
	return "not there"
}

// complete says whether each of a checkpoint's disks has its bitmap.
func complete(st kvmbackup.DomainStatus, cp kvmbackup.CheckpointStatus) bool {
	return !slices.ContainsFunc(cp.Devices, func(device string) bool {
		return !slices.ContainsFunc(st.Disks, func(d kvmbackup.DiskStatus) bool {
			return d.Device == device && slices.ContainsFunc(d.Bitmaps,
				func(b kvmbackup.BitmapStatus) bool { return b.Name == cp.Name })
		})
	})
}

// loseBitmap lets somebody remove our bitmap behind libvirt's back.
func (s *side) loseBitmap(p *play, device string) string {
	active := s.active(s.consumers[0])
	st, err := s.exec.Inspect(s.ctx, s.ref(p))
	must(err)
	for _, d := range st.Disks {
		for _, b := range d.Bitmaps {
			if d.Device == device && b.Name == active && p.plugged[device].layers == 1 {
				must(s.world.(Meddler).RemoveBitmap(device, active))
				return "removed"
			}
		}
	}
	return "not there"
}

func (s *side) active(c *consumer) string {
	vm, err := c.store.VM(s.ctx, kvmbackup.VMID(s.domain))
	must(err)
	return string(vm.ActiveCheckpoint)
}

// verify reads every backup that is offered, restores the newest and those with something sealed, and compares them
// with what the disks held.
func (s *side) verify(c *consumer) {
	offered, err := c.engine.List(s.ctx, kvmbackup.Query{VM: kvmbackup.VMID(s.domain),
		Statuses: []kvmbackup.Status{kvmbackup.StatusCompleted}})
	must(err)
	slices.SortFunc(offered, func(a, b kvmbackup.Backup) int { return int(a.Sequence - b.Sequence) })
	for _, b := range offered {
		chain, err := kvmbackup.ChainOf(s.ctx, c.store, b.ID)
		must(err)
		if slices.ContainsFunc(chain, kvmbackup.Backup.Sealed) {
			s.compareRestored(c, b)
			continue
		}
		for _, v := range b.Volumes {
			s.compare(c, b, v.VolumeID, c.repo.FilePath(b.Path, v.File))
		}
	}
	s.compareRestored(c, offered[len(offered)-1])
}

// compareRestored restores a backup and compares it with what the disks held.
func (s *side) compareRestored(c *consumer, b kvmbackup.Backup) {
	dir, err := os.MkdirTemp(s.scratch, "restored-")
	must(err)
	r, err := c.engine.Restore(s.ctx, engine.RestoreRequest{Backup: b.ID, Dir: dir})
	must(err)
	if len(r.Volumes) != len(b.Volumes) {
		panic(failure{fmt.Sprintf("%s: %d volumes of %d were restored", s.name, len(r.Volumes), len(b.Volumes))})
	}
	for _, v := range r.Volumes {
		s.compare(c, b, v.VolumeID, v.Path)
	}
}

func (s *side) compare(c *consumer, b kvmbackup.Backup, id kvmbackup.VolumeID, file string) {
	got, err := kvmbackuptest.ReadChain(file)
	must(err)
	held := c.contents[b.ID][id]
	if size := got.SizeBytes() - s.tail; size != held.size || got.AllocatedBytes() > size+cluster {
		panic(failure{fmt.Sprintf("%s: backup %d, %s: %d bytes, %d with data, the disk had %d", s.name, b.Sequence, id,
			size, got.AllocatedBytes(), held.size)})
	}
	for i := int64(0); i*cluster < held.size; i++ {
		want := held.cluster(i)
		data := make([]byte, len(want))
		_, err = got.ReadAt(data, i*cluster)
		must(err)
		if bytes.Equal(want, data) {
			continue
		}
		n := 0
		for want[n] == data[n] {
			n++
		}
		panic(failure{fmt.Sprintf("%s: backup %d, %s: %#x at offset %d, the disk had %#x", s.name, b.Sequence, id,
			data[n], i*cluster+int64(n), want[n])})
	}
}

// What a file has beside the disk's clusters: qcow2's own, and a LUKS header.
const (
	ownOfImage  = 1 << 20
	ownOfSealed = 3 << 20
)

// sane wants a volume to have stored all that differs from its parent; where contents were compared nothing else; and
// nothing that only damage explains.
func (s *side) sane(c *consumer, b kvmbackup.Backup, v kvmbackup.VolumeBackup, layers int) {
	has := func(code kvmbackup.ReasonCode, of kvmbackup.VolumeID) bool {
		return slices.ContainsFunc(b.Reasons, func(r kvmbackup.Reason) bool { return r.Code == code && r.VolumeID == of })
	}
	now, stored := c.contents[b.ID][v.VolumeID], v.VirtualSize
	if v.Kind == kvmbackup.KindIncremental {
		differs := now.differing(c.contents[b.ParentID][v.VolumeID])
		stored = v.DirtyBytes
		exact := has(kvmbackup.ReasonVolumeCompared, v.VolumeID) && !has(engine.ReasonComparedByIndex, v.VolumeID)
		if stored < differs || exact && stored != differs || layers == 1 && stored > v.VirtualSize+cluster {
			panic(failure{fmt.Sprintf("%s: backup %d, %s: %d bytes are stored of %d, %d differ, because %v", s.name,
				b.Sequence, v.VolumeID, stored, v.VirtualSize, differs, b.Reasons)})
		}
	}
	most := stored + ownOfImage + v.VirtualSize/4096
	if v.FileEncryption != "" {
		most += ownOfSealed
	}
	if v.StoredSize > most || has(engine.ReasonBitmapMissed, v.VolumeID) ||
		has(engine.ReasonParentUnreadable, v.VolumeID) {
		panic(failure{fmt.Sprintf("%s: backup %d, %s takes %d bytes for %d, because %v", s.name, b.Sequence, v.VolumeID,
			v.StoredSize, stored, b.Reasons)})
	}
}

// class is what an error is about.
func class(err error) string {
	if err == nil {
		return "no error"
	}
	if code := kvmbackup.Code(err); code != kvmbackup.Code(kvmbackup.ErrOther) {
		return fmt.Sprintf("error: %q, given up %v", code, errors.Is(err, errEnough))
	}
	return "error: " + err.Error()
}
