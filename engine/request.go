package engine

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/google/uuid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/repository"
)

// BackupRequest says what to back up and how. Only VM is required.
type BackupRequest struct {
	VM kvmbackup.VMID
	// Domain is libvirt's name of the VM. Defaults to VM.
	Domain string
	// DomainUUID, if set, must be the domain's: a protection against a name that another domain has by now.
	DomainUUID string
	// Disks describes a stopped domain that is not defined, as on hosts with transient domains.
	Disks []kvmbackup.DiskRef
	// Volumes gives the disks their identities, by device. Those not named are left out, with a reason. Empty: every
	// disk that can be backed up and that no other VM may write, its identity derived from the disk's serial or else
	// from its path, which a move of the file changes.
	Volumes []Volume
	// Only names the devices to back up, each with the identity that it has without Volumes. The others are left out,
	// with a reason.
	Only []string
	// Exclude names devices to leave out, with a reason on record. A device that the domain doesn't have is an
	// ErrNoVolume.
	Exclude []string
	// RequireAllDisks fails with ErrDiskLeftOut, naming each, rather than leave out a disk that holds the VM's data:
	// one that can't be read, that other VMs share, or that Volumes doesn't name. By default the others are saved, and
	// the record says what is missing. Drives without data of the VM's own (cdrom, floppy, read-only, transient, no
	// media) and those in Exclude are left out all the same.
	RequireAllDisks bool
	Policy          kvmbackup.Policy
	Quiesce         Quiesce
	// BandwidthBytes limits the job to so many bytes per second over all volumes, shared among those that are being
	// copied. 0: no limit. From 1 MiB per second and volume on it is what is written that counts, and holes pass. It is
	// in force from the first byte of a stopped VM. libvirt's begin takes no limit: a running VM's comes a moment after
	// it, and the 64 MiB per volume that QEMU then has under way, or more where storage is fast and libvirt slow to
	// answer, go before.
	BandwidthBytes int64
	// Turn says when it is this backup's turn for a place; see Config.HostLimit.
	Turn Turn
	// IgnoreSpace begins also where the repository seems to have too little room: where it compresses, or where it
	// can't be told what a disk holds. What then runs out in mid-job is an ErrNoSpace, and nothing is left of it.
	IgnoreSpace bool
	// Secrets saves the domain XML with its secrets, such as a VNC password.
	Secrets bool
	// Digests has a digest over the guest-visible bytes of every volume, for later verification. By pull, and of a stopped
	// VM, it is made of the bytes on their way; an incremental needs its parent's index for that. Otherwise what was
	// written is read again, with all that it stands on. A sealed backup always has digests of its files, and never of its
	// content, which others could compare; nor has a volume that stands on a sealed one.
	Digests bool
	// Keys wrap the data key where Policy.Encryption asks for it, for a VM with recipients of its own. nil: Config.Keys.
	Keys Keys
	// OnJob, if not nil, is given the running job, e.g. to adjust its bandwidth. It must not block.
	OnJob func(JobControl)
}

// JobControl is what a host may do with a running job.
type JobControl interface {
	// SetBandwidth limits the job to so many bytes per second over all volumes; 0 lifts the limit. Once the job has ended
	// it may return nil, and does nothing.
	SetBandwidth(bytesPerSecond int64) error
}

// Volume gives the disk on a device its identity.
type Volume struct {
	ID     kvmbackup.VolumeID
	Device string // the target, e.g. vda
	// Root marks the disk the VM boots from, whose file is named root.ID.qcow2. If none is marked, the first is, also
	// where it is left out.
	Root bool
}

// Quiesce says whether the guest's file systems are frozen for the instant of the backup.
type Quiesce int

// The ways to quiesce.
const (
	// QuiesceNo takes a crash-consistent backup.
	QuiesceNo Quiesce = iota
	// QuiesceTry freezes if the guest agent can; otherwise the backup is crash-consistent and says so.
	QuiesceTry
	// QuiesceRequire fails with ErrNotConsistent rather than take a crash-consistent backup.
	QuiesceRequire
)

var quiesceNames = []string{"no", "try", "require"}

// String returns "no", "try" or "require".
func (q Quiesce) String() string {
	if !q.valid() {
		return fmt.Sprintf("Quiesce(%d)", int(q))
	}
	return quiesceNames[q]
}

// MarshalText returns the String form.
func (q Quiesce) MarshalText() ([]byte, error) {
	if !q.valid() {
		return nil, fmt.Errorf("%w: no name for %v", kvmbackup.ErrInvalid, q)
	}
	return []byte(q.String()), nil
}

// UnmarshalText reads the String form; anything else is an ErrInvalid.
func (q *Quiesce) UnmarshalText(b []byte) error {
	i := slices.Index(quiesceNames, string(b))
	if i < 0 {
		return fmt.Errorf("%w quiesce mode %q: no, try or require expected", kvmbackup.ErrInvalid, b)
	}
	*q = Quiesce(i)
	return nil
}

func (q Quiesce) valid() bool { return q >= QuiesceNo && q <= QuiesceRequire }

func (r BackupRequest) ref() kvmbackup.DomainRef { return r.Target().ref() }

// validate names the first thing that is wrong with a request.
func (r BackupRequest) validate() error {
	if err := repository.ValidVMName(r.VM); err != nil {
		return err
	}
	if !r.Quiesce.valid() {
		return fmt.Errorf("%w request for %q: quiesce mode %v: no, try or require expected", kvmbackup.ErrInvalid, r.VM,
			r.Quiesce)
	}
	if err := r.Policy.Compression.Validate(); err != nil {
		return fmt.Errorf("policy for %q: %w", r.VM, err)
	}
	if err := r.Turn.validate(); err != nil {
		return err
	}
	if r.BandwidthBytes < 0 {
		return fmt.Errorf("%w request for %q: bandwidth %d is negative; 0 is no limit", kvmbackup.ErrInvalid, r.VM,
			r.BandwidthBytes)
	}
	if e := r.Policy.Encryption; e != "" && e != kvmbackup.EncryptionLUKS {
		return fmt.Errorf("%w request for %q: encryption %q: %q or none expected", kvmbackup.ErrInvalid, r.VM, e,
			kvmbackup.EncryptionLUKS)
	}
	ids, devices := map[kvmbackup.VolumeID]bool{}, map[string]bool{}
	for _, v := range r.Volumes {
		if err := kvmbackup.ValidName("volume id", string(v.ID)); err != nil {
			return fmt.Errorf("device %q: %w", v.Device, err)
		}
		if ids[v.ID] || devices[v.Device] || v.Device == "" {
			return fmt.Errorf("%w request for %q: volume %q on device %q is named twice or has no device",
				kvmbackup.ErrInvalid, r.VM, v.ID, v.Device)
		}
		ids[v.ID], devices[v.Device] = true, true
	}
	if len(r.Only) > 0 && len(r.Volumes) > 0 {
		return fmt.Errorf("%w request for %q: Volumes says already which disks to back up; leave Only out",
			kvmbackup.ErrInvalid, r.VM)
	}
	for _, device := range r.Only {
		if devices[device] || device == "" {
			return fmt.Errorf("%w request for %q: device %q of Only is empty or there twice", kvmbackup.ErrInvalid, r.VM, device)
		}
		devices[device] = true
	}
	for _, device := range r.Exclude {
		if devices[device] {
			return fmt.Errorf("%w request for %q: device %q is named and excluded", kvmbackup.ErrInvalid, r.VM, device)
		}
	}
	return nil
}

// devicesOn names the domain's disks, for those who named another.
func devicesOn(st kvmbackup.DomainStatus) string {
	var names []string
	for _, d := range st.Disks {
		names = append(names, d.Device)
	}
	if len(names) == 0 {
		return "no disks at all"
	}
	return strings.Join(names, ", ")
}

// volumeSpace makes the derived volume IDs their own kind of UUID.
var volumeSpace = uuid.MustParse("6e0f5b5e-6a35-4f0c-9d3c-1f6f6f1b7c0a")

// derivedID is a disk's serial, where it makes a plain name and no other disk has it, or else a UUID made from its
// path.
func derivedID(st kvmbackup.DomainStatus, d kvmbackup.DiskStatus) kvmbackup.VolumeID {
	shared := slices.ContainsFunc(st.Disks, func(o kvmbackup.DiskStatus) bool {
		return o.Serial == d.Serial && o.Device != d.Device
	})
	if d.Serial != "" && !shared && kvmbackup.ValidName("serial", d.Serial) == nil {
		return kvmbackup.VolumeID(d.Serial)
	}
	return kvmbackup.VolumeID(uuid.NewSHA1(volumeSpace, []byte(st.Name+"\x00"+d.Source)).String())
}

// fileName is the volume's file in the backup's folder, as the field names them.
func fileName(name string, root bool) string {
	if root {
		return "root." + name + ".qcow2"
	}
	return "datadisk." + name + ".qcow2"
}

// fileNames gives every volume its file, by identity. No two names differ in upper and lower case alone: many shares
// don't tell these apart.
func fileNames(vols []chosen) map[kvmbackup.VolumeID]string {
	m := map[kvmbackup.VolumeID]string{}
	for _, v := range vols {
		name := string(v.ID)
		if slices.ContainsFunc(vols, func(o chosen) bool { return alike(v.ID, o.ID) }) {
			name += fmt.Sprintf("-%.8x", sha256.Sum256([]byte(v.ID)))
		}
		m[v.ID] = fileName(name, v.Root)
	}
	return m
}

// alike says whether some storage may take a for b. What it does with letters beyond ASCII, as to capitals and to
// accents, can't be foreseen.
func alike(a, b kvmbackup.VolumeID) bool {
	beyond := strings.ContainsFunc(string(a), func(r rune) bool { return r > unicode.MaxASCII })
	return a != b && (beyond || strings.EqualFold(string(a), string(b)))
}
