package kvstore_test

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
)

// spoilt is a table with a full, an incremental on it and a removal on one VM.
type spoilt struct {
	tab       *table
	st        *kvstore.Store
	l         kvmbackup.Lease
	full, inc kvmbackup.Backup
	want      []answer // before anything was spoilt
}

// answer is what one read gave.
type answer struct {
	name  string
	value any
	err   error
}

func newSpoilt(t *testing.T) *spoilt {
	t.Helper()
	s := &spoilt{tab: newTable()}
	s.tab.max = 4096 // one piece each
	s.st = store(t, s.tab, s.tab)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	s.l, err = s.st.AcquireLease(t.Context(), "vm-a", "holder", time.Hour)
	must(err)
	take := func(b kvmbackup.Backup) kvmbackup.Backup {
		b, err := s.st.Begin(t.Context(), s.l, b)
		must(err)
		b.Status = kvmbackup.StatusCompleted
		must(s.st.Complete(t.Context(), s.l, b))
		return b
	}
	gone := take(record("vm-a", 1))
	must(s.st.MarkDeletePending(t.Context(), s.l, gone.ID))
	must(s.st.Remove(t.Context(), s.l, gone.ID, 7))
	s.full = take(record("vm-a", 2))
	inc := record("vm-a", 3)
	inc.Kind, inc.ChainID, inc.Position, inc.ParentID = kvmbackup.KindIncremental, s.full.ChainID, 1, s.full.ID
	s.inc = take(inc)
	s.want = s.reads(t)
	for _, a := range s.want {
		must(a.err)
	}
	return s
}

func (s *spoilt) reads(t *testing.T) []answer {
	ctx := t.Context()
	read := func(name string, value any, err error) answer { return answer{name, value, err} }
	v, errVM := s.st.VM(ctx, "vm-a")
	b, errBackup := s.st.Backup(ctx, s.inc.ID)
	newest, errNewest := s.st.Newest(ctx, "vm-a")
	children, errChildren := s.st.Children(ctx, s.full.ID)
	list, errList := s.st.List(ctx, kvmbackup.Query{})
	gone, errGone := s.st.Removals(ctx, 0)
	return []answer{read("VM", v, errVM), read("Backup", b, errBackup), read("Newest", newest, errNewest),
		read("Children", children, errChildren), read("List", list, errList), read("Removals", gone, errGone)}
}

// writes are those that meet the VM's head and index and the incremental's record.
func (s *spoilt) writes(t *testing.T) []answer {
	ctx, yes := t.Context(), true
	next := s.inc
	next.ID, next.Path, next.Status, next.ParentID, next.Position = kvmbackup.NewBackupID(), "vm-a/4",
		kvmbackup.StatusRunning, s.inc.ID, 2
	_, errBegin := s.st.Begin(ctx, s.l, next)
	return []answer{
		{"Begin", nil, errBegin},
		{"Complete", nil, s.st.Complete(ctx, s.l, s.inc)},
		{"Fail", nil, s.st.Fail(ctx, s.l, s.inc.ID, "why")},
		{"MarkDeletePending", nil, s.st.MarkDeletePending(ctx, s.l, s.inc.ID)},
		{"Remove", nil, s.st.Remove(ctx, s.l, s.inc.ID, 1)},
		{"Annotate", nil, s.st.Annotate(ctx, s.l, s.inc.ID, kvmbackup.Annotation{Pinned: &yes})},
		{"Import", nil, s.st.Import(ctx, s.l, s.inc)},
	}
}

func (s *spoilt) rows() map[kvstore.Object]map[string]string {
	out := map[kvstore.Object]map[string]string{}
	for o := range maps.Keys(s.tab.rows) {
		out[o] = s.tab.details(o)
	}
	return out
}

// refuses wants of every read its answer, as before, or an ErrInvalid that names the object, of every write the latter,
// and nothing changed.
func (s *spoilt) refuses(t *testing.T, o kvstore.Object) {
	t.Helper()
	before, refused := s.rows(), 0
	named := func(err error) bool {
		return errors.Is(err, kvmbackup.ErrInvalid) && strings.Contains(err.Error(), o.ID)
	}
	for i, a := range s.reads(t) {
		switch {
		case a.err != nil && named(a.err):
			refused++
		case a.err != nil || !reflect.DeepEqual(a.value, s.want[i].value):
			t.Errorf("%s: got %+v, %v, want %+v or an ErrInvalid that names %v", a.name, a.value, a.err, s.want[i].value, o)
		}
	}
	if refused == 0 {
		t.Error("no read says anything")
	}
	for _, a := range s.writes(t) {
		if !named(a.err) {
			t.Errorf("%s: got %v, want an ErrInvalid that names %v", a.name, a.err, o)
		}
	}
	if now := s.rows(); !reflect.DeepEqual(now, before) {
		t.Errorf("something has changed:\n was %v\n now %v", before, now)
	}
}

// find returns the VM's or the incremental's key with the prefix.
func (s *spoilt) find(t *testing.T, prefix string) (kvstore.Object, string) {
	t.Helper()
	for _, o := range []kvstore.Object{{Kind: kvstore.ObjectVM, ID: "vm-a"},
		{Kind: kvstore.ObjectBackup, ID: string(s.inc.ID)}} {
		for key := range s.tab.details(o) {
			if strings.HasPrefix(key, prefix) {
				return o, key
			}
		}
	}
	t.Fatalf("no key %s", prefix)
	return kvstore.Object{}, ""
}

// TestSpoiltDetails: a detail of the store's that can't be read is an ErrInvalid that names its object, never a panic
// and never another answer.
func TestSpoiltDetails(t *testing.T) {
	for _, prefix := range []string{kvstore.KeyHead, kvstore.KeyIndexPrefix, kvstore.KeyRecordPrefix} {
		for _, value := range []string{"yes", "1", `"text"`, "null", "{}", "[]", "[{}]", "\x01", `{"v":0}`, `{"v":-1}`,
			`{"id":7}`, `{"e":[{}]}`, `{"e":{}}`, `{"r":[{}]}`} {
			t.Run(prefix+"="+value, func(t *testing.T) {
				s := newSpoilt(t)
				o, key := s.find(t, prefix)
				s.tab.set(o, key, value)
				s.refuses(t, o)
			})
		}
	}
}

// TestSpoiltFields: one field that is missing, or of another kind, spoils a detail as well.
func TestSpoiltFields(t *testing.T) {
	for _, r := range []struct{ prefix, old, by string }{
		{kvstore.KeyHead, `"v":`, `"w":`},
		{kvstore.KeyHead, `"v":`, `"v":-`},
		{kvstore.KeyHead, `"t":1`, `"t":"one"`},
		{kvstore.KeyHead, `"t":1`, `"t":-1`},
		{kvstore.KeyHead, `"r":`, `"j":`},
		{kvstore.KeyHead, `"r":{`, `"r":{"n":-1,`},
		{kvstore.KeyHead, `"r":{`, `"r":{"n":1,`},
		{kvstore.KeyHead, `"r":{`, `"r":{"n":1.5,`},
		{kvstore.KeyHead, `"r":{`, `"i":{"g":"1-A","n":1,"c":""},"r":{`},
		{kvstore.KeyHead, `"r":{`, `"i":{`},
		{kvstore.KeyHead, `"m":2`, `"m":"two"`},
		{kvstore.KeyHead, `"m":2`, `"m":4`},
		{kvstore.KeyHead, `"c":"`, `"c":"0`},
		{kvstore.KeyHead, `"g":"`, `"g":"x`},
		{kvstore.KeyIndexPrefix, `"s":"completed"`, `"s":"done"`},
		{kvstore.KeyIndexPrefix, `"s":"completed"`, `"s":"unknown"`},
		{kvstore.KeyIndexPrefix, `"s":"completed",`, ``},
		{kvstore.KeyIndexPrefix, `"q":2`, `"q":"two"`},
		{kvstore.KeyIndexPrefix, `"q":2`, `"q":3`},
		{kvstore.KeyIndexPrefix, `"q":2`, `"q":0`},
		{kvstore.KeyIndexPrefix, `"n":1`, `"n":-1`},
		{kvstore.KeyIndexPrefix, `"n":1`, `"n":0`},
		{kvstore.KeyIndexPrefix, `"t":"2026`, `"t":"26`},
		{kvstore.KeyIndexPrefix, `"b":7`, `"b":-7`},
		{kvstore.KeyRecordPrefix, `"kind":"incremental"`, `"kind":"differential"`},
		{kvstore.KeyRecordPrefix, `"kind":"incremental",`, ``},
		{kvstore.KeyRecordPrefix, `"status":"completed"`, `"status":"done"`},
		{kvstore.KeyRecordPrefix, `"status":"completed"`, `"status":"failed"`},
		{kvstore.KeyRecordPrefix, `"status":"completed",`, ``},
		{kvstore.KeyRecordPrefix, `"started_at":"1970`, `"started_at":"70`},
		{kvstore.KeyRecordPrefix, `"started_at"`, `"started"`},
		{kvstore.KeyRecordPrefix, `"position":1`, `"position":"one"`},
		{kvstore.KeyRecordPrefix, `"position":1`, `"position":99999999999999999999`},
		{kvstore.KeyRecordPrefix, `"parent_id":`, `"parent":`},
		{kvstore.KeyRecordPrefix, `"vm":"vm-a"`, `"vm":"vm-b"`},
		{kvstore.KeyRecordPrefix, `"volumes":`, `"volume":`},
		{kvstore.KeyRecordPrefix, `"virtual_size":0`, `"virtual_size":1`},
		{kvstore.KeyRecordPrefix, `"sequence":3`, `"sequence":2`},
	} {
		t.Run(r.prefix+r.old+"->"+r.by, func(t *testing.T) {
			s := newSpoilt(t)
			o, key := s.find(t, r.prefix)
			was := s.tab.details(o)[key]
			by := strings.Replace(was, r.old, r.by, 1)
			if by == was {
				t.Fatalf("nothing was spoilt of %s", was)
			}
			s.tab.set(o, key, by)
			s.refuses(t, o)
		})
	}
}

// TestSpoiltPieceGone: a piece that is missing is an ErrInvalid that names the VM.
func TestSpoiltPieceGone(t *testing.T) {
	for _, prefix := range []string{kvstore.KeyIndexPrefix, kvstore.KeyRecordPrefix} {
		s := newSpoilt(t)
		o, key := s.find(t, prefix)
		delete(s.tab.rows[o], key)
		s.refuses(t, kvstore.Object{Kind: kvstore.ObjectVM, ID: "vm-a"})
	}
}

// TestSpoiltCopies: the copies for the host's eyes may be spoilt without harm.
func TestSpoiltCopies(t *testing.T) {
	s := newSpoilt(t)
	for _, b := range []kvmbackup.Backup{s.full, s.inc} {
		o := kvstore.Object{Kind: kvstore.ObjectBackup, ID: string(b.ID)}
		for key := range b.Details() {
			if key != kvstore.KeyOwner {
				s.tab.set(o, key, "spoilt")
			}
		}
	}
	for i, a := range s.reads(t) {
		if a.err != nil || !reflect.DeepEqual(a.value, s.want[i].value) {
			got, _ := json.Marshal(a.value)
			t.Errorf("%s: got %s, %v", a.name, got, a.err)
		}
	}
}
