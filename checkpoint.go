package kvmbackup

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup/repository"
)

// DefaultPrefix begins the names of checkpoints and bitmaps unless the configuration says otherwise.
const DefaultPrefix = "kvmbackup"

// NewCheckpointName returns PREFIX-STAMP-TAG, e.g. kvmbackup-2026.11.23.07.04.50-1c5b3a02. libvirt allows letters, digits and "_-." in
// checkpoint names. The stamp orders them. The tag is the VM's: a disk may stand on a template that was once another VM with backups.
func NewCheckpointName(prefix string, s repository.Stamp, vm VMID) CheckpointName {
	return CheckpointName(prefix + "-" + s.String() + "-" + tagOf(vm))
}

// tagOf makes a short plain name of a VM's identity: 32 bits of its SHA-256, in hex.
func tagOf(vm VMID) string {
	sum := sha256.Sum256([]byte(vm))
	return hex.EncodeToString(sum[:4])
}

// Owns says whether a checkpoint or bitmap is of the consumer with that prefix: PREFIX, a '-', a stamp and perhaps a VM's tag. Anything
// else is somebody else's, also when it begins alike.
func Owns(prefix, name string) bool {
	rest, ok := strings.CutPrefix(name, prefix+"-")
	if !ok {
		return false
	}
	stamp, tag, tagged := strings.Cut(rest, "-")
	_, err := repository.ParseStamp(stamp)
	return err == nil && (!tagged || tagForm.MatchString(tag))
}

var tagForm = regexp.MustCompile(`^[0-9a-f]{8}$`)

func validPrefix(prefix string) error {
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

// nextStamp names the next backup: later than every stamp of the VM before it, also when the clock stepped back, and with
// a checkpoint name that nothing on the domain has.
func nextStamp(now time.Time, vm VMRecord, prefix string, st DomainStatus) repository.Stamp {
	after, err := repository.ParseStamp(vm.LastStamp)
	if err != nil {
		after = repository.Stamp{} // a VM without a record yet, or one whose stamps are not ours
	}
	names := namesOn(st)
	return repository.NextStamp(now, after, func(s repository.Stamp) bool {
		return slices.Contains(names, string(NewCheckpointName(prefix, s, vm.VM)))
	})
}

// namesOn returns the names of all checkpoints and bitmaps of the domain, sorted, each once.
func namesOn(st DomainStatus) []string {
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

// StaleCheckpoints returns what may be dropped from a VM's domain: the checkpoints and bitmaps of the prefix but for those to
// keep. They came from failed jobs, from backups whose successor is complete, or from crashes. Other VMs' bitmaps on layers below the
// domain's images are not among them: such a layer may be a template.
func StaleCheckpoints(prefix string, vm VMID, st DomainStatus, keep ...CheckpointName) []CheckpointName {
	var stale []CheckpointName
	for _, n := range namesOn(st) {
		if Owns(prefix, n) && !slices.Contains(keep, CheckpointName(n)) && !inherited(vm, st, n) {
			stale = append(stale, CheckpointName(n))
		}
	}
	return stale
}

// inherited says whether nothing ties a name to the VM: it doesn't have its tag, libvirt doesn't list it, and only layers below the
// VM's images have it.
func inherited(vm VMID, st DomainStatus, name string) bool {
	if strings.HasSuffix(name, "-"+tagOf(vm)) {
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

// bitmapBegan is the lowest layer that has the bitmap, where the layers are known.
func (d DiskStatus) bitmapBegan(name CheckpointName) string {
	for _, b := range d.Bitmaps {
		if b.Name == string(name) && len(b.Layers) > 0 {
			return b.Layers[len(b.Layers)-1]
		}
	}
	return ""
}

// bitmapState is what an inspected disk says about one bitmap.
func (d DiskStatus) bitmapState(name CheckpointName) BitmapState {
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
