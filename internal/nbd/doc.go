// Package nbd is a client of the Network Block Device protocol, as far as QEMU's servers speak it: fixed newstyle
// negotiation, structured replies, metadata contexts. Many requests are in flight side by side on one connection.
// What the server says is checked as that of a stranger: a guest may have taken over its QEMU.
//
// It is also a small server, for the simulator: one export that nobody can write.
//
// The protocol is doc/proto.md of https://github.com/NetworkBlockDevice/nbd.
package nbd
