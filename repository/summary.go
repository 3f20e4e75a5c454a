package repository

import (
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup"
)

// summary is what a list keeps of a manifest, or why it keeps none.
type summary struct {
	id         kvmbackup.BackupID
	domainUUID string
	path       string // that it names
	err        error
}

// summary reads the manifest of a folder, in whatever state. A file that has several names is read and decoded once: a
// name costs nothing to somebody who can write to the share, and a manifest of 4 MiB takes its time.
func (s *session) summary(f folder) (summary, error) {
	if err := s.folder(f.rel()); err != nil {
		return summary{}, err
	}
	name := join(f.rel(), ManifestName)
	var key fileKey
	several := false
	err := s.read("stat", name, func() error {
		info, err := s.regular(name)
		if err == nil {
			key, several = hardLink(info)
		}
		return err
	})
	if err != nil {
		return summary{}, err
	}
	m, known := s.linked[key]
	if !several || !known {
		if m, err = s.summarize(name); err != nil {
			return summary{}, err
		}
	}
	if several && s.linked == nil {
		s.linked = map[fileKey]summary{}
	}
	if several {
		s.linked[key] = m
	}
	if m.err == nil && m.path != f.path() {
		m.err = fmt.Errorf("%w: %q", ErrMisplaced, m.path)
	}
	return m, m.err
}

// summarize fails where nothing is known of the file's content.
func (s *session) summarize(name string) (summary, error) {
	b, err := s.readFile(name, MaxManifestBytes)
	if errors.Is(err, ErrTooLarge) {
		return summary{err: fmt.Errorf("%w: %w", ErrManifest, err)}, nil
	}
	if err != nil {
		return summary{}, err
	}
	m, err := DecodeManifest(b)
	return summary{m.ID, m.DomainUUID, m.Path, err}, nil
}

// fileKey tells the files of one listing apart.
type fileKey struct{ device, inode uint64 }
