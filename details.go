package kvmbackup

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"
)

// The keys under which hosts keep chain metadata in a key/value table of their own, as the field knows them.
const (
	detailChainID       = "nas.chain_id"
	detailChainPosition = "nas.chain_position"
	detailParentID      = "nas.parent_backup_id"
	detailBitmapName    = "nas.bitmap_name"
	detailType          = "nas.type"           // full or incremental
	detailDeletePending = "nas.delete_pending" // "true" while it is
	// detailVolumePrefix is followed by the volume's index: one key per volume, its value JSON.
	detailVolumePrefix = "nas.volume."

	detailID           = "kvmbackup.id"
	detailVM           = "kvmbackup.vm"
	detailDomain       = "kvmbackup.domain"
	detailDomainUUID   = "kvmbackup.domain_uuid"
	detailHost         = "kvmbackup.host"
	detailStatus       = "kvmbackup.status"
	detailRepository   = "kvmbackup.repository"
	detailPath         = "kvmbackup.path"
	detailSequence     = "kvmbackup.sequence"
	detailStartedAt    = "kvmbackup.started_at"
	detailCompletedAt  = "kvmbackup.completed_at"
	detailConsistency  = "kvmbackup.consistency"
	detailTransfer     = "kvmbackup.transfer"
	detailFrozenFor    = "kvmbackup.frozen_for"
	detailGuestRan     = "kvmbackup.guest_ran"
	detailAsked        = "kvmbackup.asked"
	detailReasons      = "kvmbackup.reasons"
	detailError        = "kvmbackup.error"
	detailPinned       = "kvmbackup.pinned"
	detailFiles        = "kvmbackup.files"
	detailHolds        = "kvmbackup.holds"
	detailKeyIDs       = "kvmbackup.key_ids"
	detailVerification = "kvmbackup.verification"
)

// Details returns the record as details: the known keys nas.chain_id, nas.chain_position, nas.parent_backup_id,
// nas.bitmap_name, nas.type, nas.delete_pending and nas.volume.INDEX, and what they have no room for under keys that
// begin with "kvmbackup.". Empty fields have no key.
func (b Backup) Details() map[string]string {
	m := map[string]string{
		detailChainID: string(b.ChainID), detailChainPosition: strconv.Itoa(b.Position), detailParentID: string(b.ParentID),
		detailBitmapName: string(b.Checkpoint), detailType: b.Kind.String(),
		detailID: string(b.ID), detailVM: string(b.VM), detailDomain: b.Domain, detailDomainUUID: b.DomainUUID,
		detailHost: b.Host, detailStatus: b.Status.String(),
		detailRepository: b.Repository, detailPath: b.Path, detailSequence: strconv.FormatInt(b.Sequence, 10),
		detailStartedAt: timeDetail(b.StartedAt), detailCompletedAt: timeDetail(b.CompletedAt),
		detailConsistency: b.Consistency.String(), detailError: b.Error,
	}
	if b.Status == StatusDeletePending {
		m[detailDeletePending] = "true"
	}
	if b.Transfer != TransferAuto {
		m[detailTransfer] = b.Transfer.String()
	}
	if b.FrozenFor != 0 {
		m[detailFrozenFor] = b.FrozenFor.String()
	}
	if b.GuestRan {
		m[detailGuestRan] = "true"
	}
	if b.Pinned {
		m[detailPinned] = "true"
	}
	if b.Asked != (Asked{}) {
		m[detailAsked] = jsonDetail(b.Asked)
	}
	if len(b.Reasons) > 0 {
		m[detailReasons] = jsonDetail(b.Reasons)
	}
	if len(b.Files) > 0 {
		m[detailFiles] = jsonDetail(b.Files)
	}
	if len(b.KeyIDs) > 0 {
		m[detailKeyIDs] = jsonDetail(b.KeyIDs)
	}
	if len(b.Holds) > 0 {
		m[detailHolds] = jsonDetail(b.Holds)
	}
	if b.Verification != nil {
		m[detailVerification] = jsonDetail(b.Verification)
	}
	for i, v := range b.Volumes {
		m[fmt.Sprintf("%s%03d", detailVolumePrefix, i)] = jsonDetail(v)
	}
	for k, v := range m {
		if v == "" {
			delete(m, k)
		}
	}
	return m
}

// IsDetail says whether Details may return the key.
func IsDetail(key string) bool {
	switch key {
	case detailChainID, detailChainPosition, detailParentID, detailBitmapName, detailType, detailDeletePending:
		return true
	}
	return strings.HasPrefix(key, detailVolumePrefix) || strings.HasPrefix(key, "kvmbackup.")
}

// BackupFromDetails is the inverse of Details; keys that it doesn't know are passed over. Details without chain data,
// as an earlier full-only feature has left them, are ErrNoChainData; those that can't be read or don't
// validate are an ErrInvalid that names the key.
func BackupFromDetails(m map[string]string) (Backup, error) {
	if m[detailChainID] == "" || m[detailID] == "" {
		return Backup{}, ErrNoChainData
	}
	r := detailReader{m: m}
	b := Backup{
		ID: BackupID(m[detailID]), VM: VMID(m[detailVM]), Domain: m[detailDomain], DomainUUID: m[detailDomainUUID],
		Host:    m[detailHost],
		ChainID: ChainID(m[detailChainID]), ParentID: BackupID(m[detailParentID]),
		Checkpoint: CheckpointName(m[detailBitmapName]),
		Repository: m[detailRepository], Path: m[detailPath], Error: m[detailError],
		Position: int(r.int(detailChainPosition)), Sequence: r.int(detailSequence),
		StartedAt: r.time(detailStartedAt), CompletedAt: r.time(detailCompletedAt),
		GuestRan: r.bool(detailGuestRan), Pinned: r.bool(detailPinned),
	}
	r.text(detailType, &b.Kind)
	r.text(detailStatus, &b.Status)
	r.text(detailConsistency, &b.Consistency)
	if r.bool(detailDeletePending) {
		b.Status = StatusDeletePending
	}
	if m[detailTransfer] != "" {
		r.text(detailTransfer, &b.Transfer)
	}
	if s := m[detailFrozenFor]; s != "" {
		d, err := time.ParseDuration(s)
		r.note(detailFrozenFor, err)
		b.FrozenFor = d
	}
	r.json(detailAsked, &b.Asked)
	r.json(detailReasons, &b.Reasons)
	r.json(detailFiles, &b.Files)
	r.json(detailHolds, &b.Holds)
	r.json(detailKeyIDs, &b.KeyIDs)
	r.json(detailVerification, &b.Verification)
	r.volumes(&b)
	r.rules(b)
	if r.err != nil {
		return Backup{}, r.err
	}
	return b, b.Validate()
}

// detailReader keeps the first error, with the key it is about.
type detailReader struct {
	m   map[string]string
	err error
}

func (r *detailReader) note(key string, err error) {
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%w detail %s=%q of backup %s: %w", ErrInvalid, key, r.m[key], r.m[detailID], err)
	}
}

func (r *detailReader) int(key string) int64 {
	n, err := strconv.ParseInt(r.m[key], 10, 64)
	r.note(key, err)
	return n
}

func (r *detailReader) time(key string) time.Time {
	if r.m[key] == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, r.m[key])
	r.note(key, err)
	return t.UTC()
}

func (r *detailReader) text(key string, into interface{ UnmarshalText([]byte) error }) {
	r.note(key, into.UnmarshalText([]byte(r.m[key])))
}

func (r *detailReader) json(key string, into any) {
	if s := r.m[key]; s != "" {
		r.note(key, json.Unmarshal([]byte(s), into))
	}
}

func (r *detailReader) bool(key string) bool {
	if r.m[key] == "" {
		return false
	}
	v, err := strconv.ParseBool(r.m[key])
	r.note(key, err)
	return v
}

// rules asks what Validate asks, with the key that is to blame.
func (r *detailReader) rules(b Backup) {
	_, err := ParseBackupID(string(b.ID))
	r.note(detailID, err)
	_, err = parseChainID(string(b.ChainID))
	r.note(detailChainID, err)
	if b.ParentID != "" {
		_, err = ParseBackupID(string(b.ParentID))
		r.note(detailParentID, err)
	}
	r.demand(detailVM, plainName(string(b.VM)), "empty or not a plain name")
	r.demand(detailType, b.Kind.valid(), "not set")
	r.demand(detailStatus, b.Status.valid(), "not set")
	r.demand(detailStartedAt, !b.StartedAt.IsZero(), "not set")
	r.obey(b.validatePath, detailPath)
	r.obey(b.validateChain, detailType, detailChainPosition, detailParentID)
	r.obey(b.validateVolumes, detailVolumePrefix)
	r.obey(b.validateFiles, detailFiles)
	r.obey(b.validateSeal, detailKeyIDs, detailVolumePrefix)
}

func (r *detailReader) demand(key string, ok bool, otherwise string) {
	if !ok {
		r.note(key, errors.New(otherwise))
	}
}

// obey is for rules over several keys.
func (r *detailReader) obey(rule func(bad func(string, ...any)), keys ...string) {
	rule(func(format string, args ...any) {
		if r.err == nil {
			r.err = fmt.Errorf("%w details %s of backup %s: %s", ErrInvalid, strings.Join(keys, ", "), r.m[detailID],
				fmt.Sprintf(format, args...))
		}
	})
}

func (r *detailReader) volumes(b *Backup) {
	var keys []string
	for k := range r.m {
		if strings.HasPrefix(k, detailVolumePrefix) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	for _, k := range keys {
		var v VolumeBackup
		r.json(k, &v)
		b.Volumes = append(b.Volumes, v)
	}
}

func timeDetail(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// jsonDetail can't fail: it is only given the library's own plain types.
func jsonDetail(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
