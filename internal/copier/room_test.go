package copier

import (
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestRoom: as many large pieces are in flight as there is room for, and small ones as there are workers. When a piece
// leaves, others come in, and no two stand in each other's way.
func TestRoom(t *testing.T) {
	for _, tt := range []struct {
		name   string
		length int64
		zero   bool
		inside int32
	}{
		{"large", maxPiece, false, inFlight / maxPiece},
		{"of an index", qcow2.IndexPieceBytes, false, inFlight / maxPiece}, // whose parts are read one after the other
		{"small", cluster, false, workers},
		{"the last of a disk", 512, false, workers},
		{"zeroes", maxZeroes, true, workers},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, goOn := newRoom(), make(chan struct{})
				var inside, done atomic.Int32
				for range workers {
					go func() {
						leave := r.enter(piece{length: tt.length, zero: tt.zero})
						inside.Add(1)
						<-goOn
						inside.Add(-1)
						leave()
						done.Add(1)
					}()
				}
				synctest.Wait()
				lab.Equal(t, "inside at once", inside.Load(), tt.inside)
				close(goOn)
				synctest.Wait()
				lab.Equal(t, "done", done.Load(), workers)
				lab.Equal(t, "left in the room", len(r.taken), 0)
			})
		})
	}
}
