package leave

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ErrPiled is returned by Do when as much work hangs at a place as a Register allows. Each holds a goroutine, mostly a
// thread.
var ErrPiled = errors.New("too much work hangs there already")

// Register knows the work that was left behind and has not come back. The zero Register is ready to use; it is safe for
// concurrent use. A package has one for all of a process, so that what opens a dead share again and again finds what
// hangs there.
type Register struct {
	// PerPlace bounds how much may hang at one place. 0: no limit.
	PerPlace int

	mu   sync.Mutex
	away map[*Work]error // why it was left
}

// Away is work that was left behind.
type Away struct {
	*Work
	Cause error           // why its caller has left it
	Over  <-chan struct{} // closed when it is back and forgotten
}

// First returns work that hangs at the place and for which counts says so; nil when no work does.
func (r *Register) First(place string, counts func(*Work) bool) *Away {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w, cause := range r.away {
		if slices.Contains(w.places, place) && counts(w) {
			return &Away{w, cause, w.over}
		}
	}
	return nil
}

func (r *Register) room(places []string) error {
	if r.PerPlace == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range places {
		n := 0
		for w := range r.away {
			if slices.Contains(w.places, p) {
				n++
			}
		}
		if n >= r.PerPlace {
			return fmt.Errorf("%w: %d at %q", ErrPiled, n, p)
		}
	}
	return nil
}

// add notes that w was left, and forgets it when back is closed.
func (r *Register) add(w *Work, cause error, back <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away == nil {
		r.away = map[*Work]error{}
	}
	r.away[w] = cause
	go func() {
		<-back
		r.mu.Lock()
		delete(r.away, w)
		r.mu.Unlock()
		close(w.over)
	}()
}
