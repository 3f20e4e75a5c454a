package engine

import "github.com/kvmbackup/kvmbackup"

// Decider decides whether the next backup is full or incremental, and each volume's part in it. The library's is
// kvmbackup.ChainDecider.
//
// It is pure: no I/O, no clock, no randomness; same input, same output. The engine checks the result with
// Decision.Check, so a host's own decider can ask for more fulls but can't break a chain.
type Decider interface {
	Decide(in kvmbackup.DecideInput) (kvmbackup.Decision, error)
}

var _ Decider = kvmbackup.ChainDecider{}
