package copier

// room is what the pieces in flight have together: inFlight bytes, in clusters. x/sync has a semaphore for that, which
// would be one module more for each host to download.
type room struct {
	door  chan struct{} // for one at a time, so that no two wait with half of their part
	taken chan struct{}
}

func newRoom() room {
	return room{make(chan struct{}, 1), make(chan struct{}, inFlight/cluster)}
}

// enter waits until there is room for what is read of a piece at once. Those inside leave when the connections end,
// too.
func (r room) enter(p piece) (leave func()) {
	n := 0
	if !p.zero {
		n = int(min(p.length, maxPiece)+cluster-1) / cluster
	}
	r.door <- struct{}{}
	for range n {
		r.taken <- struct{}{}
	}
	<-r.door
	return func() {
		for range n {
			<-r.taken
		}
	}
}
