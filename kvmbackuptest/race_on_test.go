//go:build race

package kvmbackuptest_test

const raceEnabled = true
