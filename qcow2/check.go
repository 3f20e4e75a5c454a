package qcow2

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Repair says what Check may mend.
type Repair string

const (
	// RepairNone only reports. It is the default.
	RepairNone Repair = ""
	// RepairLeaks frees clusters that nothing refers to, which is safe.
	RepairLeaks Repair = "leaks"
	// RepairAll also mends corruption. Dangerous: QEMU may choose wrong and hide damage.
	RepairAll Repair = "all"
)

// CheckOptions say how to check an image.
type CheckOptions struct {
	// Format defaults to FormatQcow2.
	Format Format
	// WithBacking opens the backing chain too, as plain qemu-img check does, and fails
	// when that is not possible; the chain itself is not checked either way. By default
	// no other file is opened (the path must then be UTF-8).
	WithBacking bool
	// Repair defaults to RepairNone.
	Repair Repair
	// Timeout replaces Config.InspectTimeout; may be NoLimit. A check reads all
	// metadata: with clusters of 64 KiB some 160 MiB for each TiB of data, 128 MiB of
	// L2 tables and 32 MiB of refcounts.
	Timeout time.Duration
}

// CheckResult is what a check found.
type CheckResult struct {
	// Corruptions are errors in the metadata, Leaks are clusters that nothing refers to
	// (harmless but for the space), CheckErrors are errors while checking.
	Corruptions, Leaks, CheckErrors int64
	// CorruptionsFixed and LeaksFixed count what was mended.
	CorruptionsFixed, LeaksFixed int64
	// AllocatedClusters of TotalClusters are in the file.
	AllocatedClusters, TotalClusters int64
	// ImageEndOffsetBytes is where the used part of the file ends.
	ImageEndOffsetBytes int64
}

// Clean says whether nothing is wrong. Leaks count as clean: they lose no data.
func (r CheckResult) Clean() bool { return r.Corruptions == 0 && r.CheckErrors == 0 }

// Whole says whether a new image has all its tables: it is clean, and has no leaks, which in a new image are data that a table
// should refer to.
func (r CheckResult) Whole() bool { return r.Clean() && r.Leaks == 0 }

type checkJSON struct {
	Corruptions       int64 `json:"corruptions"`
	Leaks             int64 `json:"leaks"`
	CheckErrors       int64 `json:"check-errors"`
	CorruptionsFixed  int64 `json:"corruptions-fixed"`
	LeaksFixed        int64 `json:"leaks-fixed"`
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
// an error; an error means that the check could not be done: ErrNotFound, ErrLocked,
// ErrFormat, ErrCorrupt when the image can't even be opened, ErrUnsupported for
// formats without a check (raw), ErrTimeout.
func (t *Tool) Check(ctx context.Context, path string, o CheckOptions) (CheckResult, error) {
	result, err := t.check(ctx, path, o)
	if err != nil {
		return CheckResult{}, fmt.Errorf("check image %q: %w", path, err)
	}
	return result, nil
}

func (t *Tool) check(ctx context.Context, path string, o CheckOptions) (CheckResult, error) {
	backing := []Layer{}
	if o.WithBacking {
		backing = nil
	}
	format, name, err := t.source(ctx, "-f", path, o.Format, backing)
	if err != nil {
		return CheckResult{}, err
	}
	args := append([]string{"check", "--output=json"}, format...)
	switch o.Repair {
	case RepairNone:
	case RepairLeaks, RepairAll:
		args = append(args, "-r", string(o.Repair))
	default:
		return CheckResult{}, fmt.Errorf("%w: Repair %q", ErrInvalidOption, string(o.Repair))
	}
	data, err := t.run(ctx, command{
		program: t.img, args: append(args, "--", name), names: []string{path, name}, limitMemory: true,
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
		CorruptionsFixed: raw.CorruptionsFixed, LeaksFixed: raw.LeaksFixed,
		AllocatedClusters: raw.AllocatedClusters, TotalClusters: raw.TotalClusters,
		ImageEndOffsetBytes: raw.ImageEndOffset,
	}, nil
}
