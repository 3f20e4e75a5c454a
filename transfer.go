package kvmbackup

import "fmt"

// Transfer says which way a backup's bytes go.
type Transfer int

// The ways. In a policy the zero value leaves the choice to the engine; in a record it says that the way isn't known.
const (
	// TransferAuto is pull where a scratch is configured and the hypervisor can do it, and push otherwise.
	TransferAuto Transfer = iota
	// TransferPush is QEMU writing to the repository itself: a guest's write to a block that isn't copied yet waits for
	// the repository, and fails when that is full.
	TransferPush
	// TransferPull is QEMU exporting one instant of the disks, which the executor copies. What the guest overwrites
	// meanwhile goes to a scratch on local storage first, so that the guest never waits for the repository.
	TransferPull
	// TransferOffline is the copying of a stopped VM's images. It isn't asked for.
	TransferOffline
)

var transferNames = names[Transfer]{TransferAuto: "auto", TransferPush: "push", TransferPull: "pull",
	TransferOffline: "offline"}

// String returns "auto", "push", "pull" or "offline".
func (t Transfer) String() string { return transferNames.word(t) }

// Phrase returns the way as it ends a sentence: "by push", "by pull", "offline", or "in a way that isn't known".
func (t Transfer) Phrase() string {
	switch t {
	case TransferPush, TransferPull:
		return "by " + t.String()
	case TransferOffline:
		return t.String()
	}
	return "in a way that isn't known"
}

// MarshalText returns the String form.
func (t Transfer) MarshalText() ([]byte, error) { return transferNames.text(t) }

// UnmarshalText reads the String form; anything else is an ErrInvalid.
func (t *Transfer) UnmarshalText(b []byte) (err error) {
	*t, err = transferNames.parse("transfer", string(b))
	return err
}

// ScratchFullError is an ErrScratchFull with the figures that say how large the scratch should be.
type ScratchFullError struct {
	Folder string // the configured one, which other jobs may use, too
	// FreeAtBegin is what the folder's file system had free when the job began, and Free when the job was aborted, in
	// bytes.
	FreeAtBegin, Free int64
	Used              int64 // bytes that the job had in the scratch when it was aborted
	// WriteRate is how fast the guest filled the scratch in the end, in bytes per second.
	WriteRate int64
}

func (e *ScratchFullError) Error() string {
	return fmt.Sprintf("%v: %s had %d bytes free when the job began; the job took %d, %d are left, "+
		"and the guest overwrote %d bytes per second: the job was aborted before the guest could notice; "+
		"give the scratch more room, back up when the guest writes less, or use push",
		ErrScratchFull, e.Folder, e.FreeAtBegin, e.Used, e.Free, e.WriteRate)
}

// Is makes errors.Is(err, ErrScratchFull) true.
func (e *ScratchFullError) Is(target error) bool { return target == ErrScratchFull }
