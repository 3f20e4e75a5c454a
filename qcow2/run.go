package qcow2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// run runs c to its end and returns its standard output, unless c.stdout takes
// it. The output is returned beside an error too, for exit codes that are results.
func (t *Tool) run(ctx context.Context, c command) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	if c.timeout < 0 {
		return nil, fmt.Errorf("%w: negative Timeout", ErrInvalidOption)
	}
	ctx, cancel := withTimeout(ctx, c.timeout)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	tooMuch := func() { stop(ErrOutputTooLarge) }
	out := &limitedBuffer{max: t.cfg.MaxOutputBytes, overflow: tooMuch}
	if c.stdout == nil {
		c.stdout = out
	} else {
		c.stdout = &boundedWriter{to: c.stdout, left: t.cfg.MaxOutputBytes, overflow: tooMuch}
	}
	began := time.Now()
	p, err := t.start(c)
	if err != nil {
		return nil, err
	}
	watched, unwatch := withStall(ctx, t.stallLimit(c.bandwidth), p.moved)
	unpace := func() {}
	if c.rate != nil && canPause {
		unpace = p.keepPace(c.rate)
	}
	err = p.wait(watched)
	unpace()
	unwatch()
	if errors.Is(context.Cause(ctx), ErrOutputTooLarge) {
		// Whether it was killed, or had ended before that because nobody read on.
		err = p.failure(ErrOutputTooLarge)
	}
	logctx.Logger(ctx, t.log).Debug("ran tool", "tool", p.name, "args", c.args, "elapsed", time.Since(began), "error", err)
	return out.bytes(), err
}

// inspect runs qemu-img for a subcommand that reads metadata and prints JSON
// into out, with the memory for so many images.
func (t *Tool) inspect(
	ctx context.Context, timeout time.Duration, images int, room *room, names, args []string, out any,
) error {
	data, err := t.run(ctx, command{
		program: t.img, args: args, names: names, images: images, room: room,
		timeout: orDefault(timeout, t.cfg.InspectTimeout),
	})
	if err != nil {
		return err
	}
	return decode(args[0], data, out)
}

// modify runs qemu-img for a subcommand that is quick, changes one of a VM's own images, and prints nothing of use.
func (t *Tool) modify(ctx context.Context, file string, args ...string) error {
	ctx, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	room, err := t.roomOfImages(ctx, true, Layer{Path: file})
	if err != nil {
		return err
	}
	_, err = t.run(ctx, command{program: t.img, args: args, names: []string{file}, images: 1, room: room})
	return err
}

// decode reads the JSON that a subcommand has printed.
func decode(subcommand string, data []byte, out any) error {
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%w from qemu-img %s: %w", ErrProtocol, subcommand, err)
	}
	return nil
}

// withTimeout adds a time limit, whose end is told apart as ErrTimeout.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 || d == NoLimit {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%w: %s", ErrTimeout, d))
}
