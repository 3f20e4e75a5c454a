// Package differential has no code but tests: the same history is played on a real QEMU guest and on the simulated hypervisor
// of package kvmbackuptest, step by step, each with an engine, a store and a repository of its own. After each step what a
// user would see is compared, and any difference is a failure: of the simulator, or of the engine. Every backup is
// also compared with what the disks held when it was taken.
//
// The histories are written down in histories_test.go or drawn from a seed. One that is drawn and shows a difference is made shorter
// and printed as an entry for that table. KVMBACKUP_DIFFERENTIAL_SEED is the first seed; with KVMBACKUP_CRASH=full there
// are ten times as many histories, from a new seed each time.
package differential
