package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// tour is what the steps share.
type tour struct {
	*screen
	images *qcow2.Tool
	host   *host
	engine *engine.Engine
	taken  []kvmbackup.Backup // in order
}

type step struct {
	title string
	do    func(ctx context.Context) error
}

func (t *tour) steps() []step {
	return []step{
		{"the first backup", t.backup},
		{"the guest writes 3 MiB, then the second backup", func(ctx context.Context) error {
			return t.after(ctx, writes{{vda, 0x11, 8 << 20, 1 << 20}, {vdb, 0x12, 0, 2 << 20}})
		}},
		{"libvirt forgets the guest and its checkpoints: destroyed, and created again as a transient one; then the " +
			"third backup", func(ctx context.Context) error {
			if err := t.host.copyDisks(ctx, "second"); err != nil { // what step 6 has to give back
				return err
			}
			if err := t.host.recreate(); err != nil {
				return err
			}
			return t.after(ctx, writes{{vda, 0x21, 512 << 20, 1 << 20}})
		}},
		{"the fourth backup, with three to a chain", func(ctx context.Context) error {
			if err := t.after(ctx, writes{{vda, 0x31, 9 << 20, 4 << 20}}); err != nil {
				return err
			}
			t.table(t.taken)
			return nil
		}},
		{"restore the second backup, and compare it with what the disks held then", func(ctx context.Context) error {
			return t.restore(ctx, t.taken[1], "second")
		}},
		{"delete the second backup, which the third one needs, then the third", t.deletions},
		{"what is left still restores: the fourth backup, compared with the disks now", func(ctx context.Context) error {
			if err := t.host.copyDisks(ctx, "now"); err != nil {
				return err
			}
			return t.restore(ctx, t.taken[3], "now")
		}},
		{"the backups that are left", t.list},
	}
}

// after lets the guest write and then takes a backup.
func (t *tour) after(ctx context.Context, w writes) error {
	if err := t.host.write(w); err != nil {
		return err
	}
	return t.backup(ctx)
}

// backup asks for a backup; the engine decides which kind it is.
func (t *tour) backup(ctx context.Context) error {
	b, err := t.engine.Backup(ctx, engine.BackupRequest{
		VM: guestName,
		// The identities are yours. They stay when a disk gets another device or path.
		Volumes: []engine.Volume{{ID: "system", Device: "vda", Root: true}, {ID: "data", Device: "vdb"}},
		Policy:  kvmbackup.Policy{FullEvery: 3},
	})
	if err != nil {
		return err
	}
	t.taken = append(t.taken, b)
	return nil
}

// restore writes the backup's volumes to new files and compares them, byte for byte, with a copy of the disks.
func (t *tour) restore(ctx context.Context, b kvmbackup.Backup, copied string) error {
	dir := filepath.Join(t.host.dir, "restored-"+copied)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	done, err := t.engine.Restore(ctx, engine.RestoreRequest{Backup: b.ID, Dir: dir})
	if err != nil {
		return err
	}
	t.restored(done.Volumes)
	for _, v := range done.Volumes {
		if err := t.images.Compare(ctx, v.Path, t.host.copyOf(copied, v.Device), qcow2.CompareOptions{}); err != nil {
			return err
		}
		t.say("%s is identical, all %s", v.Device, size(v.VirtualSize))
	}
	return nil
}

// deletions shows that a backup with descendants waits for them.
func (t *tour) deletions(ctx context.Context) error {
	for _, b := range t.taken[1:3] {
		if _, err := t.engine.Delete(ctx, b.ID, kvmbackup.DeleteOptions{}); err != nil {
			return err
		}
		left, err := t.engine.Get(ctx, b.ID)
		if err == nil {
			t.say("#%d is %v", b.Sequence, left.Status)
		}
	}
	return nil
}

func (t *tour) list(ctx context.Context) error {
	left, err := t.engine.List(ctx, kvmbackup.Query{VM: guestName})
	if err != nil {
		return err
	}
	t.table(left)
	if len(left) != 2 {
		return fmt.Errorf("%d backups are left, not 2", len(left))
	}
	return nil
}
