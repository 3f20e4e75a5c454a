package qcow2

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup/internal/leave"
)

// Header is ReadSealedHeaderFile for files on storage that may not answer: it returns with the context's cause when ctx
// ends, or with ErrTimeout after Config.InspectTimeout, and leaves the read behind.
func (t *Tool) Header(ctx context.Context, path string, secret *Secret) (Header, error) {
	ctx, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	read := func(*leave.Work) (Header, error) { return ReadSealedHeaderFile(path, secret) }
	h, err := leave.Do(ctx, &hung, leave.Options{What: "read a header", Places: []string{placeOf(path)}}, read, nil)
	if errors.Is(err, leave.ErrPiled) {
		return h, fmt.Errorf("%w: read the header of %q: %w", ErrHung, path, err)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return h, err
}
