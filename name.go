package kvmbackup

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of names, in bytes. Most file systems allow 255 for a path element; the rest is for what is put around it.
const (
	maxNameBytes     = 128 // names of VMs, IDs of volumes and of backups
	maxFileNameBytes = 240 // names of files; the rest is for the temporary name
)

// NameError says why a name can't be used, and what to do about it. It matches ErrInvalid.
type NameError struct {
	What   string // "VM name", "volume id", "file name" ...
	Name   string
	Reason string
}

func (e *NameError) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("%s is empty", e.What)
	}
	return fmt.Sprintf("%s %.200q %s: give it another one, e.g. its UUID", e.What, e.Name, e.Reason)
}

func (e *NameError) Unwrap() error { return ErrInvalid }

// ValidName says whether s can name a VM, a volume or a backup: an element of a path on every file system that a share
// may have (SMB refuses more than Linux does), on a command line and in XML. It must be 1 to 128 bytes of printable
// UTF-8 without / \ : * ? " < > | and comma, must not begin with a dot, a dash or a space, nor end in a dot or a space.
// The error is a *NameError, which matches ErrInvalid; what is its What.
func ValidName(what, s string) error { return checkName(what, s, maxNameBytes) }

// ValidFileName is ValidName for the name of a file, of up to 240 bytes.
func ValidFileName(s string) error { return checkName("file name", s, maxFileNameBytes) }

func checkName(what, s string, maxBytes int) error {
	if reason := flaw(s, maxBytes); reason != "" {
		return &NameError{What: what, Name: s, Reason: reason}
	}
	return nil
}

// flaw says what is wrong with a name; empty if nothing is.
func flaw(s string, most int) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > most:
		return fmt.Sprintf("is longer than %d bytes", most)
	case !utf8.ValidString(s):
		return "is not UTF-8"
	case strings.ContainsRune(".- ", rune(s[0])):
		return "begins with a dot, a dash or a space"
	case strings.ContainsRune(". ", rune(s[len(s)-1])):
		return "ends in a dot or a space"
	}
	for _, c := range s {
		if !unicode.IsPrint(c) || strings.ContainsRune(`/\:*?"<>|,`, c) {
			return fmt.Sprintf("contains %q", c)
		}
	}
	return ""
}
