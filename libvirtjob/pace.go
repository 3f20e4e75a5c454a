package libvirtjob

import (
	"context"
	"path/filepath"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
	"github.com/kvmbackup/kvmbackup/internal/pace"
)

// paceInterval is the least time between two looks at what a limited job has written.
const paceInterval = 50 * time.Millisecond

// pacing lets the holes of a limited job pass.
type pacing struct {
	at      time.Time
	targets map[kvmbackup.VolumeID]string // the volumes' target nodes in QEMU; nil: not looked for yet
	pacers  map[kvmbackup.VolumeID]*pace.Pacer
}

// pace gives each volume's part of the job the speed at which it writes no more than its share of the limit. What can't
// be done, e.g. because QEMU doesn't answer at once, leaves QEMU's own limit in force.
func (w *watch) pace(ctx context.Context) {
	if !w.job.pacing.TryLock() {
		return // somebody sets another limit
	}
	defer w.job.pacing.Unlock()
	w.job.mu.Lock()
	limit := w.job.bandwidth
	w.job.mu.Unlock()
	if limit < pace.Least || w.copying == 0 || time.Since(w.pacing.at) < paceInterval {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, measureLimit)
	defer cancel()
	w.pacing.at = time.Now()
	if err := w.paceVolumes(ctx, limit/int64(w.copying)); err != nil {
		logctx.Logger(ctx, w.job.exec.log).Debug("holes count against the bandwidth limit for now",
			"domain", w.job.dom.name, "error", err)
	}
}

func (w *watch) paceVolumes(ctx context.Context, share int64) error {
	if err := w.findTargets(ctx); err != nil {
		return err
	}
	written, err := writtenBytes(ctx, w.job.dom)
	if err != nil {
		return err
	}
	for _, v := range w.job.spec.Volumes {
		info, err := w.job.blockJob(ctx, v.Device)
		if err != nil {
			return err
		}
		end, known := written[w.pacing.targets[v.VolumeID]]
		if info == nil || !known {
			continue
		}
		p := w.pacing.pacers[v.VolumeID]
		speed := p.Next(share, time.Now(), int64(info.Cur), end)
		if uint64(speed) != info.Bandwidth {
			if err := w.job.setSpeed(ctx, v.Device, speed); err != nil {
				return err
			}
		}
	}
	return nil
}

// findTargets finds the nodes of the targets' files, once.
func (w *watch) findTargets(ctx context.Context) error {
	if w.pacing.targets != nil {
		return nil
	}
	g, err := queryGraph(ctx, w.job.dom)
	if err != nil {
		return err
	}
	w.pacing.targets, w.pacing.pacers = map[kvmbackup.VolumeID]string{}, map[kvmbackup.VolumeID]*pace.Pacer{}
	for _, v := range w.job.spec.Volumes {
		file := filepath.Join(w.job.spec.Dir, v.File)
		for name, n := range g {
			if n.Drv == "file" && n.File == file {
				w.pacing.targets[v.VolumeID], w.pacing.pacers[v.VolumeID] = name, &pace.Pacer{}
			}
		}
	}
	return nil
}

// writtenBytes returns per node up to where it was written. A fresh image grows with what is put into it.
func writtenBytes(ctx context.Context, d *domain) (map[string]int64, error) {
	var nodes []struct {
		Name  string `json:"node-name"`
		Stats struct {
			Highest int64 `json:"wr_highest_offset"`
		} `json:"stats"`
	}
	if err := qmp(ctx, d, "query-blockstats", map[string]any{"query-nodes": true}, &nodes); err != nil {
		return nil, err
	}
	ends := map[string]int64{}
	for _, n := range nodes {
		ends[n.Name] = n.Stats.Highest
	}
	return ends, nil
}
