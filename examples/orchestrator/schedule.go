package main

import "time"

// timing says when a VM is backed up: at every multiple of an interval, or once a day.
type timing struct {
	every time.Duration // 0: daily
	daily time.Duration // since midnight, UTC
}

// next is the first run after now. Runs that were missed are not made up for; an interval keeps its phase.
func (t timing) next(due, now time.Time) time.Time {
	if t.every > 0 {
		missed := max(now.Sub(due), 0) / t.every
		return due.Add((missed + 1) * t.every)
	}
	y, m, d := now.UTC().Date()
	at := time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Add(t.daily)
	if !at.After(now) {
		at = at.AddDate(0, 0, 1)
	}
	return at
}

const longestRetry = time.Hour

// retry is when a run that failed for the nth time in a row is tried again: with doubling pauses, but no later than the
// next run.
func (t timing) retry(due, now time.Time, pause time.Duration, failures int) time.Time {
	for range min(failures-1, 16) {
		pause *= 2
	}
	again, next := now.Add(min(pause, longestRetry)), t.next(due, now)
	if next.Before(again) {
		return next
	}
	return again
}
