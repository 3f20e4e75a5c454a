package repository

import "strings"

// ValidVMName is ValidName for a VM, whose folder is beside the repository's marker.
func ValidVMName(s string) error { return validVM(s) }

func validVM(s string) error {
	if strings.EqualFold(s, MarkerName) {
		return &NameError{What: "VM name", Name: s, Reason: "is the repository marker's"}
	}
	return CheckName("VM name", s, MaxNameBytes)
}
