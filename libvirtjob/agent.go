package libvirtjob

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// Freeze implements kvmbackup.Executor. The guest agent is asked directly, because libvirt's own call for Go doesn't
// return the number of file systems, and takes no time limit: here the context's deadline is the agent's too. An agent
// that doesn't answer a ping isn't asked to freeze: it would do so whenever it wakes up, and nobody would thaw.
func (e *Executor) Freeze(ctx context.Context, ref kvmbackup.DomainRef) (int, error) {
	err := e.ping(ctx, ref)
	if err != nil {
		return 0, fmt.Errorf("freeze file systems of %q: %w", ref.Name, err)
	}
	n, err := e.agent(ctx, ref, "guest-fsfreeze-freeze")
	if err != nil {
		return 0, fmt.Errorf("freeze file systems of %q: %w", ref.Name, unanswered(err))
	}
	return n, nil
}

// Thaw implements kvmbackup.Executor.
func (e *Executor) Thaw(ctx context.Context, ref kvmbackup.DomainRef) error {
	_, err := e.agent(ctx, ref, "guest-fsfreeze-thaw")
	if errors.Is(err, kvmbackup.ErrDomainStopped) && !e.paused(ctx, ref) {
		return nil
	}
	if err != nil {
		if !isCode(err, libvirt.ERR_ARGUMENT_UNSUPPORTED) && !strings.Contains(err.Error(), "agent is not connected") {
			err = unanswered(err)
		}
		return fmt.Errorf("thaw file systems of %q: %w", ref.Name, err)
	}
	return nil
}

// paused says whether a domain that isn't running has a QEMU. In doubt it has.
func (e *Executor) paused(ctx context.Context, ref kvmbackup.DomainRef) bool {
	d, err := e.lookUp(ctx, ref)
	if err != nil || d == nil {
		return err != nil && !errors.Is(err, kvmbackup.ErrNoDomain)
	}
	defer d.close()
	active, err := call(ctx, d, (*libvirt.Domain).IsActive)
	return err != nil || active
}

// unanswered is the error of a command that may have reached the agent, which therefore isn't kvmbackup.ErrNoAgent.
func unanswered(err error) error {
	var lv libvirt.Error
	if errors.Is(err, kvmbackup.ErrNoAgent) && errors.As(err, &lv) {
		return lv
	}
	return err
}

// pingLimit is enough for a busy guest and leaves half of the time for the freeze.
const pingLimit = 5 * time.Second

func (e *Executor) ping(ctx context.Context, ref kvmbackup.DomainRef) error {
	limit := pingLimit
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/2)
	}
	short, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := e.agent(short, ref, "guest-ping")
	if short.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: no answer to a ping for %v", kvmbackup.ErrNoAgent, limit)
	}
	return err
}

// agent runs a command of the guest agent and returns its number; a ping has none.
func (e *Executor) agent(ctx context.Context, ref kvmbackup.DomainRef, command string) (int, error) {
	d, err := e.lookUp(ctx, ref)
	if err != nil {
		return 0, err
	}
	if d == nil {
		return 0, kvmbackup.ErrDomainStopped
	}
	defer d.close()
	answer, err := call(ctx, d, func(dom *libvirt.Domain) (string, error) {
		return dom.QemuAgentCommand(`{"execute":"`+command+`"}`, agentTimeout(ctx), 0)
	})
	if isCode(err, libvirt.ERR_OPERATION_INVALID) && !errors.Is(err, kvmbackup.ErrDomainStopped) {
		err = fmt.Errorf("%w: %w", kvmbackup.ErrDomainStopped, err) // the driver's own check, which a paused domain fails too
	}
	if err != nil {
		return 0, err
	}
	var reply struct {
		Return any `json:"return"`
	}
	if err := json.Unmarshal([]byte(answer), &reply); err != nil {
		return 0, fmt.Errorf("%s: %w", command, err)
	}
	return countOf(reply.Return), nil
}

// countOf is what an agent says is frozen or thawed. The guest may say anything: what is no count of file systems
// counts for none.
func countOf(said any) int {
	const most = 1 << 20
	n, ok := said.(float64)
	if !ok || n < 0 || n > most || n != math.Trunc(n) {
		return 0
	}
	return int(n)
}

// agentTimeout is what is left of the context in whole seconds; libvirt's default, some seconds, if it has no end.
func agentTimeout(ctx context.Context) libvirt.DomainQemuAgentCommandTimeout {
	deadline, ok := ctx.Deadline()
	if !ok {
		return libvirt.DOMAIN_QEMU_AGENT_COMMAND_DEFAULT
	}
	left := (time.Until(deadline) + time.Second - 1) / time.Second
	return libvirt.DomainQemuAgentCommandTimeout(max(1, min(left, 1<<30)))
}

// Resume implements kvmbackup.Executor.
func (e *Executor) Resume(ctx context.Context, ref kvmbackup.DomainRef) error {
	d, err := e.lookUp(ctx, ref)
	if err != nil {
		return err
	}
	if d == nil {
		return fmt.Errorf("resume %q: %w", ref.Name, kvmbackup.ErrDomainStopped)
	}
	defer d.close()
	if err := do(ctx, d, (*libvirt.Domain).Resume); err != nil {
		return fmt.Errorf("resume %q: %w", ref.Name, err)
	}
	return nil
}
