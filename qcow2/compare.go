package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// CompareOptions say how to compare two images.
type CompareOptions struct {
	// FormatA and FormatB default to FormatQcow2.
	FormatA, FormatB Format
	// BackingA and BackingB, when not nil, are the images below each; see
	// ConvertOptions.Backing.
	BackingA, BackingB []Layer
	// SecretA and SecretB open sealed images; nil: they are plain. A sealed chain needs its Backing.
	SecretA, SecretB *Secret
	// Strict also tells images apart whose virtual size or allocation differs. Without
	// it a larger image whose rest reads as zeroes is identical.
	Strict bool
}

// DifferenceError says where two images differ. It matches ErrDifferent.
type DifferenceError struct {
	// OffsetBytes is where the difference begins, or -1 when it is not in the content.
	OffsetBytes int64
	// Reason is what qemu-img said.
	Reason string
}

// Error says what qemu-img said.
func (e *DifferenceError) Error() string { return ErrDifferent.Error() + ": " + e.Reason }

// Is matches ErrDifferent.
func (e *DifferenceError) Is(target error) bool { return target == ErrDifferent }

// exitDifferent is the exit code of qemu-img compare for images that differ;
// larger ones are failures.
const exitDifferent = 1

// Compare reads both images with their chains. It returns nil when a VM would see
// the same content, and an error that wraps a DifferenceError (ErrDifferent) when
// not. There is no time limit but ctx, and Config.StallTimeout.
func (t *Tool) Compare(ctx context.Context, a, b string, o CompareOptions) error {
	if err := t.compare(ctx, a, b, o); err != nil {
		return fmt.Errorf("compare image %q with %q: %w", a, b, err)
	}
	return nil
}

func (t *Tool) compare(ctx context.Context, a, b string, o CompareOptions) error {
	withB := func(argsA []string, nameA string, namesA []string) error {
		compare := func(argsB []string, nameB string, namesB []string) error {
			args := slices.Concat([]string{"compare"}, argsA, argsB)
			if o.Strict {
				args = append(args, "-s")
			}
			return t.runCompare(ctx, append(args, "--", nameA, nameB), append(namesA, namesB...))
		}
		return t.withSource(ctx, "-F", b, o.FormatB, o.SecretB, o.BackingB, compare)
	}
	return t.withSource(ctx, "-f", a, o.FormatA, o.SecretA, o.BackingA, withB)
}

// runCompare tells a difference from a failure.
func (t *Tool) runCompare(ctx context.Context, args, names []string) error {
	out, err := t.run(ctx, command{program: t.img, args: args, names: names})
	var failed *ToolError
	if errors.As(err, &failed) && failed.ExitCode == exitDifferent {
		failed.Err = difference(out)
	}
	return err
}

// difference reads "Content mismatch at offset 4096!" and the like.
func difference(out []byte) *DifferenceError {
	d := &DifferenceError{OffsetBytes: -1, Reason: strings.TrimSpace(string(out))}
	_, rest, found := bytes.Cut(out, []byte("mismatch at offset "))
	if !found {
		return d
	}
	number, _, _ := bytes.Cut(rest, []byte("!"))
	if offset, err := strconv.ParseInt(string(number), 10, 64); err == nil {
		d.OffsetBytes = offset
	}
	return d
}
