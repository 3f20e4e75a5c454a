package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/writeback"
)

// CacheMode is one of QEMU's cache modes.
type CacheMode string

const (
	// CacheWriteback goes through the page cache and flushes at the end.
	CacheWriteback CacheMode = "writeback"
	// CacheNone bypasses the page cache (O_DIRECT); not every file system can.
	CacheNone CacheMode = "none"
	// CacheUnsafe never flushes: the data may be lost although the call succeeded.
	CacheUnsafe CacheMode = "unsafe"
)

// ConvertOptions say how to copy an image.
type ConvertOptions struct {
	// SourceFormat and TargetFormat default to FormatQcow2.
	SourceFormat, TargetFormat Format
	// Secret opens a sealed source; nil: it is plain.
	Secret *Secret
	// Backing, when not nil, are the images below the source, nearest first: exactly
	// these are opened, and the links in the headers are not followed. An empty list
	// opens the source alone. Names must be UTF-8.
	Backing []Layer
	// Coroutines is how many copies are in flight, 1 to 16. Defaults to 16.
	Coroutines int
	// InOrder writes the target from start to end. By default (qemu-img's -W) it is
	// written in any order, which is quicker on chains.
	InOrder bool
	// TargetExists writes into an existing image or block device (-n), whose virtual
	// size must be large enough. By default the target is created, with ErrExist when
	// it is there.
	TargetExists bool
	// TargetIsZero promises that an existing target reads as zeroes all over, so that
	// zeroes need not be written. Dangerous when untrue: old data shines through.
	TargetIsZero bool
	// Compress writes compressed clusters, qcow2 only.
	Compress bool
	// CompressionType is "zlib" or "zstd", for a new qcow2. Defaults to QEMU's, zlib.
	CompressionType string
	// ClusterSizeBytes is for a new qcow2, as in CreateOptions.
	ClusterSizeBytes int64
	// SourceCache defaults to CacheWriteback (the page cache), TargetCache to
	// CacheWriteback with a flush at the end, unlike qemu-img's own unsafe default.
	SourceCache, TargetCache CacheMode
	// BandwidthBytes limits the copy, in bytes a second. 0 means no limit.
	BandwidthBytes int64
	// Rate, when not nil, is a limit beside that one which may change while the copy runs:
	// it is asked again and again how many bytes a second may be written, 0 means any, from
	// one goroutine at a time and never after Convert has returned (unless with ErrHung).
	// qemu-img is stopped (SIGSTOP) whenever it is ahead. Outside Linux the first answer
	// holds to the end.
	Rate func() int64
	// Progress, when not nil, is told the percentage done, in rising order, from one
	// goroutine at a time and never after Convert has returned (unless with ErrHung).
	// It must return quickly: qemu-img waits for it.
	Progress func(percent float64)
}

// Convert copies the content of src, with its backing chain, to dst, and flushes that. The source is
// opened without -U: while a VM has it open the call fails with ErrLocked, and while
// the call runs a VM that uses it can't start. Bitmaps are not copied. There is no
// time limit but ctx, and Config.StallTimeout. A failed call removes the dst that it created,
// unless with ErrHung. A dst that is a Descriptor is the caller's own: it is
// empty, open for writing, and stays when the call fails.
// Errors: ErrExist, ErrNotFound, ErrBackingFile, ErrLocked, ErrFormat, ErrNoSpace,
// ErrSizeMismatch (an existing target is too small), ErrIO.
func (t *Tool) Convert(ctx context.Context, src, dst string, o ConvertOptions) error {
	if err := t.convert(ctx, src, dst, o); err != nil {
		return fmt.Errorf("convert image %q to %q: %w", FileName(src), FileName(dst), err)
	}
	return nil
}

func (t *Tool) convert(ctx context.Context, src, dst string, o ConvertOptions) error {
	if !anySealed(o.Secret, o.Backing) {
		format, from, err := t.source(ctx, "-f", src, o.SourceFormat, o.Backing)
		if err != nil {
			return err
		}
		return t.convertFrom(ctx, from, dst, o, format, roomFor(src, o.Backing, false), from, src)
	}
	if o.Backing == nil {
		return fmt.Errorf("%w: a sealed image is read with exactly the layers given", ErrInvalidOption)
	}
	return t.sealedChain(ctx, layersOf(src, o.SourceFormat, o.Secret, o.Backing), func(from string, names []string) error {
		return t.convertFrom(ctx, from, dst, o, nil, &room{}, append(names, from, src)...)
	})
}

// convertFrom copies what qemu-img finds by the name, with the arguments that name its format.
func (t *Tool) convertFrom(
	ctx context.Context, from, dst string, o ConvertOptions, format []string, room *room, names ...string,
) error {
	to, err := absolute(dst)
	if err != nil {
		return err
	}
	if o.Rate != nil && !canPause {
		o.BandwidthBytes = lower(o.BandwidthBytes, o.Rate())
	}
	args, err := o.args()
	if err != nil {
		return err
	}
	args = append(append(args, format...), "--", from, to)
	c := command{program: t.img, args: args, names: append(names, to), room: room,
		images: imagesOf(o.Backing), bandwidth: o.BandwidthBytes, rate: o.Rate}
	if c.room != nil {
		c.room.write = append(c.room.write, to)
	}
	if o.Progress != nil {
		c.stdout = &progressWriter{report: o.Progress}
	}
	copyAll := func() error { _, err := t.run(ctx, c); return err }
	work := copyAll
	if o.TargetCache != CacheUnsafe {
		work = func() error { return t.flushed(ctx, to, copyAll) }
	}
	if o.TargetExists {
		return work()
	}
	whole := func() error {
		if err := work(); err != nil || o.TargetFormat.orDefault() != FormatQcow2 {
			return err
		}
		return t.wholeTables(ctx, to)
	}
	if IsDescriptor(to) {
		return whole()
	}
	return t.claimed(ctx, to, whole)
}

// flushed makes durable what f writes to the file. It is open while f runs, so that it hears of every write that the
// storage loses: qemu-img flushes when it closes an image and drops what it is told, and who opens the file after that
// is told nothing.
func (t *Tool) flushed(ctx context.Context, name string, f func() error) error {
	var file *os.File
	open := func() (err error) { file, err = os.Open(name); return err }
	if err := t.detached(ctx, name, open, func() error { return file.Close() }); err != nil {
		return fileError(err)
	}
	defer func() { _ = file.Close() }()
	stop := writeback.Start(file)
	err := f()
	select {
	case <-stop():
	case <-time.After(time.Second): // a disk that is busy; what one that is dead holds on to is left behind
	}
	if err != nil {
		return err
	}
	switch err := t.detached(ctx, name, file.Sync, nil); {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("flush: %w: %w", ErrNoSpace, err)
	case errors.Is(err, syscall.EIO):
		return fmt.Errorf("flush: %w: %w", ErrIO, err)
	default:
		return fmt.Errorf("flush: %w", err)
	}
}

// wholeTables finds what qemu-img loses without an error when its last flush fails: it doesn't write the tables then,
// and leaves data that nothing refers to.
func (t *Tool) wholeTables(ctx context.Context, name string) error {
	res, err := t.check(ctx, name, CheckOptions{Timeout: NoLimit})
	if err == nil && !res.Whole() {
		err = fmt.Errorf("%w: the tables were not all written: %d clusters that nothing refers to, %d corruptions",
			ErrIO, res.Leaks, res.Corruptions)
	}
	return err
}

// args returns the arguments up to the source's format.
func (o ConvertOptions) args() ([]string, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	args := []string{
		"convert", "-O", string(o.TargetFormat.orDefault()),
		"-m", strconv.Itoa(orDefault(o.Coroutines, 16)),
		"-T", string(orDefault(o.SourceCache, CacheWriteback)),
		"-t", string(orDefault(o.TargetCache, CacheWriteback)),
	}
	if o.BandwidthBytes > 0 {
		args = append(args, "-r", strconv.FormatInt(o.BandwidthBytes, 10))
	}
	for _, flag := range []struct {
		set  bool
		name string
	}{
		{!o.InOrder, "-W"},
		{o.TargetExists, "-n"},
		{o.TargetIsZero, "--target-is-zero"},
		{o.Compress, "-c"},
		{o.Progress != nil, "-p"},
	} {
		if flag.set {
			args = append(args, flag.name)
		}
	}
	settings, err := o.settings()
	return append(args, optionList(settings)...), err
}

// settings returns the creation settings of a new target.
func (o ConvertOptions) settings() ([]string, error) {
	settings, err := clusterSetting(o.ClusterSizeBytes)
	if o.CompressionType != "" {
		settings = append(settings, "compression_type="+o.CompressionType)
	}
	return settings, err
}

// validate refuses values that qemu-img would refuse, or worse, misread.
func (o ConvertOptions) validate() error {
	invalid := func(what string, value any) error {
		return fmt.Errorf("%w: %s %v", ErrInvalidOption, what, value)
	}
	errs := []error{o.TargetFormat.explicit()}
	if o.Coroutines < 0 || o.Coroutines > 16 {
		errs = append(errs, invalid("Coroutines", o.Coroutines))
	}
	if o.BandwidthBytes < 0 {
		errs = append(errs, invalid("BandwidthBytes", o.BandwidthBytes))
	}
	for _, mode := range []CacheMode{o.SourceCache, o.TargetCache} {
		switch mode {
		case "", CacheWriteback, CacheNone, CacheUnsafe:
		default:
			errs = append(errs, invalid("cache mode", mode))
		}
	}
	switch o.CompressionType {
	case "", "zlib", "zstd":
	default:
		errs = append(errs, invalid("CompressionType", o.CompressionType))
	}
	if o.TargetIsZero && !o.TargetExists {
		errs = append(errs, invalid("TargetIsZero without TargetExists:", true))
	}
	return errors.Join(errs...)
}

// progressWriter reads qemu-img's "    (12.34/100%)\r".
type progressWriter struct {
	report func(float64)
	line   []byte
	last   float64
	begun  bool
}

// maxProgressLine is far above what one report takes.
const maxProgressLine = 256

func (w *progressWriter) Write(p []byte) (int, error) {
	for _, c := range p {
		switch {
		case c == ')':
			w.flush()
		case len(w.line) < maxProgressLine:
			w.line = append(w.line, c)
		}
	}
	return len(p), nil
}

// flush reports the percentage in the line, if it is one and larger than the last.
func (w *progressWriter) flush() {
	line := w.line
	w.line = w.line[:0]
	_, line, found := bytes.Cut(line, []byte("("))
	number, _, isPercent := bytes.Cut(line, []byte("/100%"))
	if !found || !isPercent {
		return
	}
	percent, err := strconv.ParseFloat(string(number), 64)
	if err != nil || percent < 0 || percent > 100 || (w.begun && percent <= w.last) {
		return
	}
	w.begun, w.last = true, percent
	w.report(percent)
}
