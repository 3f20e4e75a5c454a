package kvmbackup

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
)

// NewCheckpointName returns PREFIX-STAMP-TAG, e.g. kvmbackup-2026.11.23.07.04.50-1c5b3a02. libvirt allows letters,
// digits and "_-." in checkpoint names. The stamp orders them. The tag is the VM's: a disk may stand on a template that
// was once another VM with backups.
func NewCheckpointName(prefix string, s Stamp, vm VMID) CheckpointName {
	return CheckpointName(prefix + "-" + s.String() + "-" + vm.Tag())
}

// Tag is a short plain name of the VM's identity: 32 bits of its SHA-256, in hex.
func (vm VMID) Tag() string {
	sum := sha256.Sum256([]byte(vm))
	return hex.EncodeToString(sum[:4])
}

// HasPrefix says whether a checkpoint or bitmap has a name of that prefix: PREFIX, a '-', a stamp and perhaps a VM's
// tag. Anything else is somebody else's, also when it begins alike.
func (n CheckpointName) HasPrefix(prefix string) bool {
	has, _, ok := n.Parts()
	return ok && has == prefix
}

// Parts takes a name of NewCheckpointName's form apart; it is not ok for any other.
func (n CheckpointName) Parts() (prefix string, s Stamp, ok bool) {
	name := string(n)
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
