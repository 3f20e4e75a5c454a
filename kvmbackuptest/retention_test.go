package kvmbackuptest_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

// keepRule keeps the newest backup of each of the last count periods that have one.
type keepRule struct {
	count  int
	period func(kvmbackup.Backup) string
}

// keepRules reads "last 2 daily 1"; of a rule that is given twice the second counts.
func keepRules(words []string) (rules map[string]keepRule, policy kvmbackup.RetentionPolicy) {
	format := func(layout string) func(kvmbackup.Backup) string {
		return func(b kvmbackup.Backup) string { return b.StartedAt.UTC().Format(layout) }
	}
	kinds := map[string]struct {
		count  *int
		period func(kvmbackup.Backup) string
	}{
		"last":   {&policy.Last, func(b kvmbackup.Backup) string { return string(b.ID) }},
		"hourly": {&policy.Hourly, format("2006-01-02 15")},
		"daily":  {&policy.Daily, format(time.DateOnly)},
		"weekly": {&policy.Weekly, func(b kvmbackup.Backup) string { // Go's zero time is a Monday's midnight
			return b.StartedAt.UTC().Truncate(7 * 24 * time.Hour).String()
		}},
		"monthly": {&policy.Monthly, format("2006-01")},
		"yearly":  {&policy.Yearly, format("2006")},
	}
	rules = map[string]keepRule{}
	for rule := range slices.Chunk(words, 2) {
		k := kinds[rule[0]]
		*k.count, _ = strconv.Atoi(rule[1])
		rules[rule[0]] = keepRule{*k.count, k.period}
	}
	return rules, policy
}

// stays says which records retention has to leave as they are.
func stays(rules map[string]keepRule, records []kvmbackup.Backup) map[kvmbackup.BackupID]bool {
	stay := map[kvmbackup.BackupID]bool{}
	newest := int64(0) // of those completed
	for _, b := range slices.Backward(records) {
		switch {
		case b.Status == kvmbackup.StatusRunning:
			stay[b.ID] = true
		case b.Status == kvmbackup.StatusCompleted:
			stay[b.ID], newest = b.Pinned || keptByRule(rules, records, b), max(newest, b.Sequence)
		}
	}
	for _, b := range records {
		if b.Status == kvmbackup.StatusFailed && b.Sequence > newest {
			stay[b.ID] = true
		}
	}
	return stay
}

// keptByRule says whether b is the newest of its period, and few enough newer periods have a backup.
func keptByRule(rules map[string]keepRule, records []kvmbackup.Backup, b kvmbackup.Backup) bool {
	for _, r := range rules {
		newer := map[string]bool{}
		for _, other := range records {
			if other.Status == kvmbackup.StatusCompleted && !other.Pinned && other.Sequence > b.Sequence {
				newer[r.period(other)] = true
			}
		}
		if len(newer) < r.count && !newer[r.period(b)] {
			return true
		}
	}
	return false
}

// records lists all of the VM's, even when the engine's process is dead.
func (p *play) records() []kvmbackup.Backup {
	all, err := p.store.List(context.Background(), kvmbackup.Query{VM: vm})
	if err != nil {
		panic(err)
	}
	return all
}

// retain plans, which must change nothing, and then applies the policy.
func (p *play) retain(words []string) error {
	rules, policy := keepRules(words)
	ctx, cancel := patience()
	defer cancel()
	before, foreign := p.records(), p.foreign()
	planned, err := p.engine.PlanRetain(ctx, vm, policy)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(before, p.records()) {
		return errors.New("planning has changed the records")
	}
	_, err = p.engine.Retain(ctx, vm, policy)
	if after := p.foreign(); !slices.Equal(foreign, after) {
		return fmt.Errorf("what belongs to others was touched: %v became %v", foreign, after)
	}
	if wrong := p.checkRetained(stays(rules, before), planned, before, err == nil); wrong != nil {
		return wrong
	}
	p.took("retain", err)
	return err
}

// checkRetained compares what retention has done with the rule and with its plan. One that failed may have left things
// to do.
func (p *play) checkRetained(stay map[kvmbackup.BackupID]bool, planned kvmbackup.RetentionPlan,
	before []kvmbackup.Backup, done bool) error {
	after, needed := map[kvmbackup.BackupID]kvmbackup.Status{}, map[kvmbackup.BackupID]bool{}
	for _, b := range p.records() {
		after[b.ID], needed[b.ParentID] = b.Status, true
	}
	for _, b := range before {
		status, there := after[b.ID]
		switch {
		case stay[b.ID] && status != b.Status:
			return fmt.Errorf("backup %s, which is %v and has to stay, became %v", b.Path, b.Status, status)
		case stay[b.ID] || !done:
		case there != slices.Contains(planned.Pending, b.ID):
			return fmt.Errorf("backup %s, which was %v, is there: %v, planned otherwise", b.Path, b.Status, there)
		case there && (status != kvmbackup.StatusDeletePending || !needed[b.ID]):
			return fmt.Errorf("backup %s has to go, and is %v, needed: %v", b.Path, status, needed[b.ID])
		case status != b.Status:
			p.done.retired++
		}
	}
	return nil
}

// pin keeps one of the backups that are offered from retention, or lets it go again.
func (p *play) pin(n int, pinned bool) error {
	b, ok := p.pick(n)
	if !ok {
		return nil
	}
	ctx, cancel := patience()
	defer cancel()
	pin := p.engine.Unpin
	if pinned {
		pin = p.engine.Pin
	}
	if err := pin(ctx, b.ID); err != nil {
		return err
	}
	b, err := p.store.Backup(ctx, b.ID)
	if err == nil && b.Pinned != pinned {
		err = fmt.Errorf("backup %s is pinned: %v", b.Path, b.Pinned)
	}
	return err
}
