package kvmbackup

import (
	"fmt"
	"strconv"
	"strings"
)

// The names of the settings, as the field knows them.
const (
	settingIncremental = "nas.backup.incremental.enabled"
	settingFullEvery   = "nas.backup.full.every"
)

// Policy is what the host's user wants of a VM's backups. The zero value is the default policy.
type Policy struct {
	// DisableIncremental makes every backup a full without a checkpoint. The active checkpoint stays as it is.
	DisableIncremental bool
	// FullEvery is how many backups form a chain, counting the full: 3 gives F I I F I. 1 makes every backup a full.
	// 0 defaults to 10; a negative number is taken as 1.
	FullEvery int
	// ForceFull makes this backup a full and the first of a new chain.
	ForceFull bool
	// Transfer is the way that backups of a running VM go: TransferAuto, TransferPush or TransferPull. A stopped one is
	// copied offline whatever it says.
	Transfer Transfer
	// Encryption seals the backup: EncryptionLUKS. It needs Keys, and a running VM goes by pull. Chains mix sealed and
	// plain backups: ForceFull begins one that is all the one or the other. Empty: plain.
	Encryption Encryption
	// Compression is that of the images. A running VM is compressed only by pull: what QEMU pushes is not.
	Compression Compression
	// OfflineIncremental allows incrementals of a stopped VM. Without it they are full.
	OfflineIncremental bool
	// Compare has a volume whose bitmap can't be trusted, or that can't have one, read whole and compared with what its
	// parent chain holds: what differs is stored as an incremental. Without it such a volume is full. A running VM is
	// compared by pull, which needs a scratch; where it can't be pulled the rules are those without Compare.
	Compare bool
	// CompareEvery compares everything at each position of a chain that is a multiple of it, although the bitmaps are
	// fine, in place of a full: 30 is once a month of daily backups. What a bitmap has missed is stored, and reported. 0
	// or less: never. FullEvery should be larger.
	CompareEvery int
	// ForceCompare does it for this backup.
	ForceCompare bool
}

// compareDue says why everything is to be compared in the backup at that position; empty: it isn't.
func (p Policy) compareDue(position int) string {
	switch {
	case p.ForceCompare:
		return "it was asked for"
	case p.CompareEvery > 0 && position%p.CompareEvery == 0:
		return fmt.Sprintf("every %d backups", p.CompareEvery)
	}
	return ""
}

// fullEvery returns the chain length in force, at least 1.
func (p Policy) fullEvery() int {
	switch {
	case p.FullEvery == 0:
		return 10
	case p.FullEvery < 1:
		return 1
	}
	return p.FullEvery
}

// PolicyFromSettings reads the known names, nas.backup.incremental.enabled and nas.backup.full.every, from a settings
// map; others are passed over, missing ones take their defaults
// (incremental enabled, full-every 10). A full-every of 0 or less, as in the field, makes every backup a
// full. A value that can't be read is an ErrInvalid that names the setting.
func PolicyFromSettings(settings map[string]string) (Policy, error) {
	var p Policy
	if s, ok := settings[settingIncremental]; ok {
		on, err := strconv.ParseBool(strings.ToLower(strings.TrimSpace(s)))
		if err != nil {
			return Policy{}, fmt.Errorf("%w setting %s=%q: true or false expected", ErrInvalid, settingIncremental, s)
		}
		p.DisableIncremental = !on
	}
	if s, ok := settings[settingFullEvery]; ok {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil {
			return Policy{}, fmt.Errorf("%w setting %s=%q: a whole number expected", ErrInvalid, settingFullEvery, s)
		}
		p.FullEvery = max(n, 1)
	}
	return p, nil
}

// Settings is the inverse of PolicyFromSettings.
func (p Policy) Settings() map[string]string {
	return map[string]string{
		settingIncremental: strconv.FormatBool(!p.DisableIncremental),
		settingFullEvery:   strconv.Itoa(p.fullEvery()),
	}
}
