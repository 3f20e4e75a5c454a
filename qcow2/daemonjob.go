package qcow2

import (
	"context"
	"fmt"
)

// jobInfo is an entry of query-jobs.
type jobInfo struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Error  string `json:"error"`
}

// runJob runs a command that is a job, to its end.
func (d *storageDaemon) runJob(ctx context.Context, command, id string, arguments node) error {
	arguments["job-id"] = id
	if err := d.execute(ctx, command, arguments, nil); err != nil {
		return err
	}
	for {
		info, err := d.job(ctx, id)
		if err != nil {
			return err
		}
		if info.Status == "concluded" {
			err := d.execute(ctx, "job-dismiss", node{"id": id}, nil)
			if info.Error != "" {
				err = &QMPError{Command: command, Class: "JobError", Desc: info.Error, Err: classify(info.Error, nil)}
			}
			return err
		}
		select {
		case <-d.qmp.events:
		case <-d.qmp.closed: // the next question says why
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", command, contextError(ctx))
		}
	}
}

func (d *storageDaemon) job(ctx context.Context, id string) (jobInfo, error) {
	var list []jobInfo
	if err := d.execute(ctx, "query-jobs", nil, &list); err != nil {
		return jobInfo{}, err
	}
	for _, info := range list {
		if info.ID == id {
			return info, nil
		}
	}
	return jobInfo{}, fmt.Errorf("%w: job %q is gone", ErrProtocol, id)
}
