//go:build !race

package kvmbackup_test

const raceEnabled = false
