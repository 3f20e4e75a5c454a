package libvirtjob

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// Freeze implements kvmbackup.Executor. The guest agent is asked directly, because libvirt's own call for Go doesn't
// return the number of file systems, and takes no time limit: here the context's deadline is the agent's too. When
// it fails the file systems may still be frozen, so Thaw has to follow in any case.
func (e *Executor) Freeze(ctx context.Context, ref kvmbackup.DomainRef) (int, error) {
	n, err := e.agent(ctx, ref, "guest-fsfreeze-freeze")
	if err != nil {
		return 0, fmt.Errorf("freeze file systems of %q: %w", ref.Name, err)
	}
	return n, nil
}

// Thaw implements kvmbackup.Executor. A stopped domain has nothing to thaw.
func (e *Executor) Thaw(ctx context.Context, ref kvmbackup.DomainRef) error {
	_, err := e.agent(ctx, ref, "guest-fsfreeze-thaw")
	if err != nil && !errors.Is(err, kvmbackup.ErrDomainStopped) {
		return fmt.Errorf("thaw file systems of %q: %w", ref.Name, err)
	}
	return nil
}

// agent runs a command of the guest agent that returns a number.
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
	if err != nil {
		return 0, err
	}
	var reply struct {
		Return int `json:"return"`
	}
	if err := json.Unmarshal([]byte(answer), &reply); err != nil {
		return 0, fmt.Errorf("%s: %w", command, err)
	}
	return reply.Return, nil
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
