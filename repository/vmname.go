package repository

import (
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// ValidVMName is ValidName for a VM, whose folder is beside the repository's marker.
func ValidVMName(vm kvmbackup.VMID) error { return validVM(string(vm)) }

func validVM(s string) error {
	if strings.EqualFold(s, MarkerName) {
		return &kvmbackup.NameError{What: "VM name", Name: s, Reason: "is the repository marker's"}
	}
	return kvmbackup.ValidName("VM name", s)
}
