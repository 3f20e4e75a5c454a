package qcow2

import "context"

// Header is ReadHeaderFile for files on storage that may not answer: it returns with the context's cause when ctx ends, or
// with ErrTimeout after Config.InspectTimeout, and leaves the read behind.
func (t *Tool) Header(ctx context.Context, path string) (Header, error) {
	ctx, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	type answer struct {
		h   Header
		err error
	}
	got := make(chan answer, 1)
	go func() {
		h, err := ReadHeaderFile(path)
		got <- answer{h, err}
	}()
	select {
	case a := <-got:
		return a.h, a.err
	case <-ctx.Done():
		return Header{}, context.Cause(ctx)
	}
}
