// Package leave is the one way to leave hung work behind. What hangs on dead storage, or in a library that waits for
// it, can't be ended, only left: the caller gets an answer in time, the work does no further step, what it
// made is taken back when it returns, and other work that it stands in the way of is refused at once rather than piled
// up.
package leave
