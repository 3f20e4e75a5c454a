package engine_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// filled sets every field that JSON can have, so that no omitempty hides a name.
func filled(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		if _, isTime := v.Interface().(time.Time); isTime {
			v.Set(reflect.ValueOf(time.Date(2026, 11, 23, 7, 4, 50, 0, time.UTC)))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				filled(v.Field(i))
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		filled(v.Index(0))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		filled(v.Elem())
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		filled(key)
		filled(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint8:
		v.SetUint(1)
	case reflect.Interface:
		if v.Type() == reflect.TypeFor[error]() {
			v.Set(reflect.ValueOf(fmt.Errorf("%w: why", kvmbackup.ErrBusy)))
		}
	default:
		panic(v.Type().String())
	}
}

// names returns the JSON names of a value, with those of what is in it.
func names(v any, into map[string]bool) map[string]bool {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			into[name] = true
			names(value, into)
		}
	case []any:
		for _, value := range v {
			names(value, into)
		}
	}
	return into
}

// TestResultsPrint: every result has snake_case names of its own in JSON, with words in place of numbers of enums,
// comes back from it, and prints itself.
func TestResultsPrint(t *testing.T) {
	snake := regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)*$`)
	for _, v := range []any{
		&kvmbackup.Decision{}, &kvmbackup.VolumeDecision{}, &kvmbackup.DeletePlan{}, &kvmbackup.RetentionPlan{},
		&kvmbackup.RetentionDecision{}, &kvmbackup.DomainStatus{}, &kvmbackup.JobSpec{}, &kvmbackup.JobProgress{},
		&kvmbackup.JobResult{}, &kvmbackup.Definition{}, &kvmbackup.DomainRef{}, &kvmbackup.CheckpointSpec{},
		&kvmbackup.Removal{}, &kvmbackup.Removed{}, &kvmbackup.Backup{}, &engine.Plan{}, &engine.VerifyReport{},
		&engine.Diagnosis{}, &engine.Recovery{}, &engine.RecoveredVM{}, &engine.Imported{}, &engine.Rekeyed{},
		&engine.Restored{}, &engine.Event{},
	} {
		t.Run(fmt.Sprintf("%T", v), func(t *testing.T) {
			filled(reflect.ValueOf(v).Elem())
			if spec, ok := v.(*kvmbackup.JobSpec); ok {
				spec.DataKey = nil // doesn't come back, by design; nor do the others
				for i := range spec.Volumes {
					spec.Volumes[i].ParentKeys, spec.Volumes[i].IndexKey = nil, nil
				}
			}
			text, err := json.Marshal(v)
			lab.OK(t, err)
			var has any
			lab.OK(t, json.Unmarshal(text, &has))
			delete(has.(map[string]any), "copied_bytes") // its names are volumes
			for name := range names(has, map[string]bool{}) {
				if !snake.MatchString(name) {
					t.Errorf("%q in %s", name, text)
				}
			}
			back := reflect.New(reflect.TypeOf(v).Elem()).Interface()
			lab.OK(t, json.Unmarshal(text, back))
			again, err := json.Marshal(back)
			lab.OK(t, err)
			lab.Equal(t, "there and back", string(again), string(text))
			if s, ok := v.(fmt.Stringer); ok && (s.String() == "" || strings.Contains(s.String(), "%!")) {
				t.Errorf("prints %q", s)
			}
		})
	}
}

// TestErrorsInResults: JSON has their text, and hosts their class.
func TestErrorsInResults(t *testing.T) {
	busy := &kvmbackup.BusyError{VM: "web", Holder: "blockcommit"}
	for v, want := range map[any]string{
		&engine.Plan{Blocked: busy}:                                   `"blocked":"\"web\" is busy: held by blockcommit`,
		&engine.RecoveredVM{VM: "web", Err: busy}:                     `"error":"\"web\" is busy: held by blockcommit`,
		&engine.Imported{Err: busy, Reason: busy.Error()}:             `"reason":"\"web\" is busy: held by blockcommit`,
		&engine.Event{Type: engine.EventFailed, VM: "web", Err: busy}: `"error":"\"web\" is busy: held by blockcommit`,
	} {
		text, err := json.Marshal(v)
		lab.OK(t, err)
		if !strings.Contains(string(text), want) {
			t.Errorf("%T: %s", v, text)
		}
	}
	text, err := json.Marshal(engine.Plan{})
	lab.OK(t, err)
	if strings.Contains(string(text), "blocked") {
		t.Errorf("nothing is in its way: %s", text)
	}
	var back engine.RecoveredVM
	lab.OK(t, json.Unmarshal([]byte(`{"vm":"web","found":[],"error":"held"}`), &back))
	if back.Err == nil || back.Err.Error() != "held" || errors.Is(back.Err, kvmbackup.ErrBusy) {
		t.Errorf("came back as %v", back.Err)
	}
}

// TestVerifyReportPrints: without its end no report says that all is well.
func TestVerifyReportPrints(t *testing.T) {
	for _, c := range []struct {
		r    engine.VerifyReport
		want string
	}{
		{engine.VerifyReport{Backup: "b", Files: 2, Complete: true}, "b: ok, 2 files\n"},
		{engine.VerifyReport{Backup: "b", Files: 2}, "b: not verified\n"},
		{
			engine.VerifyReport{Backup: "b", Files: 2, Complete: true, Content: true, Digests: 3}, "b: ok, 2 files, 3 digests\n",
		},
		{engine.VerifyReport{Backup: "b", Files: 2, Complete: true, NoDigests: true},
			"b: ok, 2 files; content not compared: no digests are on record\n"},
		{engine.VerifyReport{
			Backup: "b", Files: 2, Complete: true, Problems: []engine.Problem{{Code: engine.ProblemCheck, Detail: "bad"}},
		},
			"b: damaged, 2 files\n  structure: bad\n"},
	} {
		lab.Equal(t, "printed", c.r.String(), c.want)
	}
}
