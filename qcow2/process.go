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
	passed []passed
	stderr tailBuffer
	done   chan struct{} // closed when the process is reaped and its output read
	err    error         // of cmd.Wait; valid once done is closed

	mu     sync.Mutex
	exited bool // guarded by mu: reaping may begin, so the number is not to be used
	rests  bool // guarded by mu: it was stopped, see keepPace
}

// command is one run to be made.
type command struct {
	program   program
	args      []string
	names     []string      // file names in args, absolute
	stdin     *os.File      // nil means empty
	files     []*os.File    // inherited: the program has them as descriptors from 3 on
	stdout    io.Writer     // nil discards, or lets run collect it
	room      *room         // nil: it may open whatever this process may
	images    int           // how many it opens, which bounds its memory; 0: unknown
	timeout   time.Duration // 0 or NoLimit: none beside the caller's
	bandwidth int64         // bytes per second that it was told to keep to; 0: none
	rate      func() int64  // the bytes per second that it is kept to besides; nil: none
}

// start starts c. The process lives until it ends or kill is called; the caller
// waits for done.
func (t *Tool) start(c command) (*process, error) {
	if c.program.err != nil {
		return nil, c.program.err
	}
	given := c
	passed, files, err := c.passOn()
	defer closeAll(files)
	if err != nil {
		return nil, err
	}
	p := &process{tool: t, name: c.program.name, names: c.names, passed: passed, done: make(chan struct{})}
	// No context: kill reaches the whole group, which exec's own would not.
	p.cmd = exec.CommandContext(context.Background(), c.program.path, c.args...)
	p.cmd.Dir = "/" // never hold on to a mount
	p.cmd.Env = toolEnv()
	p.cmd.SysProcAttr = sysProcAttr()
	p.stderr.max, p.stderr.overflow = t.cfg.MaxOutputBytes, p.kill
	p.cmd.Stderr = &p.stderr
	p.cmd.WaitDelay = t.cfg.KillGrace
	if c.stdin != nil {
		p.cmd.Stdin = c.stdin
	}
	p.cmd.Stdout, p.cmd.ExtraFiles = c.stdout, c.files
	started := make(chan error)
	go p.supervise(started, given)
	if err := <-started; err != nil {
		return nil, p.failure(err)
	}
	return p, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // a duplicate
	}
}

// toolEnv is the caller's environment with English messages, and with settings of glibc's malloc (mallopt(3)). A
// limited address space goes further with few arenas, each of which reserves 64 MiB. QEMU has a buffer of its own for
// each request: glibc would give one of 1 MiB back to the kernel each time, and its pages, made and zeroed again for
// the next request, are a quarter of the processor time of a copy.
func toolEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "LC_") && !strings.HasPrefix(v, "LANG") {
			env = append(env, v)
		}
	}
	return append(env, "LC_ALL=C", "MALLOC_ARENA_MAX=4", "MALLOC_MMAP_THRESHOLD_=33554432",
		"MALLOC_TRIM_THRESHOLD_=67108864")
}

// supervise starts the process, waits for it and reaps it. The death signal of
// a child (PR_SET_PDEATHSIG) is sent when the thread that forked it ends, not
// when the process does, and the Go runtime ends threads at will; so this
// goroutine keeps its thread to itself for as long as the child lives.
//
// A thread that has entered a room ends with this goroutine, as it is never unlocked.
func (p *process) supervise(started chan<- error, c command) {
	runtime.LockOSThread()
	confined, err := p.tool.enterRoom(c)
	if !confined {
		defer runtime.UnlockOSThread()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		started <- err
		return
	}
	pid := p.cmd.Process.Pid
	if limit := p.tool.memoryLimit(c.images); limit != NoLimit {
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

// imageBytes is what an image that QEMU has open may add to its address space: caches of 32 MiB for its tables, as
// measured with chains of 48 images of 16 TiB.
const imageBytes = 64 << 20

// memoryLimit is the address space of a command that opens so many images.
func (t *Tool) memoryLimit(images int) int64 {
	limit := t.cfg.MemoryLimitBytes
	if images == 0 || limit > NoLimit-int64(images)*imageBytes {
		return NoLimit
	}
	return limit + int64(images)*imageBytes
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
func (p *process) reap() error { return p.reapWithin(p.tool.cfg.KillGrace) }

// reapWithin is reap with a limit of its own.
func (p *process) reapWithin(limit time.Duration) error {
	p.kill()
	timer := time.NewTimer(limit)
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
	if p.stderr.exceeded() {
		return p.failure(ErrOutputTooLarge)
	}
	if p.err == nil {
		return nil
	}
	var exit *exec.ExitError
	if !errors.As(p.err, &exit) || !exit.Exited() {
		// Killed by somebody else, or by itself for want of memory; or its output failed.
		if err := classify(p.stderr.String(), p.names); errors.Is(err, ErrMemory) {
			return p.failure(errors.Join(err, p.err))
		}
		return p.failure(p.err)
	}
	return p.failure(classify(p.stderr.String(), p.names))
}

// failure wraps what went wrong into a ToolError.
func (p *process) failure(err error) *ToolError {
	e := &ToolError{
		Tool: p.name, ExitCode: -1, Stderr: renamed(strings.TrimSpace(p.stderr.String()), p.passed), Err: err,
	}
	for _, arg := range p.cmd.Args[1:] {
		e.Args = append(e.Args, renamed(arg, p.passed))
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
