package libvirtjob

// PollOnly makes the executor do without events, as in a process without an event loop.
func (e *Executor) PollOnly() { e.events.deregister() }
