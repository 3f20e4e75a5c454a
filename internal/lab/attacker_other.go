//go:build !linux

package lab

// Attacker does nothing: nobody watches a share here.
func Attacker() {}
