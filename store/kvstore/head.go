package kvstore

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/rules"
)

// The keys of this store beside those of kvmbackup.Backup.Details.
const (
	// KeyHead on the VM object is the commit point.
	KeyHead = "kvmbackup.head"
	// KeyActiveCheckpoint on the VM object is the checkpoint that its next incremental starts from, for the host to see.
	KeyActiveCheckpoint = "nas.active_checkpoint_id"
	// KeyIndexPrefix on the VM object is followed by GENERATION.NUMBER: the pages of the index.
	KeyIndexPrefix = "kvmbackup.index."
	// KeyRecordPrefix on the backup object is followed by GENERATION.NUMBER: the pieces of the record.
	KeyRecordPrefix = "kvmbackup.record."
	// KeyOwner on the backup object names the VM, as Details does. It is written first, and removed when the
	// backup's removal was acknowledged.
	KeyOwner = "kvmbackup.vm"
)

// head is the value of KeyHead. Every version of it has another number, so that compare-and-set can't be
// deceived by a value that came back.
type head struct {
	Version int64                    `json:"v"`
	Token   int64                    `json:"t,omitempty"`
	Holder  string                   `json:"h,omitempty"`
	Expires int64                    `json:"x,omitempty"` // microseconds since 1970; 0: released
	Active  kvmbackup.CheckpointName `json:"a,omitempty"`
	LastSeq int64                    `json:"q,omitempty"`
	Stamp   string                   `json:"s,omitempty"`
	Index   ref                      `json:"r,omitzero"` // the root
	// List is the index of an earlier release, which was one list. The one that finds it exchanges it; see upgrade.
	List generation `json:"i,omitzero"`
	// Copy is what the copies for the host don't show yet: a backup's ID, or copyVM for the VM alone.
	Copy string `json:"c,omitempty"`
	// Staged is a backup for which a writer writes pieces that no head names yet. A writer that finds it here
	// removes them: the one before it gave up, or will find that the head has moved on.
	Staged kvmbackup.BackupID `json:"n,omitempty"`
}

// copyVM is a head's Copy when no backup changed.
const copyVM = "vm"

// generation names one writing of a record: pieces under names that were never used before.
type generation struct {
	Name   string `json:"g"` // VERSION-NONCE: the version of the head that was to name it
	Pieces int    `json:"n"`
	// CRC-32 over the pieces: nobody but a store writes them, and a changed one is no index or record.
	Sum string `json:"c"`
}

func sum(pieces []string) string {
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(strings.Join(pieces, ""))))
}

// newName is a generation's that the head of that version is to name.
func newName(version int64) string { return strconv.FormatInt(version, 10) + "-" + rand.Text()[:8] }

// version is that of the head that was to name the generation; -1 when the name isn't one.
func (g generation) version() int64 {
	text, _, _ := strings.Cut(g.Name, "-")
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// valid says whether it is one, or none at all.
func (g generation) valid() bool {
	if g.Name == "" {
		return g.Pieces == 0
	}
	return g.Pieces > 0 && g.version() > 0
}

// valid says whether it is one, or none at all.
func (r ref) valid() bool {
	if r.Name == "" {
		return r == ref{}
	}
	return r.Page >= 0 && generation{Name: r.Name}.version() > 0
}

func (g generation) key(prefix string, i int) string {
	return prefix + g.Name + "." + strconv.Itoa(i)
}

// check names what is wrong with a head that was read.
func (h head) check() error {
	switch {
	case h.Version <= 0:
		return errors.New("it has no version")
	case h.Token < 0 || h.Expires < 0 || h.LastSeq < 0:
		return errors.New("it has a negative number")
	case !h.List.valid(), !h.Index.valid(), h.LastSeq > 0 && h.Index.Name == "" && h.List.Name == "":
		return errors.New("it names no index")
	case h.Index.Name != "" && h.List.Name != "":
		return errors.New("it names two indexes")
	}
	return nil
}

func (h head) vm(id kvmbackup.VMID) rules.VM {
	vm := rules.VM{
		VMRecord: kvmbackup.VMRecord{VM: id, ActiveCheckpoint: h.Active, LastSequence: h.LastSeq, LastStamp: h.Stamp},
		Lease:    kvmbackup.Lease{VM: id, Holder: h.Holder, Token: h.Token},
	}
	if h.Expires != 0 {
		vm.Lease.ExpiresAt = time.UnixMicro(h.Expires).UTC()
	}
	return vm
}

func (h head) with(vm rules.VM) head {
	h.Active, h.LastSeq, h.Stamp = vm.ActiveCheckpoint, vm.LastSequence, vm.LastStamp
	h.Token, h.Holder, h.Expires = vm.Lease.Token, vm.Lease.Holder, 0
	if !vm.Lease.ExpiresAt.IsZero() {
		h.Expires = vm.Lease.ExpiresAt.UnixMicro()
	}
	return h
}

// The keys of an index. Those of entries are the last, as most of them are added at the end.
const (
	prefixChild   = "c" // PARENT.SEQUENCE: the parent, whose ID may be anything and is hashed, has that child
	prefixRemoval = "r" // BACKUP.TURN
	prefixEntry   = "s" // SEQUENCE
)

// entry is one backup: what the rules and queries ask without reading the record.
type entry struct {
	ID       kvmbackup.BackupID `json:"i"`
	Sequence int64              `json:"q"`
	Status   kvmbackup.Status   `json:"s"`
	Parent   kvmbackup.BackupID `json:"p,omitempty"`
	Record   generation         `json:"r"`
}

func (e entry) key() string      { return keyOfEntry(e.Sequence) }
func (e entry) childKey() string { return childrenOf(e.Parent).from + hex(e.Sequence) }

// keyOfEntry is the key of the entry with that sequence.
func keyOfEntry(sequence int64) string { return prefixEntry + hex(sequence) }

// hex keeps the order of numbers that are not negative.
func hex(n int64) string { return fmt.Sprintf("%016x", n) }

// under are the keys that begin so.
func under(prefix string) span { return span{from: prefix, end: prefix + "\x7f"} }

func childrenOf(id kvmbackup.BackupID) span {
	digest := sha256.Sum256([]byte(id))
	return under(fmt.Sprintf("%s%x.", prefixChild, digest[:16]))
}

func removalsOf(id kvmbackup.BackupID) span { return under(prefixRemoval + string(id) + ".") }

// entriesAfter are the entries with higher sequences, of those statuses, or of any.
func entriesAfter(sequence int64, has statuses) span {
	s := under(prefixEntry)
	if sequence > 0 {
		s.from = keyOfEntry(sequence) + "\x00"
	}
	s.has = has
	return s
}

// removal is one that waits for the host.
type removal struct {
	Backup kvmbackup.BackupID `json:"i"`
	Turn   int64              `json:"n"` // the later the higher: of two at the same time the order stays what it was
	Bytes  int64              `json:"b,omitempty"`
	At     time.Time          `json:"t"`
}

func (r removal) key() string { return removalsOf(r.Backup).from + hex(r.Turn) }

// encode returns v as JSON in pieces of at most size bytes, cut between characters.
func encode(v any, size int) ([]string, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var pieces []string
	for len(text) > size {
		n := size
		for !utf8.RuneStart(text[n]) {
			n--
		}
		pieces, text = append(pieces, string(text[:n])), text[n:]
	}
	return append(pieces, string(text)), nil
}

func decode(pieces []string, into any) error {
	return json.Unmarshal([]byte(strings.Join(pieces, "")), into)
}

// spoilt is the ErrInvalid of details that can't be read.
func spoilt(what string, o Object, err error) error {
	return fmt.Errorf("%w %s of %v %q: %w; put the object's details back from a copy of the table",
		kvmbackup.ErrInvalid, what, o.Kind, o.ID, err)
}
