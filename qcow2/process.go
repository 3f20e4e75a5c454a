package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a running tool. All methods are safe for concurrent use.
type process struct {
	tool   *Tool
	name   string
	cmd    *exec.Cmd
	names  []string // file names that may occur in messages
	stderr tailBuffer
	done   chan struct{} // closed when the process is reaped and its output read
	err    error         // of cmd.Wait; valid once done is closed

	mu     sync.Mutex
	exited bool // guarded by mu: reaping may begin, so the number is not to be used
}

// command is one run to be made.
type command struct {
	program     program
	args        []string
	names       []string  // file names in args, absolute
	stdin       *os.File  // nil means empty
	stdout      io.Writer // nil discards, or lets run collect it
	limitMemory bool
	timeout     time.Duration // 0 or NoLimit: none beside the caller's
}

// start starts c. The process lives until it ends or kill is called; the caller
// waits for done.
func (t *Tool) start(c command) (*process, error) {
	if c.program.err != nil {
		return nil, c.program.err
	}
	p := &process{tool: t, name: c.program.name, names: c.names, done: make(chan struct{})}
	// No context: kill reaches the whole group, which exec's own would not.
	p.cmd = exec.CommandContext(context.Background(), c.program.path, c.args...)
	p.cmd.Dir = "/" // never hold on to a mount
	p.cmd.Env = toolEnv()
	p.cmd.SysProcAttr = sysProcAttr()
	p.cmd.Stderr = &p.stderr
	p.cmd.WaitDelay = t.cfg.KillGrace
	if c.stdin != nil {
		p.cmd.Stdin = c.stdin
	}
	p.cmd.Stdout = c.stdout
	started := make(chan error)
	go p.supervise(started, c.limitMemory)
	if err := <-started; err != nil {
		return nil, p.failure(err)
	}
	return p, nil
}

// toolEnv is the caller's environment with English messages. A limited address
// space goes further with few malloc arenas, each of which reserves 64 MiB.
func toolEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "LC_") && !strings.HasPrefix(v, "LANG") {
			env = append(env, v)
		}
	}
	return append(env, "LC_ALL=C", "MALLOC_ARENA_MAX=4")
}

// supervise starts the process, waits for it and reaps it. The death signal of
// a child (PR_SET_PDEATHSIG) is sent when the thread that forked it ends, not
// when the process does, and the Go runtime ends threads at will; so this
// goroutine keeps its thread to itself for as long as the child lives.
func (p *process) supervise(started chan<- error, limited bool) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := p.cmd.Start(); err != nil {
		started <- err
		return
	}
	pid := p.cmd.Process.Pid
	if limit := p.tool.cfg.MemoryLimitBytes; limited && limit != NoLimit {
		if err := limitAddressSpace(pid, limit); err != nil {
			p.tool.log.Warn("run without a memory limit", "tool", p.name, "error", err)
		}
	}
	started <- nil
	waitExited(pid)
	p.mu.Lock()
	killGroup(pid) // whatever it has started itself
	p.exited = true
	p.mu.Unlock()
	p.err = p.cmd.Wait()
	close(p.done)
}

// kill kills the process group. It does not wait.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exited {
		return
	}
	killGroup(p.cmd.Process.Pid)
	_ = p.cmd.Process.Kill() // for systems without groups; an ended process is no error
}

// reap kills the process and waits for its end, at most KillGrace long.
func (p *process) reap() error {
	p.kill()
	timer := time.NewTimer(p.tool.cfg.KillGrace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		p.tool.log.Warn("killed process does not end, leaving it behind", "tool", p.name, "pid", p.cmd.Process.Pid)
		return fmt.Errorf("%w: %s, pid %d", ErrHung, p.name, p.cmd.Process.Pid)
	}
}

// terminate asks the process to end, and kills it when it has not after KillGrace.
func (p *process) terminate() error {
	p.mu.Lock()
	if !p.exited {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended: no error
	}
	p.mu.Unlock()
	timer := time.NewTimer(p.tool.cfg.KillGrace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		return p.reap()
	}
}

// wait waits for the end of the process, and kills it when ctx ends first.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.exitError()
	case <-ctx.Done():
		return p.failure(errors.Join(contextError(ctx), p.reap()))
	}
}

// exitError tells how an ended process failed, or nil.
func (p *process) exitError() error {
	if p.err == nil {
		return nil
	}
	var exit *exec.ExitError
	if !errors.As(p.err, &exit) || !exit.Exited() {
		return p.failure(p.err) // killed by somebody else, or its output failed
	}
	return p.failure(classify(p.stderr.String(), p.names))
}

// failure wraps what went wrong into a ToolError.
func (p *process) failure(err error) *ToolError {
	e := &ToolError{
		Tool: p.name, Args: p.cmd.Args[1:], ExitCode: -1,
		Stderr: strings.TrimSpace(p.stderr.String()), Err: err,
	}
	select {
	case <-p.done:
		e.ExitCode = p.cmd.ProcessState.ExitCode()
	default:
	}
	return e
}

// contextError returns why ctx ended: its cause and, when that hides a plain
// cancel or deadline, this too. Limits of our own are ErrTimeout
// and ErrOutputTooLarge only.
func contextError(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, ctx.Err()) || errors.Is(cause, ErrTimeout) || errors.Is(cause, ErrOutputTooLarge) {
		return cause
	}
	return errors.Join(cause, ctx.Err())
}
