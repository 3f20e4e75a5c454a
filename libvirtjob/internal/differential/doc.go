// Package differential has no code but tests: the same history is played on a real QEMU guest and on the simulated
// hypervisor of package kvmbackuptest, step by step, and any difference in what a user would see is a failure: of the
// simulator, or of the engine.
//
// The histories that are written down, and how they are played, are package executortest's. Here others are drawn from
// a seed. One that is drawn and shows a difference is made shorter and printed as an entry for executortest's table.
// Each run draws from another seed, and logs it.
package differential
