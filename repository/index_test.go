package repository_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup/repository"
)

// A crash after an index is written comes before any manifest or record tells of it: it goes with its volume all the
// same.
func TestIndexIsTheBackupsOwn(t *testing.T) {
	t.Parallel()
	r := quick(t)
	m := prepare(t, r, full())
	for _, v := range m.Volumes {
		_, err := r.WriteFile(t.Context(), fullPath, fullID, v.File+repository.IndexSuffix, []byte("sums"))
		want(t, err)
	}
	want(t, r.RemovePartial(t.Context(), m.Backup))
	empty(t, r, m)
}
