// Package remote is a kvmbackup.Executor on another host: [Server] serves one as HTTP with JSON, [New] reaches it.
// Errors cross the wire as the words of kvmbackup.Code. Anyone who reaches the server can do to its domains what the
// executor can: give it TLS with client certificates.
//
// A job lives on the server, under a handle. When the connection breaks in mid-job the job goes on: Wait asks again
// until its context ends, and tells the last progress meanwhile, so that the engine's watchdog sees that nothing moves.
// A server that was started again adopts the job. When the client has died nobody uses the handle any more, and the
// server closes it after a while: the job of a running domain goes on, to be adopted by the engine that recovers the
// backup, and that of a stopped domain ends, so that the domain can be started. A pull job ends, too.
package remote
