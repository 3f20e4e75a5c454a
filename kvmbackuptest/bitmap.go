package kvmbackuptest

// bitmap is one dirty bitmap on one layer of a disk, with QEMU's rules for its life.
type bitmap struct {
	name  string
	dirty map[int64]bool // by cluster
	// stored means that the image file has it: since it was loaded, made offline, or saved when QEMU closed the file.
	stored bool
	// inUse is the mark that QEMU puts on a stored bitmap while it has the file open for writing.
	inUse bool
	// inconsistent is what loading one with the mark makes of it.
	inconsistent bool
	// transient ones are never stored.
	transient bool
}

func newBitmap(name string) *bitmap { return &bitmap{name: name, dirty: map[int64]bool{}} }

// bitmaps are those of one layer.
type bitmaps []*bitmap

func (bs bitmaps) find(name string) *bitmap {
	for _, b := range bs {
		if b.name == name {
			return b
		}
	}
	return nil
}

// mark is what every guest write does to all of them.
func (bs bitmaps) mark(cluster int64) {
	for _, b := range bs {
		if !b.inconsistent {
			b.dirty[cluster] = true
		}
	}
}

// open is what QEMU does when it opens the file for writing.
func (bs bitmaps) open() {
	for _, b := range bs {
		b.inconsistent = b.inconsistent || b.inUse
		b.inUse = b.stored
	}
}

// close is a clean close: everything is saved but what is inconsistent, which stays as it is.
func (bs bitmaps) close() bitmaps {
	var left bitmaps
	for _, b := range bs {
		if b.transient {
			continue
		}
		b.stored, b.inUse = true, b.inconsistent
		left = append(left, b)
	}
	return left
}

// crash is kill -9: what was never saved is gone, what was loaded keeps its mark.
func (bs bitmaps) crash() bitmaps {
	var left bitmaps
	for _, b := range bs {
		if b.stored {
			left = append(left, b)
		}
	}
	return left
}

// broken says whether it can't be used: seen by a running QEMU, or from outside in a file that is closed.
func (b *bitmap) broken(open bool) bool { return b.inconsistent || !open && b.inUse }

// resize cuts off what is behind the new end. What a growing disk gets is clean.
func (bs bitmaps) resize(size int64) {
	for _, b := range bs {
		for i := range b.dirty {
			if i*ClusterBytes >= size {
				delete(b.dirty, i)
			}
		}
	}
}

// merge takes over what a committed layer above has recorded.
func (bs *bitmaps) merge(above bitmaps) {
	for _, a := range above {
		b := bs.find(a.name)
		if b == nil {
			if !a.inconsistent { // QEMU makes a new one, and writes it when it closes the file below
				a.stored, a.inUse = false, false
			}
			*bs = append(*bs, a)
			continue
		}
		b.inconsistent = b.inconsistent || a.inconsistent
		for i := range a.dirty {
			b.dirty[i] = true
		}
	}
}
