package enginetest_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// told returns the engine's events of the types, and whether they are all of one operation.
func (w *world) told(types ...engine.EventType) (events []engine.Event, one bool) {
	one = true
	for _, e := range w.events {
		one = one && e.OpID == w.events[0].OpID
		for _, typ := range types {
			if e.Type == typ {
				events = append(events, e)
			}
		}
	}
	return events, one
}

// TestWaitsAreTold: the events of an operation that waits for a VM tell whom it waits for, and how much longer when
// nobody renews that lease any more.
func TestWaitsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.build("A")
		_, err := w.store.AcquireLease(t.Context(), lab.VM, "host7/4711", 30*time.Second)
		lab.OK(t, err)
		_, err = w.engine.Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
		lab.OK(t, err)
		waits, one := w.told(engine.EventWaiting)
		if len(waits) != 2 || !one {
			t.Fatalf("told %v, of one operation: %v", waits, one)
		}
		lab.Equal(t, "at first", waits[0].Detail,
			fmt.Sprintf("waiting for the lease of %q, held by host7/4711, for another 30s unless it is renewed", lab.VM))
		if d := waits[1].Detail; !strings.HasPrefix(d, "waiting 14s for the lease of") ||
			!strings.HasSuffix(d, "a process that seems to be gone") {
			t.Errorf("then: %s", d)
		}
		if e := waits[1].Elapsed; e < 15*time.Second || e > 17*time.Second {
			t.Errorf("after %v", e)
		}
	})
}

// TestRenewedLeaseIsNotGone: a holder that lives is waited for without a word more.
func TestRenewedLeaseIsNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.build("A")
		l, err := w.store.AcquireLease(t.Context(), lab.VM, "host7/4711", 30*time.Second)
		lab.OK(t, err)
		go func() {
			for range 5 {
				<-time.After(10 * time.Second)
				l, err = w.store.RenewLease(t.Context(), l, 30*time.Second)
				lab.OK(t, err)
			}
			lab.OK(t, w.store.ReleaseLease(t.Context(), l))
		}()
		_, err = w.engine.Delete(t.Context(), lab.BackupID("A"), kvmbackup.DeleteOptions{})
		lab.OK(t, err)
		if waits, _ := w.told(engine.EventWaiting); len(waits) != 1 {
			t.Errorf("told %v", waits)
		}
	})
}

// TestStartAndEndAreTold: every operation with a lease begins with started and ends with done or failed, once.
func TestStartAndEndAreTold(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A C")
	stale := lab.BackupID("A")
	for name, c := range map[string]struct {
		do  func() error
		end engine.EventType
	}{
		"pin": {func() error { return w.engine.Pin(t.Context(), stale) }, engine.EventDone},
		"retain": {func() error {
			_, err := w.engine.Retain(t.Context(), lab.VM, kvmbackup.RetentionPolicy{Last: 9})
			return err
		}, engine.EventDone},
		"recover": {func() error {
			_, err := w.engine.Recover(t.Context(), engine.Target{VM: lab.VM})
			return err
		}, engine.EventDone},
		"import": {func() error { _, err := w.engine.Import(t.Context(), lab.VM); return err }, engine.EventDone},
		"delete": {func() error {
			e := w.newEngine(engine.Config{
				Store:   hooked{Store: w.store, before: failing("remove", errInjected)},
				OnEvent: func(ev engine.Event) { w.events = append(w.events, ev) },
			})
			_, err := e.Delete(t.Context(), lab.BackupID("C"), kvmbackup.DeleteOptions{})
			return err
		}, engine.EventFailed},
		"require full": {func() error { return w.engine.RequireFull(t.Context(), engine.Target{VM: lab.VM}) },
			engine.EventDone},
	} {
		w.events = nil
		if err := c.do(); (err == nil) != (c.end == engine.EventDone) {
			t.Errorf("%s: %v", name, err)
		}
		ends, _ := w.told(engine.EventStarted, engine.EventDone, engine.EventFailed)
		if len(ends) != 2 || ends[0].Type != engine.EventStarted || ends[1].Type != c.end || ends[0].OpID != ends[1].OpID ||
			ends[1].Op != ends[0].Op {
			t.Errorf("%s: told %v", name, ends)
		}
	}
	w.events = nil
	_, err := w.engine.Delete(t.Context(), lab.BackupID("B"), kvmbackup.DeleteOptions{})
	lab.OK(t, err)
	gone, one := w.told(engine.EventDeleted)
	if len(gone) == 0 || !one || gone[0].BackupID != lab.BackupID("B") || gone[0].Backup == nil ||
		gone[0].Backup.StoredBytes() == 0 || gone[0].Bytes == 0 {
		t.Errorf("told %v", gone)
	}
}

// TestImportIsTold folder by folder.
func TestImportIsTold(t *testing.T) {
	w := newWorld(t)
	w.build("A B<A")
	fresh := openWorld(t, w.dir, memstore.New())
	_, err := fresh.engine.Import(t.Context(), lab.VM)
	lab.OK(t, err)
	told, _ := fresh.told(engine.EventImported)
	if len(told) != 2 || told[0].BackupID != lab.BackupID("A") || !strings.HasSuffix(told[0].Detail, ": added") ||
		told[0].Err != nil {
		t.Errorf("told %v", told)
	}
}

// TestTee: each subscriber gets every event, in order.
func TestTee(t *testing.T) {
	var got []string
	to := func(name string) func(engine.Event) {
		return func(e engine.Event) { got = append(got, name+" "+e.Step) }
	}
	f := engine.Tee(to("log"), nil, to("screen"))
	f(engine.Event{Step: "one"})
	f(engine.Event{Step: "two"})
	lab.Equal(t, "told", strings.Join(got, ", "), "log one, screen one, log two, screen two")
	engine.Tee()(engine.Event{})
}

// TestEventLogs: what a handler of slog makes of an event.
func TestEventLogs(t *testing.T) {
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	decision := kvmbackup.Decision{
		Kind: kvmbackup.KindFull, Transfer: kvmbackup.TransferPush, ChainID: "c", Reasons: []kvmbackup.Reason{
			{Code: kvmbackup.ReasonForced},
		},
	}
	e := engine.Event{Type: engine.EventDecided, Op: "backup", VM: "web", BackupID: "b", Decision: &decision}
	log.Info("backup", "event", e)
	lab.Equal(t, "logged", out.String(),
		"level=INFO msg=backup event.type=decided event.op=backup event.vm=web event.backup=b "+
			"event.decision.kind=full event.decision.transfer=push event.decision.chain=c event.decision.position=0 "+
			"event.decision.checkpoint=\"\" event.decision.reasons=full-forced\n")
	lab.Equal(t, "printed",
		engine.Event{Type: engine.EventDeleted, Op: "delete", VM: "web", Detail: "web/x", Bytes: 7}.String(),
		"delete web: deleted detail=web/x bytes=7")
}
