package libvirtjob

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/logctx"
)

// SetBandwidth implements kvmbackup.Job. QEMU limits each volume by itself, so the volumes that are still being copied
// get equal shares, and Wait shares the limit out again when one of them is done, and lets holes pass from 1 MiB a
// second and volume on. Before Begin it replaces the spec's limit.
func (j *job) SetBandwidth(ctx context.Context, bytesPerSecond int64) error {
	if bytesPerSecond < 0 {
		return fmt.Errorf("%w: negative bandwidth", kvmbackup.ErrInvalid)
	}
	j.pacing.Lock()
	defer j.pacing.Unlock()
	j.mu.Lock()
	j.bandwidth = bytesPerSecond
	begun := !j.began.IsZero()
	j.mu.Unlock()
	if !begun {
		return nil
	}
	if ours, err := j.ours(ctx); err != nil || !ours {
		return err
	}
	copying, err := j.copying(ctx)
	if err != nil {
		return err
	}
	return j.shareBandwidth(ctx, copying)
}

// applyBandwidth sets the spec's limit on a job that has just begun: libvirt's begin takes none. What QEMU copies
// between the two calls goes at full speed, and so do the 64 MiB that it has under way at a time.
func (j *job) applyBandwidth(ctx context.Context) {
	j.mu.Lock()
	limit := j.bandwidth
	j.mu.Unlock()
	if limit == 0 {
		return
	}
	var devices []string
	for _, v := range j.spec.Volumes {
		devices = append(devices, v.Device)
	}
	if err := j.shareBandwidth(ctx, devices); err != nil {
		logctx.Logger(ctx, j.exec.log).Warn("the backup runs without its bandwidth limit", "domain", j.dom.name, "error", err)
	}
}

// shareBandwidth gives the devices equal parts of the limit. One that is done meanwhile is no error.
func (j *job) shareBandwidth(ctx context.Context, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	j.mu.Lock()
	limit := j.bandwidth
	j.mu.Unlock()
	part := limit / int64(len(devices))
	if limit > 0 {
		part = max(part, 1) // 0 would mean no limit
	}
	var errs []error
	for _, device := range devices {
		errs = append(errs, j.setSpeed(ctx, device, part))
	}
	return errors.Join(errs...)
}

// setSpeed limits one volume's part of the job. One that is done meanwhile is no error. QEMU itself is told: libvirt
// 11.3 has virDomainBlockJobSetSpeed wait for the backup's end, for 30 s, and then fail, while the guest may be frozen.
func (j *job) setSpeed(ctx context.Context, device string, bytesPerSecond int64) error {
	err := j.setJobSpeed(ctx, device, bytesPerSecond)
	if err == nil {
		return nil
	}
	if info, again := j.blockJob(ctx, device); again == nil && info == nil {
		return nil
	}
	return fmt.Errorf("limit bandwidth of %s: %w", device, err)
}

func (j *job) setJobSpeed(ctx context.Context, device string, bytesPerSecond int64) error {
	var jobs []struct {
		ID   string `json:"device"`
		Type string `json:"type"`
	}
	if err := qmp(ctx, j.dom, "query-block-jobs", nil, &jobs); err != nil {
		return err
	}
	for _, job := range jobs {
		// libvirt's name for it, and then the node's
		if job.Type == "backup" && strings.HasPrefix(job.ID, "backup-"+device+"-") {
			return qmp(ctx, j.dom, "block-job-set-speed", map[string]any{"device": job.ID, "speed": bytesPerSecond}, nil)
		}
	}
	return fmt.Errorf("QEMU lists no backup job of %s", device)
}

// copying returns the devices whose part of the job is not done.
func (j *job) copying(ctx context.Context) ([]string, error) {
	var devices []string
	for _, v := range j.spec.Volumes {
		info, err := j.blockJob(ctx, v.Device)
		if err != nil {
			return nil, err
		}
		if info != nil {
			devices = append(devices, v.Device)
		}
	}
	return devices, nil
}

// blockJob returns the state of one volume's part of the job, or nil when it has none any more.
func (j *job) blockJob(ctx context.Context, device string) (*libvirt.DomainBlockJobInfo, error) {
	info, err := call(ctx, j.dom, func(dom *libvirt.Domain) (*libvirt.DomainBlockJobInfo, error) {
		return dom.GetBlockJobInfo(device, libvirt.DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
	})
	if err != nil {
		if errors.Is(err, kvmbackup.ErrDomainStopped) || errors.Is(err, kvmbackup.ErrNoDomain) {
			return nil, nil
		}
		return nil, err
	}
	if info == nil || info.Type != libvirt.DOMAIN_BLOCK_JOB_TYPE_BACKUP {
		return nil, nil
	}
	if info.End == 1 { // libvirt's way to say that it doesn't know, or that there is nothing to copy
		info.Cur, info.End = 0, 0
	}
	return info, nil
}
