package libvirtjob

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// guardLimit bounds the start of a guard, and its end.
const guardLimit = 10 * time.Second

// guard is the process that ends a pull job when this one is gone. A nil guard is that of a program without Guard in
// its main. Its methods may be called concurrently.
type guard struct {
	cmd *exec.Cmd

	mu sync.Mutex
	in io.WriteCloser // its end is this program's; nil once the guard was dismissed
}

// embedded says whether a URI leads to libvirt's embedded driver, which one process at a time can use: a guard would
// keep the program from being started again.
func embedded(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && u.Path == "/embed"
}

// startGuard returns when the guard watches, before the job begins: a job without one could be left. nil where the
// program's main doesn't call Guard.
func startGuard(ctx context.Context, o guardOrder) (*guard, error) {
	if !guardInstalled.Load() {
		return nil, nil
	}
	g, err := newGuard(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("%w: start the guard of a pull job: %w", kvmbackup.ErrUnavailable, err)
	}
	return g, nil
}

func newGuard(ctx context.Context, o guardOrder) (*guard, error) {
	cmd := exec.Command(ownProgram(), guardArg) //nolint:noctx // it outlives the context, and the program
	cmd.Args[0], cmd.Dir = os.Args[0], "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	g := &guard{cmd: cmd, in: in}
	if err := g.ready(ctx, o, out); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	return g, nil
}

// ready gives the order and waits for the answer.
func (g *guard) ready(ctx context.Context, o guardOrder, out io.Reader) error {
	ctx, cancel := context.WithTimeout(ctx, guardLimit)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		if err := json.NewEncoder(g.in).Encode(o); err != nil {
			answer <- err
			return
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err == nil && line != "ready\n" {
			err = fmt.Errorf("it says %q: does main call libvirtjob.Guard first?", line)
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// began tells the guard that the job is there.
func (g *guard) began() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.in != nil {
		_, _ = io.WriteString(g.in, guardBegan+"\n") // one that has died is of no use, and no reason to fail
	}
}

// dismiss ends the guard when the job is over, or was never begun. It may be called again.
func (g *guard) dismiss() { g.end(guardDone + "\n") }

// handOver has the guard see to the job as if this program were gone, and doesn't wait for that. After dismiss it does
// nothing.
func (g *guard) handOver() { g.end("") }

func (g *guard) end(word string) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.in == nil {
		return
	}
	_, _ = io.WriteString(g.in, word)
	_ = g.in.Close()
	g.in = nil
	if word == "" {
		go func() { _ = g.cmd.Wait() }()
		return
	}
	late := time.AfterFunc(guardLimit, func() { _ = g.cmd.Process.Kill() })
	defer late.Stop()
	_ = g.cmd.Wait()
}
