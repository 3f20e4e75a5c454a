package kvmbackup

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// DefaultPrefix begins the prefix of an engine whose configuration has none; see RepositoryPrefix. It was the whole of it before: what
// such an engine has left is known to be its own by its records.
const DefaultPrefix = "kvmbackup"

// RepositoryPrefix is the prefix of an engine whose configuration has none, e.g. kvmbackup-5d41402a: DefaultPrefix and 32 bits of the
// SHA-256 of its repository's ID. So backups of one VM to several repositories don't take each other's checkpoints for leftovers.
func RepositoryPrefix(id string) string { return DefaultPrefix + "-" + VMID(id).Tag() }

// NewCheckpointName returns PREFIX-STAMP-TAG, e.g. kvmbackup-2026.11.23.07.04.50-1c5b3a02. libvirt allows letters, digits and "_-." in
// checkpoint names. The stamp orders them. The tag is the VM's: a disk may stand on a template that was once another VM with backups.
func NewCheckpointName(prefix string, s Stamp, vm VMID) CheckpointName {
	return CheckpointName(prefix + "-" + s.String() + "-" + vm.Tag())
}

// Tag is a short plain name of the VM's identity: 32 bits of its SHA-256, in hex.
func (vm VMID) Tag() string {
	sum := sha256.Sum256([]byte(vm))
	return hex.EncodeToString(sum[:4])
}

// Owns says whether a checkpoint or bitmap has a name of that prefix: PREFIX, a '-', a stamp and perhaps a VM's tag. Anything else is
// somebody else's, also when it begins alike.
func Owns(prefix, name string) bool {
	has, _, ok := splitName(name)
	return ok && has == prefix
}

// splitName takes a name of NewCheckpointName's form apart.
func splitName(name string) (prefix string, s Stamp, ok bool) {
	i := strings.LastIndexByte(name, '-')
	if i > 0 && tagForm.MatchString(name[i+1:]) {
		name = name[:i]
		i = strings.LastIndexByte(name, '-')
	}
	if i <= 0 {
		return "", s, false
	}
	s, err := ParseStamp(name[i+1:])
	return name[:i], s, err == nil
}

var tagForm = regexp.MustCompile(`^[0-9a-f]{8}$`)

// ValidPrefix returns ErrInvalid for a prefix that checkpoint names can't begin with: 1 to 64 letters, digits and '-' can, not
// beginning with '-'.
func ValidPrefix(prefix string) error {
	for _, r := range prefix {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-') {
			return fmt.Errorf("%w prefix %q: letters, digits and '-' only", ErrInvalid, prefix)
		}
	}
	if prefix == "" || prefix[0] == '-' || len(prefix) > 64 {
		return fmt.Errorf("%w prefix %q: 1 to 64 characters, not beginning with '-'", ErrInvalid, prefix)
	}
	return nil
}

// CheckpointNames returns the names of all checkpoints and bitmaps of the domain, of all consumers, sorted, each once.
func (st DomainStatus) CheckpointNames() []string {
	var names []string
	for _, c := range st.Checkpoints {
		names = append(names, c.Name)
	}
	for _, d := range st.Disks {
		for _, b := range d.Bitmaps {
			names = append(names, b.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Ownership says which checkpoints and bitmaps on a VM's domain are one consumer's.
type Ownership struct {
	Prefix string
	VM     VMID
	// Known are those of the consumer's records. They are its own whatever they begin with: the prefix may have been another one once.
	Known []CheckpointName
	// Others are the paths, VM/STAMP, of backups that are in the consumer's repository and not in its store. Another store uses that
	// repository, or this one was lost, and their checkpoints are left to the store that has their records.
	Others []string
}

// StaleCheckpoints returns what may be dropped from a VM's domain: the consumer's checkpoints and bitmaps without those to
// keep. They came from failed jobs, from backups whose successor is complete, or from crashes. Other VMs' bitmaps on layers below the
// domain's images are not among them: such a layer may be a template.
func StaleCheckpoints(w Ownership, st DomainStatus, keep ...CheckpointName) []CheckpointName {
	var stale []CheckpointName
	for _, n := range st.CheckpointNames() {
		name := CheckpointName(n)
		if !slices.Contains(keep, name) && !inherited(w.VM, st, n) && w.owns(name) {
			stale = append(stale, name)
		}
	}
	return stale
}

// owns says whether a checkpoint or bitmap is the consumer's.
func (w Ownership) owns(name CheckpointName) bool {
	return slices.Contains(w.Known, name) || Owns(w.Prefix, string(name)) && !w.others(name)
}

// others says whether a checkpoint of the prefix is that of a backup of another store.
func (w Ownership) others(name CheckpointName) bool {
	_, stamp, _ := splitName(string(name))
	return slices.Contains(w.Others, string(w.VM)+"/"+stamp.String())
}

// InDoubt says whether the domain has names of the library's form, not among those known or to keep, of which only records and folders
// can say whose they are.
func (w Ownership) InDoubt(st DomainStatus, keep ...CheckpointName) bool {
	return slices.ContainsFunc(st.CheckpointNames(), func(n string) bool {
		name := CheckpointName(n)
		_, _, ours := splitName(n)
		return ours && !slices.Contains(w.Known, name) && !slices.Contains(keep, name) && !inherited(w.VM, st, n)
	})
}

// ForeignCheckpoint is a checkpoint or bitmap that is not the consumer's own, and which nothing of ours touches.
type ForeignCheckpoint struct {
	Name CheckpointName
	// OtherStore says that it belongs to a backup in the consumer's repository that its store doesn't know. Otherwise it is
	// another consumer's, or another VM's on layers below the domain's images.
	OtherStore bool
}

// ForeignCheckpoints returns the domain's checkpoints and bitmaps that are not the consumer's, without those to keep.
func ForeignCheckpoints(w Ownership, st DomainStatus, keep ...CheckpointName) []ForeignCheckpoint {
	var foreign []ForeignCheckpoint
	for _, n := range st.CheckpointNames() {
		name := CheckpointName(n)
		if w.owns(name) && (slices.Contains(keep, name) || !inherited(w.VM, st, n)) {
			continue
		}
		foreign = append(foreign, ForeignCheckpoint{name, Owns(w.Prefix, n) && w.others(name)})
	}
	return foreign
}

// inherited says whether nothing ties a name to the VM: it doesn't have its tag, libvirt doesn't list it, and only layers below the
// VM's images have it.
func inherited(vm VMID, st DomainStatus, name string) bool {
	if strings.HasSuffix(name, "-"+vm.Tag()) {
		return false
	}
	for _, d := range st.Disks {
		for _, b := range d.Bitmaps {
			if b.Name == name && (len(b.Layers) == 0 || len(d.Layers) == 0 || b.Layers[0] == d.Layers[0]) {
				return false
			}
		}
	}
	return !slices.ContainsFunc(st.Checkpoints, func(c CheckpointStatus) bool { return c.Name == name })
}

// BitmapBegan is the lowest layer that has the bitmap, where the layers are known.
func (d DiskStatus) BitmapBegan(name CheckpointName) string {
	for _, b := range d.Bitmaps {
		if b.Name == string(name) && len(b.Layers) > 0 {
			return b.Layers[len(b.Layers)-1]
		}
	}
	return ""
}

// BitmapState is what an inspected disk says about one bitmap.
func (d DiskStatus) BitmapState(name CheckpointName) BitmapState {
	if d.BitmapsUnknown != "" {
		return BitmapUnknown
	}
	for _, b := range d.Bitmaps {
		switch {
		case b.Name != string(name):
		case b.Inconsistent:
			return BitmapInconsistent
		default:
			return BitmapUsable
		}
	}
	return BitmapMissing
}
