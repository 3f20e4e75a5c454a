package stories_test

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// What the stories use of the harness for real guests.
type (
	config = realguest.Config
	disk   = realguest.Disk
	model  = realguest.Model
	guest  = realguest.Guest
)

var (
	startGuest = realguest.Start
	needRoot   = lab.NeedRoot
	needGuests = realguest.Need
	eventually = lab.Eventually
	openModel  = realguest.OpenModel
	removeRoot = realguest.RemoveRoot
)

func TestMain(m *testing.M) {
	lab.Attacker()
	os.Exit(realguest.Main(m, func() bool {
		byPull = lab.Thorough()
		return byPull
	}))
}

// mib is the unit of the stories' sizes and offsets.
const mib = 1 << 20

// disks are plain qcow2 disks of 16 MiB.
func disks(devices ...string) []disk {
	var out []disk
	for _, d := range devices {
		out = append(out, disk{Device: d, SizeBytes: 16 * mib})
	}
	return out
}

// gone says whether libvirt doesn't know the guest any more.
func (s *story) gone() bool {
	dom, err := s.guest.Host.Conn.LookupDomainByName(s.guest.Name)
	if err == nil {
		_ = dom.Free()
	}
	return err != nil
}

// start starts the stopped guest. libvirt takes a moment to forget a transient one that went by itself.
func (s *story) start() {
	s.Helper()
	var err error
	eventually(s.T, "the guest's predecessor is gone", func() bool {
		err = s.guest.TryCreate()
		return !errors.Is(err, libvirt.ERR_OPERATION_FAILED)
	})
	s.must(err)
}

// listed returns the checkpoints that libvirt lists, each with its devices.
func (s *story) listed() map[string][]string {
	s.Helper()
	dom, err := s.guest.Host.Conn.LookupDomainByName(s.guest.Name)
	if err != nil {
		return nil // transient and stopped
	}
	defer func() { _ = dom.Free() }()
	list, err := dom.ListAllCheckpoints(0)
	s.must(err)
	found := map[string][]string{}
	for i := range list {
		text, err := list[i].GetXMLDesc(libvirt.DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
		s.must(err)
		s.must(list[i].Free())
		var def libvirtxml.DomainCheckpoint
		s.must(def.Unmarshal(text))
		found[def.Name] = []string{}
		if def.Disks == nil {
			continue
		}
		for _, d := range def.Disks.Disks {
			if d.Checkpoint == "bitmap" {
				found[def.Name] = append(found[def.Name], d.Name)
			}
		}
	}
	return found
}

// part is a disk and the identity of its volume. One without a path is the volume's own image, wherever that was.
type part struct {
	id kvmbackup.VolumeID
	disk
}

// hurry lifts the limit of vda's job once Recover follows it: before that the job would end while Recover looks.
func (s *story) hurry(e engine.Event) {
	if e.Op == "recover" && e.Step == "follow job" && e.Type == engine.EventStep {
		s.unthrottle("vda")
	}
}

// rebuild changes the stopped guest's disks to just these, in this order. It stays stopped.
func (s *story) rebuild(parts ...part) {
	s.Helper()
	old, oldVolumes := s.guest, s.volumes
	cfg := s.cfg
	cfg.Name, cfg.UUID, cfg.Stopped, cfg.Disks = old.Name, old.UUID, true, nil
	s.volumes = nil
	content := map[string]string{}
	for _, p := range parts {
		was := slices.IndexFunc(oldVolumes, func(v engine.Volume) bool { return v.ID == p.id })
		if was >= 0 {
			device := oldVolumes[was].Device
			if p.Path == "" {
				p.Path = old.Image(device)
			}
			if p.Format == "" {
				p.Format = s.disk(device).Format
			}
			content[p.Device] = old.Model(device).Path()
			p.SizeBytes = sizeOf(s.T, content[p.Device])
		}
		if p.SizeBytes == 0 {
			p.SizeBytes = 16 * mib
		}
		cfg.Disks = append(cfg.Disks, p.disk)
		if p.id != "" {
			s.volumes = append(s.volumes, engine.Volume{ID: p.id, Device: p.Device})
		}
	}
	s.guest, s.disks = startGuest(s.T, cfg), cfg.Disks
	for device, from := range content {
		s.run("cp", "--sparse=always", from, s.guest.Model(device).Path())
	}
}

// plugIn attaches a disk to the running guest.
func (s *story) plugIn(id kvmbackup.VolumeID, d disk) {
	s.Helper()
	if d.SizeBytes == 0 {
		d.SizeBytes = 16 * mib
	}
	s.guest.AttachDisk(d)
	s.disks = append(s.disks, d)
	s.volumes = append(s.volumes, engine.Volume{ID: id, Device: d.Device})
}

// unplug detaches a disk from the running guest.
func (s *story) unplug(device string) {
	s.Helper()
	s.guest.DetachDisk(device)
	s.disks = slices.DeleteFunc(s.disks, func(d disk) bool { return d.Device == device })
	s.volumes = slices.DeleteFunc(s.volumes, func(v engine.Volume) bool { return v.Device == device })
}

func (s *story) disk(device string) disk {
	s.Helper()
	i := slices.IndexFunc(s.disks, func(d disk) bool { return d.Device == device })
	if i < 0 {
		s.Fatalf("no disk %s", device)
	}
	return s.disks[i]
}

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// run runs a command that has to succeed, and returns what it printed.
func (s *story) run(name string, args ...string) string {
	s.Helper()
	out, err := exec.CommandContext(s.ctx, name, args...).CombinedOutput()
	if err != nil {
		s.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// checkpoint makes a checkpoint as another vendor's tool, or an administrator, would.
func (s *story) checkpoint(name string, devices ...string) {
	s.Helper()
	def := libvirtxml.DomainCheckpoint{Name: name, Disks: &libvirtxml.DomainCheckpointDisks{}}
	for _, d := range s.disks {
		mode := "no"
		if slices.Contains(devices, d.Device) {
			mode = "bitmap"
		}
		def.Disks.Disks = append(def.Disks.Disks, libvirtxml.DomainCheckpointDisk{Name: d.Device, Checkpoint: mode})
	}
	text, err := def.Marshal()
	s.must(err)
	cp, err := s.guest.Domain().CreateCheckpointXML(text, 0)
	s.must(err)
	s.must(cp.Free())
}

// deleteCheckpoint deletes a checkpoint as an administrator would; the bitmaps stay if only the metadata goes.
func (s *story) deleteCheckpoint(name string, flags libvirt.DomainCheckpointDeleteFlags) {
	s.Helper()
	cp, err := s.guest.Domain().CheckpointLookupByName(name, 0)
	s.must(err)
	s.must(cp.Delete(flags))
	s.must(cp.Free())
}

const metadataOnly = libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY

// bitmap does something to a bitmap through QEMU's monitor, past libvirt: add, remove, disable.
func (s *story) bitmap(verb, device, name string) {
	s.Helper()
	args := map[string]any{"node": s.guest.TopNode(device), "name": name}
	if verb == "add" {
		args["persistent"] = true
	}
	s.guest.QMP("block-dirty-bitmap-"+verb, args, nil)
}

// pull begins somebody else's backup job, which lasts until it is aborted.
func (s *story) pull() (end func()) {
	s.Helper()
	dom := s.guest.Domain()
	socket := s.guest.Host.Root + "/" + s.guest.Name + ".sock"
	var others string
	for _, d := range s.disks[1:] {
		others += "<disk name='" + d.Device + "' backup='no'/>"
	}
	xml := "<domainbackup mode='pull'><server transport='unix' socket='" + socket + "'/><disks>" +
		"<disk name='" + s.disks[0].Device + "' backup='yes' type='file'>" +
		"<scratch file='" + s.TempDir() + "/scratch'/></disk>" + others + "</disks></domainbackup>"
	s.must(dom.BackupBegin(xml, "", 0))
	return func() {
		s.must(dom.AbortJob())
		eventually(s.T, "their job is over", func() bool {
			info, err := dom.GetJobStats(0)
			return err == nil && info.Type == libvirt.DOMAIN_JOB_NONE
		})
	}
}

// state is what libvirt says of the guest.
func (s *story) state() libvirt.DomainState {
	s.Helper()
	if s.gone() {
		return libvirt.DOMAIN_SHUTOFF
	}
	state, _, err := s.guest.Domain().GetState()
	s.must(err)
	return state
}

func (s *story) unmount(dir string) { _ = exec.Command("umount", "-l", dir).Run() }

func sprint(n int64) string { return strconv.FormatInt(n, 10) }

// undefine makes libvirt forget the stopped guest, as when it moves to another host. The images keep their bitmaps.
func (s *story) undefine() {
	s.Helper()
	if s.cfg.Persistent {
		s.must(s.guest.Domain().UndefineFlags(libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA))
	}
}

// unthrottle lifts the bandwidth limit of the job on a disk. On a busy machine the limit may have come too late, so
// that nothing is left to copy.
func (s *story) unthrottle(device string) {
	s.Helper()
	var jobs []struct {
		ID string `json:"device"`
	}
	s.guest.QMP("query-block-jobs", nil, &jobs)
	for _, j := range jobs {
		if strings.HasPrefix(j.ID, "backup-"+device+"-") {
			s.guest.QMP("block-job-set-speed", map[string]any{"device": j.ID, "speed": 0}, nil)
		}
	}
}
