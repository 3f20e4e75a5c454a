package kvstore

import "context"

// ObjectKind says what a detail is on.
type ObjectKind int

// The kinds of objects. The zero value is invalid.
const (
	ObjectUnknown ObjectKind = iota
	ObjectVM
	ObjectBackup
)

// String returns "vm", "backup" or "unknown".
func (k ObjectKind) String() string {
	switch k {
	case ObjectVM:
		return "vm"
	case ObjectBackup:
		return "backup"
	}
	return "unknown"
}

// Object is one of the host's objects that has details: a VM by its VMID or a backup by its BackupID. A backup's
// details are written before the host's own row of that backup need exist.
type Object struct {
	Kind ObjectKind
	ID   string
}

// KV is the host's table of details. Keys are unique per object; values are never empty, at most
// Config.MaxValueBytes long, and valid UTF-8 without NUL. Keys have at most 64 bytes.
//
// All methods may be called concurrently and from any number of processes. Each is atomic by itself and durable when
// it returns nil, and what it wrote is seen by every call that begins after it. After an error the caller
// doesn't know whether it was done. A context that ends makes the call return an error.
type KV interface {
	// Get returns the value of a key; "" when it is not there.
	Get(ctx context.Context, o Object, key string) (string, error)
	// Set adds or replaces a value.
	Set(ctx context.Context, o Object, key, value string) error
	// Remove removes a key; one that is not there is no error.
	Remove(ctx context.Context, o Object, key string) error
	// List returns all details of an object, the host's own too; none for an unknown object. It needn't be a
	// snapshot: keys that are written meanwhile may be there or not.
	List(ctx context.Context, o Object) (map[string]string, error)
	// CompareAndSet replaces the value if it is exactly old, and says whether it did; an empty old means that the
	// key must not be there. Of several at once with the same old at most one succeeds.
	CompareAndSet(ctx context.Context, o Object, key, old, value string) (bool, error)
	// Find returns the IDs of all objects of the kind that have the key, in any order.
	Find(ctx context.Context, kind ObjectKind, key string) ([]string, error)
}
