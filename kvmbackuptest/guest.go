package kvmbackuptest

import (
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// ErrFrozen is returned by guest writes while the file systems are frozen; a real guest's would wait.
var ErrFrozen = errors.New("simulated: the guest's file systems are frozen")

// Agent says what a domain's guest agent does.
type Agent int

// The agents.
const (
	AgentMissing     Agent = iota // no agent: ErrNoAgent
	AgentPresent                  // it freezes and thaws
	AgentSilent                   // it is connected and doesn't answer: Freeze takes as long as its context
	AgentFailing                  // it freezes and then reports a failure
	AgentNothing                  // it freezes no file system, and says so
	AgentThawFailing              // like AgentPresent, but thawing fails the first three times
)

const failingThaws = 3

// guest is what goes on inside of a domain.
type guest struct {
	agent          Agent
	frozen         bool
	freezes, thaws int // calls that had an effect
	thawFailures   int
	failedWrites   int
}

// GuestState is what can be seen of a guest.
type GuestState struct {
	Frozen bool
	// Freezes and Thaws count the calls that froze and thawed something, since the domain was defined.
	Freezes, Thaws int
	// FailedWrites counts the writes that failed for a full scratch.
	FailedWrites int
}

// SetAgent changes what the guest agent does.
func (h *Hypervisor) SetAgent(name string, a Agent) error {
	return h.with(name, func(d *domain) error {
		d.guest.agent, d.guest.thawFailures = a, 0
		return nil
	})
}

// Guest returns what can be seen of a guest.
func (h *Hypervisor) Guest(name string) (GuestState, error) {
	var out GuestState
	err := h.with(name, func(d *domain) error {
		out = GuestState{d.guest.frozen, d.guest.freezes, d.guest.thaws, d.guest.failedWrites}
		return nil
	})
	return out, err
}

// Write is a guest's write of data at an offset of a disk. The guest must run: ErrDomainStopped, ErrFrozen.
func (h *Hypervisor) Write(name, device string, offset int64, data []byte) error {
	return h.change(name, device, offset, int64(len(data)), data)
}

// Discard is a guest's discard of a range that its disk passes on: it reads as zeroes then.
func (h *Hypervisor) Discard(name, device string, offset, length int64) error {
	return h.change(name, device, offset, length, nil)
}

func (h *Hypervisor) change(name, device string, offset, length int64, data []byte) error {
	return h.on(name, device, func(d *domain, k *disk) error {
		switch {
		case d.state != kvmbackup.DomainRunning:
			return fmt.Errorf("%w: guest of %q is %v", kvmbackup.ErrDomainStopped, name, d.state)
		case d.guest.frozen:
			return ErrFrozen
		case k.image == nil || k.skip != "":
			return fmt.Errorf("%w: %s of %q", kvmbackup.ErrUnsupported, device, name)
		}
		if err := k.image.fits(offset, length); err != nil {
			return err
		}
		if err := d.keep(k.image, offset, length); err != nil {
			return err
		}
		return k.image.write(offset, length, data)
	})
}

// Content returns what is on a disk now. For a domain that is off that is the content of the image.
func (h *Hypervisor) Content(name, device string) (c Content, err error) {
	err = h.on(name, device, func(d *domain, k *disk) error {
		if k.image == nil {
			return fmt.Errorf("%w: %s of %q", kvmbackup.ErrUnsupported, device, name)
		}
		if !d.running() {
			if err := k.image.load(); err != nil {
				return err
			}
		}
		c = k.image.content()
		return nil
	})
	return c, err
}

// Source returns the path of a disk's image, which snapshots and commits change.
func (h *Hypervisor) Source(name, device string) (path string, err error) {
	err = h.on(name, device, func(_ *domain, k *disk) error {
		if k.image != nil {
			path = k.image.path
		}
		return nil
	})
	return path, err
}

// freeze is the guest agent's part of Freeze. waits is set when it doesn't answer.
func (g *guest) freeze() (n int, waits bool, err error) {
	switch g.agent {
	case AgentMissing:
		return 0, false, fmt.Errorf("%w: not configured", kvmbackup.ErrNoAgent)
	case AgentSilent:
		return 0, true, nil
	case AgentNothing:
		return 0, false, nil
	}
	if g.frozen {
		return 0, false, errors.New("simulated: the guest agent says that the file systems are frozen already")
	}
	g.frozen = true
	g.freezes++
	if g.agent == AgentFailing {
		return 0, false, errors.New("simulated: the guest agent failed to freeze the second file system")
	}
	return 2, false, nil
}

func (g *guest) thaw() error {
	switch {
	case g.agent == AgentMissing, g.agent == AgentSilent:
		return fmt.Errorf("%w: it doesn't answer", kvmbackup.ErrNoAgent)
	case g.agent == AgentThawFailing && g.thawFailures < failingThaws:
		g.thawFailures++
		return errors.New("simulated: the guest agent failed to thaw")
	}
	if g.frozen {
		g.frozen = false
		g.thaws++
	}
	return nil
}
