package qcow2

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// CheckOptions say how to check an image.
type CheckOptions struct {
	// Format defaults to FormatQcow2.
	Format Format
	// Secret opens a sealed image; nil: it is plain.
	Secret *Secret
	// WithBacking opens the backing chain too, as plain qemu-img check does, and fails
	// when that is not possible; the chain itself is not checked either way. By default
	// no other file is opened (the path must then be UTF-8).
	WithBacking bool
	// Timeout replaces Config.InspectTimeout; may be NoLimit. A check reads all
	// metadata: with clusters of 64 KiB some 160 MiB for each TiB of data, 128 MiB of
	// L2 tables and 32 MiB of refcounts.
	Timeout time.Duration
}

// CheckResult is what a check found.
type CheckResult struct {
	// Corruptions are errors in the metadata. Leaks are clusters that nothing refers to: they cost space and do no
	// harm. CheckErrors are errors while checking.
	Corruptions, Leaks, CheckErrors int64
	// AllocatedClusters of TotalClusters are in the file.
	AllocatedClusters, TotalClusters int64
	// ImageEndOffsetBytes is where the used part of the file ends.
	ImageEndOffsetBytes int64
}

// Clean says whether nothing is wrong. Leaks count as clean: they lose no data.
func (r CheckResult) Clean() bool { return r.Corruptions == 0 && r.CheckErrors == 0 }

// Whole says whether a new image has all its tables: it is clean, and has no leaks, which in a new image are data that
// a table should refer to.
func (r CheckResult) Whole() bool { return r.Clean() && r.Leaks == 0 }

type checkJSON struct {
	Corruptions       int64 `json:"corruptions"`
	Leaks             int64 `json:"leaks"`
	CheckErrors       int64 `json:"check-errors"`
	AllocatedClusters int64 `json:"allocated-clusters"`
	TotalClusters     int64 `json:"total-clusters"`
	ImageEndOffset    int64 `json:"image-end-offset"`
}

// Exit codes of qemu-img check that come with a result.
const (
	exitCorruptions = 2
	exitLeaks       = 3
	exitNoCheck     = 63
)

// Check reads the metadata of the image. Corruptions and leaks are a result, not
// an error, and nothing is repaired; an error means that the check could not be done: ErrNotFound, ErrLocked,
// ErrFormat, ErrCorrupt when the image can't even be opened, ErrUnsupported for
// formats without a check (raw), ErrTimeout.
func (t *Tool) Check(ctx context.Context, path string, o CheckOptions) (CheckResult, error) {
	result, err := t.check(ctx, path, o)
	if err != nil {
		return CheckResult{}, fmt.Errorf("check image %q: %w", FileName(path), err)
	}
	return result, nil
}

func (t *Tool) check(ctx context.Context, path string, o CheckOptions) (CheckResult, error) {
	if o.Secret != nil {
		return t.checkSealed(ctx, path, o)
	}
	backing := []Layer{}
	if o.WithBacking {
		backing = nil
	}
	format, name, err := t.source(ctx, "-f", path, o.Format, backing)
	if err != nil {
		return CheckResult{}, err
	}
	args := append([]string{"check", "--output=json"}, format...)
	data, err := t.run(ctx, command{
		program: t.img, args: append(args, "--", name), names: []string{path, name}, images: 1 + len(backing),
		room:    roomFor(path, backing, false),
		timeout: orDefault(o.Timeout, t.cfg.InspectTimeout),
	})
	return checkResult(data, err)
}

// checkResult reads a check's output by its exit code.
func checkResult(data []byte, err error) (CheckResult, error) {
	var failed *ToolError
	if errors.As(err, &failed) {
		switch failed.ExitCode {
		case exitCorruptions, exitLeaks:
			err = nil
		case exitNoCheck:
			failed.Err = errors.Join(ErrUnsupported, failed.Err)
		}
	}
	if err != nil {
		return CheckResult{}, err
	}
	var raw checkJSON
	if err := decode("check", data, &raw); err != nil {
		return CheckResult{}, err
	}
	return CheckResult{
		Corruptions: raw.Corruptions, Leaks: raw.Leaks, CheckErrors: raw.CheckErrors,
		AllocatedClusters: raw.AllocatedClusters, TotalClusters: raw.TotalClusters,
		ImageEndOffsetBytes: raw.ImageEndOffset,
	}, nil
}

// checkSealed checks an image by its secret.
func (t *Tool) checkSealed(ctx context.Context, path string, o CheckOptions) (CheckResult, error) {
	if o.WithBacking {
		return CheckResult{}, fmt.Errorf("%w: a sealed image is checked alone", ErrUnsupported)
	}
	data, err := t.inspectSealed(ctx, "check", path, o.Format, o.Secret, o.Timeout)
	return checkResult(data, err)
}
