package kvmbackuptest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// roomFor says why the image can't have a bitmap of that name.
func (im *storedImage) roomFor(name string) error {
	switch {
	case im.untrackable() != "":
		return fmt.Errorf("%w: no bitmaps on %s: %s", kvmbackup.ErrUnsupported, im.path, im.untrackable())
	case im.top().bitmaps.find(name) != nil:
		return fmt.Errorf("%w: bitmap already exists: %s", kvmbackup.ErrCheckpointExists, name)
	}
	return nil
}

// addBitmap adds an empty bitmap: to the file itself when no QEMU has it open.
func (im *storedImage) addBitmap(name string) {
	b := newBitmap(name)
	b.stored = !im.live()
	im.top().bitmaps = append(im.top().bitmaps, b)
}

// bitmapStatuses lists what is on all layers.
func (im *storedImage) bitmapStatuses() []kvmbackup.BitmapStatus {
	var out []kvmbackup.BitmapStatus
	for _, l := range im.layers {
		for _, b := range l.bitmaps {
			if !slices.ContainsFunc(out, func(o kvmbackup.BitmapStatus) bool { return o.Name == b.name }) {
				out = append(out, kvmbackup.BitmapStatus{
					Name: b.name, Inconsistent: !im.usable(b.name), Persistent: !b.transient,
					Layers: im.paths(func(l *layer) bool { return l.bitmaps.find(b.name) != nil }),
				})
			}
		}
	}
	slices.SortFunc(out, func(a, b kvmbackup.BitmapStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// paths returns those of the layers that are asked for, top first.
func (im *storedImage) paths(of func(*layer) bool) []string {
	var out []string
	for _, l := range im.layers {
		if of(l) {
			out = append(out, l.path)
		}
	}
	return out
}

// createCheckpoint makes a checkpoint on a running domain: on all devices or on none.
func (d *domain) createCheckpoint(name string, devices []string, images []*storedImage, created time.Time) error {
	if err := d.roomFor(name, images); err != nil {
		return err
	}
	for _, im := range images {
		im.addBitmap(name)
	}
	d.checkpoints[name] = checkpoint{slices.Sorted(slices.Values(devices)), created}
	return nil
}

func (d *domain) roomFor(name string, images []*storedImage) error {
	if _, ok := d.checkpoints[name]; ok {
		return fmt.Errorf("%w: domain moment %s already exists", kvmbackup.ErrCheckpointExists, name)
	}
	for _, im := range images {
		if err := im.roomFor(name); err != nil {
			return err
		}
	}
	return nil
}

// RegisterCheckpoint implements kvmbackup.Executor.
func (e *executor) RegisterCheckpoint(ctx context.Context, ref kvmbackup.DomainRef, cp kvmbackup.CheckpointSpec) error {
	return e.do(ctx, "RegisterCheckpoint", ref, func(m *machine) error {
		if !m.running() {
			return nil
		}
		for _, device := range cp.Devices {
			k, err := m.disk(device)
			if err != nil {
				return err
			}
			if k.image == nil || !k.image.usable(string(cp.Name)) {
				return fmt.Errorf("%w: missing or broken bitmap %q for disk %q", kvmbackup.ErrCheckpointInconsistent,
					cp.Name, device)
			}
		}
		m.checkpoints[string(cp.Name)] = checkpoint{slices.Sorted(slices.Values(cp.Devices)), cp.CreatedAt}
		return nil
	})
}

// DropCheckpoint implements kvmbackup.Executor. While the domain's job hangs in its target, so does this.
func (e *executor) DropCheckpoint(ctx context.Context, ref kvmbackup.DomainRef, name kvmbackup.CheckpointName) error {
	return e.do(ctx, "DropCheckpoint", ref, func(m *machine) error {
		for m.domain != nil && m.domain.job != nil && m.domain.job.stuck() {
			if err := e.await(ctx, 0); err != nil {
				return err
			}
		}
		if m.domain != nil {
			delete(m.domain.checkpoints, string(name))
		}
		for _, k := range m.disks {
			if k.image != nil {
				k.image.dropBitmap(string(name))
			}
		}
		return nil
	})
}

// HeldBytes implements kvmbackup.Executor.
func (e *executor) HeldBytes(ctx context.Context, ref kvmbackup.DomainRef, devices []string) (map[string]int64, error) {
	out := map[string]int64{}
	err := e.do(ctx, "HeldBytes", ref, func(m *machine) error {
		for _, k := range m.disks {
			if k.image != nil && k.skip == "" && slices.Contains(devices, k.device) {
				out[k.device] = min(k.image.content().AllocatedBytes(), k.image.size())
			}
		}
		return nil
	})
	return out, err
}

// DirtyBytes implements kvmbackup.Executor.
func (e *executor) DirtyBytes(
	ctx context.Context, ref kvmbackup.DomainRef, name kvmbackup.CheckpointName,
) (map[string]int64, error) {
	out := map[string]int64{}
	err := e.do(ctx, "DirtyBytes", ref, func(m *machine) error {
		for _, k := range m.disks {
			if k.image != nil && k.skip == "" && k.image.usable(string(name)) {
				out[k.device] = int64(len(k.image.dirty(string(name)))) * ClusterBytes
			}
		}
		return nil
	})
	return out, err
}
