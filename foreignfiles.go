package kvmbackup

import (
	"errors"
	"fmt"
	"strings"
)

// ErrForeignFiles is returned, as a *ForeignFilesError, by removals that are done: all that was the backup's is gone,
// and what somebody else has put into its folder stays.
var ErrForeignFiles = errors.New("foreign files")

// ForeignFilesError names the files that a removal has left, and where they are now. It matches ErrForeignFiles.
type ForeignFilesError struct {
	Folder string   // relative to the repository's root, as it is named now
	Names  []string // sorted
}

func (e *ForeignFilesError) Error() string {
	return fmt.Sprintf("%v stay in %q, from which all that was the backup's is gone: %s: remove the folder if nobody "+
		"needs them",
		ErrForeignFiles, e.Folder, quoted(e.Names))
}

func (e *ForeignFilesError) Unwrap() error { return ErrForeignFiles }

func quoted(names []string) string {
	const most = 5
	q := make([]string, 0, most+1)
	for i, n := range names {
		if i == most {
			q = append(q, fmt.Sprintf("and %d more", len(names)-most))
			break
		}
		q = append(q, fmt.Sprintf("%q", n))
	}
	return strings.Join(q, ", ")
}
