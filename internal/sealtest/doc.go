// Package sealtest tests sealed backups with the simulator and package seal. It is apart from these, so that no host
// downloads age for its tests.
package sealtest
