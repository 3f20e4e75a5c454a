package enginetest_test

import (
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

// A rule keeps as many backups of each VM that has had the name, and takes those of an unknown one for the next one's.
func TestRetentionPerDomain(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]struct {
		uuids []string // oldest first
		want  []int    // which are kept
	}{
		"one VM":                     {[]string{lab.OldUUID, lab.OldUUID, lab.OldUUID}, []int{2}},
		"a new VM":                   {[]string{lab.OldUUID, lab.OldUUID, lab.NewUUID}, []int{1, 2}},
		"a new VM, the same name":    {[]string{lab.OldUUID, lab.NewUUID, lab.NewUUID}, []int{0, 2}},
		"the old VM is back":         {[]string{lab.OldUUID, lab.NewUUID, lab.OldUUID}, []int{1, 2}},
		"unknown, from before":       {[]string{"", "", lab.NewUUID}, []int{2}},
		"unknown before the old one": {[]string{"", lab.OldUUID, lab.NewUUID}, []int{1, 2}},
		"unknown, the newest":        {[]string{lab.OldUUID, lab.NewUUID, ""}, []int{0, 2}},
		"unknown, all":               {[]string{"", uuid.Nil.String(), ""}, []int{2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := records(t, "2026-11-01 10:00", "2026-11-02 10:00", "2026-11-03 10:00")
			for i := range all {
				all[i].DomainUUID = r.uuids[i]
			}
			p, err := (kvmbackup.RetentionPolicy{Last: 1}).Plan(all, "")
			lab.OK(t, err)
			var got []int
			for _, d := range slices.Backward(p.Backups) {
				if d.Keep() {
					got = append(got, int(d.Backup.Sequence)-1)
				}
			}
			if !slices.Equal(got, r.want) {
				t.Errorf("kept %v, want %v", got, r.want)
			}
		})
	}
}

// A record from before records had the UUID gets it from its manifest.
func TestRetainReadsTheManifestsUUID(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := w.addOf("old", lab.OldUUID)
	w.addOf("new", lab.NewUUID)
	if old.DomainUUID != "" {
		t.Fatalf("the record says %s", old.DomainUUID)
	}
	p, err := w.engine.Retain(t.Context(), lab.VM, kvmbackup.RetentionPolicy{Last: 1})
	lab.OK(t, err)
	for _, d := range p.Backups {
		if !d.Keep() {
			t.Errorf("%s is deleted", w.names[d.Backup.ID])
		}
	}
	// Records that are lost bring it back with them.
	w2 := openWorld(t, w.dir, newWorld(t).store)
	_, err = w2.engine.Import(t.Context(), lab.VM)
	lab.OK(t, err)
	b, err := w2.engine.Get(t.Context(), old.ID)
	lab.OK(t, err)
	if b.DomainUUID != lab.OldUUID {
		t.Errorf("imported with UUID %q", b.DomainUUID)
	}
}

// addOf takes a full whose manifest alone says which domain's it is.
func (w *world) addOf(name, uuid string) kvmbackup.Backup {
	w.t.Helper()
	b := w.begin(name, "")
	b.CompletedAt = b.StartedAt
	m := repository.NewManifest(b)
	m.DomainUUID = uuid
	lab.OK(w.t, w.repo.Publish(w.t.Context(), m))
	b.Status = kvmbackup.StatusCompleted
	lab.OK(w.t, w.locked(func(l kvmbackup.Lease) error { return w.store.Complete(w.t.Context(), l, b) }))
	return w.get(name)
}
