package kvmbackup

import (
	"context"
	"errors"
	"slices"
	"strings"
)

// codes are the words of the sentinels, which are stable. Where an error matches several, the first here is what it is
// about: a job that failed because its target is full is about the space.
var codes = []struct {
	code string
	err  error
}{
	{"lease-lost", ErrLeaseLost},
	{"job-stuck", ErrJobStuck},
	{"stalled", ErrStalled},
	{"not-consistent", ErrNotConsistent},
	{"damaged", ErrDamaged},
	{"missing-file", ErrMissingFile},
	{"no-key", ErrKey},
	{"scratch-full", ErrScratchFull},
	{"scratch-unusable", ErrScratch},
	{"no-space", ErrNoSpace},
	{"flush", ErrFlush},
	{"repository-read-only", ErrReadOnly},
	{"no-repository", ErrNotRepository},
	{"other-repository", ErrOtherRepository},
	{"later-version", ErrVersion},
	{"no-hypervisor", ErrNoHypervisor},
	{"tool-missing", ErrToolMissing},
	{"unavailable", ErrUnavailable},
	{"no-locks", ErrNoLocks},
	{"image-locked", ErrImageLocked},
	{"busy", ErrBusy},
	{"running", ErrRunning},
	{"target-access", ErrTargetAccess},
	{"job-failed", ErrJobFailed},
	{"no-backup", ErrNotFound},
	{"no-domain", ErrNoDomain},
	{"no-volume", ErrNoVolume},
	{"held", ErrHeld},
	{"has-children", ErrHasChildren},
	{"wrong-status", ErrStatus},
	{"target-exists", ErrTargetExists},
	{"target-too-small", ErrTooSmall},
	{"other-domain", ErrOtherDomain},
	{"domain-running", ErrDomainRunning},
	{"domain-stopped", ErrDomainStopped},
	{"disk-left-out", ErrDiskLeftOut},
	{"unreadable-disk", ErrUnreadable},
	{"nothing-to-back-up", ErrNothingToBackUp},
	{"checkpoint-inconsistent", ErrCheckpointInconsistent},
	{"checkpoint-exists", ErrCheckpointExists},
	{"no-checkpoint", ErrNoCheckpoint},
	{"no-agent", ErrNoAgent},
	{"no-job", ErrNoJob},
	{"foreign-folder", ErrForeign},
	{"foreign-files", ErrForeignFiles},
	{"denied", ErrDenied},
	{"no-chain-data", ErrNoChainData},
	{"unsupported", ErrUnsupported},
	{"invalid", ErrInvalid},
	{"timeout", context.DeadlineExceeded}, // the caller's context ended
	{"interrupted", context.Canceled},
	{"other", ErrOther},
}

// Code is the word for what an error is about: "no-space", "busy", "damaged", ... Words are stable, for programs, logs
// and labels of metrics. It is "" for nil, "timeout" and "interrupted" for the ends of contexts, and "other" for what
// matches no sentinel.
func Code(err error) string {
	if err == nil {
		return ""
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return "other"
}

// ErrorOf is the way back from Code, for errors that have crossed an RPC: the sentinel of the word; ErrOther for a word
// that this version doesn't know; nil for "".
func ErrorOf(code string) error {
	if code == "" {
		return nil
	}
	for _, c := range codes {
		if c.code == code {
			return c.err
		}
	}
	return ErrOther
}

// ErrorText is an error's text as one line that says nothing twice: joined errors have "; " between them. It is
// Printable.
func ErrorText(err error) string {
	if err == nil {
		return ""
	}
	var parts []string
	for _, line := range strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }) {
		if part := withoutRepeats(strings.TrimSpace(line)); part != "" && !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
	}
	return Printable(strings.Join(parts, "; "))
}

// withoutRepeats leaves one of two equal parts of a text that follow each other.
func withoutRepeats(text string) string {
	return strings.Join(slices.Compact(strings.Split(text, ": ")), ": ")
}
