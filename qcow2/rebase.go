package qcow2

import (
	"context"
	"errors"
	"fmt"
)

// RebaseOptions name the new backing file of an image.
type RebaseOptions struct {
	// Format is the image's. Defaults to FormatQcow2.
	Format Format
	// BackingFile is stored as StoredName says; a relative name is relative to the
	// image's directory. Empty makes the image stand alone.
	BackingFile string
	// BackingFormat defaults to FormatQcow2.
	BackingFormat Format
	// HeaderOnly changes the stored name and nothing else; no backing file is opened.
	// Dangerous unless the old and the new one have the same content. Without it,
	// the clusters in which the two differ are copied into the image, which takes time
	// and space and opens both chains.
	HeaderOnly bool
}

// Rebase changes the backing file of the image at path. It needs the image for
// itself. When a rebase that is not HeaderOnly fails or is cancelled half-way, the
// image still has its old backing file and the same content.
// Errors: ErrNotFound, ErrBackingFile, ErrLocked, ErrNoSpace.
func (t *Tool) Rebase(ctx context.Context, path string, o RebaseOptions) error {
	name, err := absolute(path)
	if err == nil {
		err = errors.Join(o.Format.explicit(), o.BackingFormat.explicit(), checkStoredName(o.BackingFile))
	}
	if err != nil {
		return fmt.Errorf("rebase image %q: %w", path, err)
	}
	args := []string{"rebase", "-q", "-f", string(o.Format.orDefault()), "-b", StoredName(o.BackingFile)}
	if o.BackingFile != "" {
		args = append(args, "-F", string(o.BackingFormat.orDefault()))
	}
	timeout := t.cfg.InspectTimeout
	if o.HeaderOnly {
		args = append(args, "-u")
	} else {
		args = append(args, "-t", string(CacheWriteback))
		timeout = 0
	}
	c := command{program: t.img, args: append(args, "--", name), names: []string{name}, timeout: timeout}
	if _, err := t.run(ctx, c); err != nil {
		return fmt.Errorf("rebase image %q on %q: %w", path, o.BackingFile, err)
	}
	return nil
}
