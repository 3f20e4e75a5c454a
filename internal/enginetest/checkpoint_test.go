package enginetest_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

func TestPrefixOfNames(t *testing.T) {
	const stamp = "2026.11.23.07.04.50"
	for _, r := range []struct {
		prefix, name string
		want         bool
	}{
		{"kvmbackup", "kvmbackup-" + stamp, true},
		{"kvmbackup", "kvmbackup-" + stamp + ".001", true},
		{"kvmbackup-2", "kvmbackup-2-" + stamp, true},
		{"kvmbackup", "kvmbackup-2-" + stamp, false}, // another consumer, whose prefix begins with ours
		{"kvmbackup-2", "kvmbackup-" + stamp, false},
		{"kvmbackup", "kvmbackup2-" + stamp, false},
		{"a", "a-2026-" + stamp, false},
		{"a-2026", "a-2026-" + stamp, true},
		{"kvmbackup", "kvmbackup-", false},
		{"kvmbackup", "kvmbackup", false},
		{"kvmbackup", "kvmbackup-weekly", false},
		{"kvmbackup", "kvmbackup-" + stamp + ".1", false},
		{"kvmbackup", "kvmbackup-" + stamp + "-0123abcd", true}, // a VM's tag
		{"kvmbackup", "kvmbackup-" + stamp + ".001-0123abcd", true},
		{"kvmbackup", "kvmbackup-" + stamp + "-copy", false},
		{"kvmbackup", "kvmbackup-" + stamp + "-0123ABCD", false},
		{"kvmbackup", "kvmbackup-" + stamp + "-0123abcd-0123abcd", false},
		{"kvmbackup", "kvmbackup-2026.13.23.07.04.50", false},
		{"kvmbackup", "Kvmbackup-" + stamp, false},
		{"kvmbackup", "x-kvmbackup-" + stamp, false},
		{"kvmbackup", "", false},
	} {
		lab.Equal(t, fmt.Sprintf("%q owns %q", r.prefix, r.name),
			kvmbackup.CheckpointName(r.name).HasPrefix(r.prefix), r.want)
	}
}

// TestPrefixOfNamesOneConsumer: whatever the prefixes of two consumers, no name is of both.
func TestPrefixOfNamesOneConsumer(t *testing.T) {
	prefix := rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9-]{0,12}`)
	rapid.Check(t, func(t *rapid.T) {
		a := prefix.Draw(t, "a")
		b := rapid.OneOf(prefix, rapid.Just(a+"-"+prefix.Draw(t, "more")), rapid.Just(a[:1])).Draw(t, "b")
		s := kvmbackup.Stamp{}.Next(time.Unix(rapid.Int64Range(0, 1<<35).Draw(t, "second"), 0), nil)
		name := kvmbackup.NewCheckpointName(a, s, kvmbackup.VMID(rapid.String().Draw(t, "vm"))).String()
		if !kvmbackup.CheckpointName(name).HasPrefix(a) || a != b && kvmbackup.CheckpointName(name).HasPrefix(b) {
			t.Fatalf("%q: owned by %q: %v, by %q: %v", name, a, kvmbackup.CheckpointName(name).HasPrefix(a), b,
				kvmbackup.CheckpointName(name).HasPrefix(b))
		}
	})
}

func TestStaleCheckpoints(t *testing.T) {
	mineBelow := kvmbackup.NewCheckpointName("kvmbackup", kvmbackup.Stamp{}.Next(lab.Epoch, nil), lab.VM).String()
	othersBelow := kvmbackup.NewCheckpointName("kvmbackup", kvmbackup.Stamp{}.Next(lab.Epoch, nil), "template").String()
	const mine, alsoMine, kept = "kvmbackup-2026.11.23.07.04.50", "kvmbackup-2026.11.23.08.04.50.001",
		"kvmbackup-2026.11.23.09.04.50"
	st := kvmbackup.DomainStatus{
		Checkpoints: []kvmbackup.CheckpointStatus{
			{Name: mine}, {Name: kept}, {Name: "admin"}, {Name: "kvmbackup-before-upgrade"},
		},
		Disks: []kvmbackup.DiskStatus{
			{
				Device: "vda", Bitmaps: []kvmbackup.BitmapStatus{
					{Name: mine}, {Name: kept, Inconsistent: true}, {Name: "kvmbackup-2-2026.11.23.07.04.50"},
				},
			},
			{
				Device: "vdb", Bitmaps: []kvmbackup.BitmapStatus{
					{Name: alsoMine, Inconsistent: true}, {Name: "bitmap0"}, {Name: ""},
				},
			},
		},
	}
	// What only a template below has is not the VM's; what goes on down from the VM's own image is, and what has the VM's
	// tag.
	own, template := "/images/vm.qcow2", "/images/template.qcow2"
	st.Disks = append(st.Disks, kvmbackup.DiskStatus{Device: "vdc", Layers: []string{own, template},
		Bitmaps: []kvmbackup.BitmapStatus{
			{Name: "kvmbackup-2026.11.22.07.04.50", Layers: []string{template}}, {Name: mine, Layers: []string{own, template}},
			{Name: mineBelow, Layers: []string{template}}, {Name: othersBelow, Layers: []string{template}},
		}})
	got := (engine.Ownership{Prefix: "kvmbackup", VM: lab.VM}).Stale(st, kept, "")
	if !slices.Equal(got, []kvmbackup.CheckpointName{mine, kvmbackup.CheckpointName(mineBelow), alsoMine}) {
		t.Errorf("stale: %q", got)
	}
	if got := (engine.Ownership{Prefix: "kvmbackup", VM: lab.VM}).Stale(st); len(got) != 4 {
		t.Errorf("nothing to keep: %q", got)
	}
	other := engine.Ownership{Prefix: "other", VM: lab.VM}
	if got := other.Stale(st); got != nil {
		t.Errorf("another consumer's: %q", got)
	}
	// A record makes any name the consumer's, a folder without a record one of the prefix another's.
	other.Known = []kvmbackup.CheckpointName{mine, kept}
	if got := other.Stale(st, kept); !slices.Equal(got, []kvmbackup.CheckpointName{mine}) {
		t.Errorf("on record: %q", got)
	}
	shared := engine.Ownership{
		Prefix: "kvmbackup", VM: lab.VM,
		Others: []string{string(lab.VM) + "/2026.11.23.08.04.50.001", "vm9/2026.11.23.07.04.50"},
	}
	if got := shared.Stale(st, kept, ""); !slices.Equal(got,
		[]kvmbackup.CheckpointName{mine, kvmbackup.CheckpointName(mineBelow)}) {
		t.Errorf("of a repository with two stores: %q", got)
	}
}

// still is an executor over a domain that stands still: all that a plan asks.
type still struct {
	kvmbackup.Executor
	status kvmbackup.DomainStatus
}

func (s *still) Inspect(context.Context, kvmbackup.DomainRef) (kvmbackup.DomainStatus, error) {
	return s.status, nil
}

func (*still) HeldBytes(context.Context, kvmbackup.DomainRef, []string) (map[string]int64, error) {
	return nil, nil
}

func (*still) DirtyBytes(context.Context, kvmbackup.DomainRef, kvmbackup.CheckpointName) (map[string]int64, error) {
	return nil, nil
}

// noImages is for operations that need images in the configuration and don't use them.
type noImages struct{ engine.Images }

// TestPlannedNames: names are new and ascend, whatever the clock does and whatever is on the domain.
func TestPlannedNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		now := lab.Epoch
		exec := &still{status: kvmbackup.DomainStatus{
			Name: string(lab.VM), Defined: true, State: kvmbackup.DomainRunning, Job: kvmbackup.JobNone,
			Disks: []kvmbackup.DiskStatus{{Device: "vda", Source: "/vda.qcow2", Format: "qcow2", VirtualSize: 1 << 20}},
		}}
		prefix := w.repo.CheckpointPrefix()
		e := w.newEngine(engine.Config{Executor: exec, Images: noImages{}, Now: func() time.Time { return now }})
		var last engine.Plan
		for i := range rapid.IntRange(2, 8).Draw(t, "backups") {
			now = now.Add(rapid.SampledFrom([]time.Duration{0, time.Millisecond, time.Second, time.Hour, -time.Second,
				-time.Hour, -240 * time.Hour}).Draw(t, "clock"))
			p, err := e.Plan(t.Context(), engine.BackupRequest{VM: lab.VM})
			lab.OK(t, err)
			if p.Decision.Checkpoint <= last.Decision.Checkpoint || p.Path <= last.Path {
				t.Fatalf("planned %q at %q after %q at %q", p.Decision.Checkpoint, p.Path, last.Decision.Checkpoint, last.Path)
			}
			for _, b := range exec.status.Disks[0].Bitmaps {
				if b.Name == p.Decision.Checkpoint.String() {
					t.Fatalf("%q is on the domain already", b.Name)
				}
			}
			if !p.Decision.Checkpoint.HasPrefix(prefix) {
				t.Fatalf("the name %q is not ours", p.Decision.Checkpoint)
			}
			last = p
			b := w.draft(fmt.Sprintf("N%d", i), kvmbackup.Backup{}, 0)
			b.Path, b.Checkpoint = p.Path, p.Decision.Checkpoint
			lab.OK(t, w.locked(func(l kvmbackup.Lease) error {
				if _, err := w.store.Begin(t.Context(), l, b); err != nil {
					return err
				}
				return w.store.Fail(t.Context(), l, b.ID, "not this time") // its name counts all the same
			}))
			if rapid.Bool().Draw(t, "left") { // a bitmap of ours that no record knows, from the near future
				s := kvmbackup.Stamp{}.Next(now.Add(time.Second), nil)
				exec.status.Disks[0].Bitmaps = append(exec.status.Disks[0].Bitmaps,
					kvmbackup.BitmapStatus{Name: kvmbackup.NewCheckpointName(prefix, s, lab.VM).String(), Persistent: true})
			}
		}
	})
}

func TestPrefixes(t *testing.T) {
	w := newWorld(t)
	for prefix, good := range map[string]bool{
		"": true, "kvmbackup": true, "A-1": true, "-a": false, "a.b": false, "a_b": false, "a b": false, "ä": false,
		string(slices.Repeat([]byte("a"), 64)): true, string(slices.Repeat([]byte("a"), 65)): false,
	} {
		_, err := engine.New(engine.Config{Store: w.store, Repository: w.repo, Prefix: prefix})
		if good {
			lab.OK(t, err)
		} else {
			lab.Fails(t, err, kvmbackup.ErrInvalid)
		}
	}
	for _, cfg := range []engine.Config{
		{}, {Store: w.store}, {Repository: w.repo}, {Store: w.store, Repository: w.repo, LeaseTTL: -1},
		{Store: w.store, Repository: w.repo, FreezeLimit: -1}, {Store: w.store, Repository: w.repo, CleanupLimit: -1},
	} {
		_, err := engine.New(cfg)
		lab.Fails(t, err, kvmbackup.ErrInvalid)
	}
}
