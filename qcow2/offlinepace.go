package qcow2

import (
	"context"
	"errors"
	"time"
)

// pacing lets the holes of a limited offline job pass.
type pacing struct {
	limit  int64   // of each disk, in bytes a second
	speeds []int64 // that QEMU was given last, by disk
	pacers []Pacer
}

// setLimit is called with j.paceLock held, or before the job starts.
func (j *OfflineJob) setLimit(bytes int64) {
	j.pacing.limit = bytes
	j.pacing.pacers, j.pacing.speeds = make([]Pacer, len(j.disks)), make([]int64, len(j.disks))
	for i := range j.disks {
		j.pacing.speeds[i] = bytes
	}
}

// pace gives each running copy the speed at which it writes no more than the limit. A
// daemon that refuses to say what was written leaves QEMU's own limit in force.
func (j *OfflineJob) pace(ctx context.Context, jobs []jobInfo) error {
	if !j.paceLock.TryLock() {
		return nil // somebody sets another limit
	}
	defer j.paceLock.Unlock()
	if j.pacing.limit < MinPaced {
		return nil
	}
	var nodes []struct {
		Name  string `json:"node-name"`
		Stats struct {
			Highest int64 `json:"wr_highest_offset"`
		} `json:"stats"`
	}
	err := j.daemon.execute(ctx, "query-blockstats", node{"query-nodes": true}, &nodes)
	var refused *QMPError
	if errors.As(err, &refused) {
		return nil
	}
	if err != nil {
		return err
	}
	written := map[string]int64{} // a fresh image grows with what is put into it
	for _, n := range nodes {
		written[n.Name] = n.Stats.Highest
	}
	now := time.Now()
	return j.each(ctx, "pace", func(i int) error {
		speed := j.pacing.pacers[i].Next(j.pacing.limit, now, jobs[i].Done, written[targetFile(i)])
		if speed == j.pacing.speeds[i] || jobs[i].Status != "running" {
			return nil
		}
		j.pacing.speeds[i] = speed
		return j.daemon.execute(ctx, "block-job-set-speed", node{"device": jobID(i), "speed": speed}, nil)
	})
}
