package main

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// queue hands out the VMs that are due. A claim keeps other instances from trying the same VM; should it lapse too
// early, the engine's lease still keeps two operations apart. Everything goes by the database's clock.
type queue struct {
	db       *sql.DB
	instance string
	ttl      time.Duration
}

// task is a VM that is due and claimed.
type task struct {
	vm        kvmbackup.VMID
	domain    string
	timing    timing
	fullEvery int
	keep      kvmbackup.RetentionPolicy
	failures  int // in a row until now
	due       time.Time
	claimed   time.Time // on the database's clock
	since     time.Time // the same instant here
}

// now is the database's time.
func (t task) now() time.Time { return t.claimed.Add(time.Since(t.since)) }

const claimSQL = `
WITH due AS (
	SELECT vm FROM orchestrator_vms WHERE enabled AND next_run <= now() AND claimed_until < now()
	ORDER BY next_run LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE orchestrator_vms v SET claimed_by = $1, claimed_until = now() + $2 * interval '1 second'
FROM due WHERE v.vm = due.vm
RETURNING v.vm, v.domain, coalesce(extract(epoch FROM v.every), 0)::float8,
	coalesce(extract(epoch FROM v.daily), 0)::float8,
	v.full_every, v.keep_last, v.keep_daily, v.keep_weekly, v.failures, v.next_run, now()`

// claim takes the VM that is due for longest; false when none is.
func (q *queue) claim(ctx context.Context) (t task, ok bool, err error) {
	var every, daily float64
	t.since = time.Now()
	err = q.db.QueryRowContext(ctx, claimSQL, q.instance, q.ttl.Seconds()).Scan(&t.vm, &t.domain, &every, &daily,
		&t.fullEvery, &t.keep.Last, &t.keep.Daily, &t.keep.Weekly, &t.failures, &t.due, &t.claimed)
	if errors.Is(err, sql.ErrNoRows) {
		return task{}, false, nil
	}
	t.timing = timing{every: seconds(every), daily: seconds(daily)}
	return t, err == nil, err
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// renew extends this instance's claims.
func (q *queue) renew(ctx context.Context) error {
	_, err := q.db.ExecContext(ctx,
		`UPDATE orchestrator_vms SET claimed_until = now() + $2 * interval '1 second' WHERE claimed_by = $1`,
		q.instance, q.ttl.Seconds())
	return err
}

// outcome is what became of a task.
type outcome struct {
	next      time.Time
	failures  int
	succeeded bool
	err       string
}

// finish gives the claim back. It changes nothing when another instance has it by now, and leaves a next run that
// somebody has set meanwhile.
func (q *queue) finish(ctx context.Context, t task, r outcome) error {
	_, err := q.db.ExecContext(ctx, `
UPDATE orchestrator_vms SET
	next_run = CASE WHEN next_run = $3 THEN $4 ELSE next_run END, failures = $5, last_error = $6,
	last_success = CASE WHEN $7 THEN now() ELSE last_success END, claimed_by = '', claimed_until = '-infinity'
WHERE vm = $1 AND claimed_by = $2`, t.vm, q.instance, t.due, r.next, r.failures, r.err, r.succeeded)
	return err
}
