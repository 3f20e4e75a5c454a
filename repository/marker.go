package repository

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/kvmbackup/kvmbackup"
)

// MarkerName is the file that makes a folder a repository.
const MarkerName = "kvmbackup-repository.json"

// Version is the version of the repository's layout that this package makes, and the latest it opens.
const Version = 1

const (
	markerFormat   = "kvmbackup-repository"
	maxMarkerBytes = 64 << 10
)

// errNoMarker is no fs.ErrNotExist, so that nobody takes it for a backup's absence.
var errNoMarker = fmt.Errorf("%w: no %s: is the share mounted? For a new repository call Init", ErrNotRepository,
	MarkerName)

// linkRefused are the answers of file systems without hard links.
var linkRefused = []error{syscall.EPERM, syscall.ENOTSUP, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EINVAL,
	syscall.EMLINK}

// marker is the content of MarkerName.
type marker struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	ID      string `json:"id"`
}

func decodeMarker(b []byte) (marker, error) {
	var m marker
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%w: %s is corrupt: %w", ErrNotRepository, MarkerName, err)
	}
	if m.Format == markerFormat && m.Version > Version {
		return m, fmt.Errorf("%w: %d, this program knows up to %d: use a later release", ErrVersion, m.Version, Version)
	}
	if m.Format != markerFormat || m.Version < 1 || kvmbackup.ValidName("ID", m.ID) != nil {
		return m, fmt.Errorf("%w: %s is not of this format", ErrNotRepository, MarkerName)
	}
	return m, nil
}

// checkMarker is asked by every operation: is this still the repository that was opened? Without it the mount point of
// a share that went away would look like a repository from which all backups have been removed.
func (s *session) checkMarker() error {
	if s.repo.id == "" {
		return nil // being opened
	}
	m, err := s.readMarker()
	if errors.Is(err, ErrNotRepository) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err == nil && m.ID != s.repo.id {
		return fmt.Errorf("%w: %w: %s, not %s", ErrUnavailable, ErrOtherRepository, m.ID, s.repo.id)
	}
	return err
}

func (s *session) readMarker() (marker, error) {
	b, err := s.readFile(MarkerName, maxMarkerBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return marker{}, errNoMarker
	}
	if err != nil {
		return marker{}, err
	}
	return decodeMarker(b)
}

// makeMarker writes a marker unless there is one. Of two that run at the same time one wins, and both return its id.
func (s *session) makeMarker() (marker, error) {
	m, err := s.readMarker()
	if !errors.Is(err, errNoMarker) {
		return m, err
	}
	b, err := json.Marshal(marker{markerFormat, Version, newUUID()})
	if err != nil {
		return marker{}, err
	}
	temp, err := s.writeTemp("", MarkerName, append(b, '\n'), infoMode, true)
	if err != nil {
		return marker{}, err
	}
	if err := s.placeMarker(temp); err != nil {
		return marker{}, err
	}
	if err := s.syncDir("."); err != nil {
		return marker{}, err
	}
	return s.readMarker()
}

// placeMarker gives the marker its name if no other has come first: a hard link does just that. Where there are none, a
// rename must do, which leaves a moment for a second Init to come in between.
func (s *session) placeMarker(temp string) error {
	err := s.step("link", MarkerName, s.repo.opts.Timeout, func() error { return s.root.Link(temp, MarkerName) })
	if err == nil || errors.Is(err, fs.ErrExist) {
		return s.remove(temp)
	}
	if s.work.Check() != nil || !matches(err, linkRefused) {
		return errors.Join(err, s.remove(temp))
	}
	return s.place(temp, MarkerName)
}

// newUUID returns a random (version 4) UUID.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
