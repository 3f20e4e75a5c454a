package kvmbackup

import (
	"fmt"
	"strconv"
	"strings"
)

// DefaultFullEvery is how many backups a chain has, its full included, unless the policy says otherwise.
const DefaultFullEvery = 10

// The names of the settings, as the field knows them.
const (
	SettingIncrementalEnabled = "nas.backup.incremental.enabled"
	SettingFullEvery          = "nas.backup.full.every"
)

// Policy is what the host's user wants of a VM's backups. The zero value is the default policy.
type Policy struct {
	// DisableIncremental makes every backup a full without a checkpoint. The active checkpoint stays as it is.
	DisableIncremental bool
	// FullEvery is how many backups form a chain, counting the full: 3 gives F I I F I. 1 makes every backup a full.
	// 0 defaults to DefaultFullEvery; a negative number is taken as 1.
	FullEvery int
	// ForceFull makes this backup a full and the first of a new chain.
	ForceFull bool
	// OfflineIncremental allows incrementals of a stopped VM. Without it they are full.
	OfflineIncremental bool
}

// fullEvery returns the chain length in force, at least 1.
func (p Policy) fullEvery() int {
	switch {
	case p.FullEvery == 0:
		return DefaultFullEvery
	case p.FullEvery < 1:
		return 1
	}
	return p.FullEvery
}

// PolicyFromSettings reads the known names from a settings map; others are passed over, missing ones take their defaults
// (incremental enabled, full-every 10). A full-every of 0 or less, as in the field, makes every backup a
// full. A value that can't be read is an ErrInvalid that names the setting.
func PolicyFromSettings(settings map[string]string) (Policy, error) {
	var p Policy
	if s, ok := settings[SettingIncrementalEnabled]; ok {
		on, err := strconv.ParseBool(strings.ToLower(strings.TrimSpace(s)))
		if err != nil {
			return Policy{}, fmt.Errorf("%w setting %s=%q: true or false expected", ErrInvalid, SettingIncrementalEnabled, s)
		}
		p.DisableIncremental = !on
	}
	if s, ok := settings[SettingFullEvery]; ok {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil {
			return Policy{}, fmt.Errorf("%w setting %s=%q: a whole number expected", ErrInvalid, SettingFullEvery, s)
		}
		p.FullEvery = max(n, 1)
	}
	return p, nil
}

// Settings is the inverse of PolicyFromSettings.
func (p Policy) Settings() map[string]string {
	return map[string]string{
		SettingIncrementalEnabled: strconv.FormatBool(!p.DisableIncremental),
		SettingFullEvery:          strconv.Itoa(p.fullEvery()),
	}
}
