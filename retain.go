package kvmbackup

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// RetentionPolicy says which completed backups of a VM to keep. A rule keeps the newest backup of each of the last N
// hours, days, ... that have one; a backup that any rule keeps stays. Pinned backups always stay and don't count.
//
// A damaged backup, one whose last verification failed or that stands on such a one and was not seen to restore since,
// must not take the place of one that restores. So it doesn't count either, and stays until an operator has looked at
// it: until it is verified again and whole, or deleted by its ID.
//
// The rules count for each VM by itself that has had the name, by its UUID: the backups of one that is gone are not
// pushed out by those of the next. They go by their IDs.
//
// The records of failed backups go, with any policy, once a later backup is completed.
type RetentionPolicy struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	// Location is where days and weeks begin. Defaults to UTC.
	Location *time.Location
}

// The rules, as RetentionDecision.KeptBy names them.
const (
	keepLast    = "last"
	keepHourly  = "hourly"
	keepDaily   = "daily"
	keepWeekly  = "weekly"
	keepMonthly = "monthly"
	keepYearly  = "yearly"
	keepPinned  = "pinned"
	keepDamaged = "damaged" // it doesn't restore, and waits for an operator; see RetentionDecision.Damage
)

// RetentionPlan says what a policy keeps and deletes, and what that frees.
type RetentionPlan struct {
	VM      VMID                `json:"vm"`
	Backups []RetentionDecision `json:"backups"` // newest first
	// RemoveNow lists the backups whose space comes back at once, the others of those deleted become delete-pending
	// because a kept backup stands on them. Both have also the backups that were deleted before and were delete-pending
	// already.
	RemoveNow []BackupID `json:"remove_now,omitempty"`
	Pending   []BackupID `json:"pending,omitempty"`
	// FreeBytes and LaterBytes are the sums of what their records have as stored.
	FreeBytes  int64 `json:"free_bytes"`
	LaterBytes int64 `json:"later_bytes"`
	// Failed lists the failed backups that are older than the newest completed one. Their records go; files they have
	// none.
	Failed []BackupID `json:"failed,omitempty"`
	// Foreign are the folders, below the repository's root, that stay because of files in them which are not the
	// backups', where Retain has met such.
	Foreign []string `json:"foreign,omitempty"`
}

// The actions.
const (
	retentionKeep    = "keep"
	retentionRemove  = "remove"
	retentionPending = "pending"
)

// RetentionDecision is one backup's fate. JSON has its ID and its domain's UUID in place of its record.
type RetentionDecision struct {
	Backup Backup
	// Action is "keep"; "remove", when its files and its record go; or "pending", when it becomes delete-pending, as
	// something still needs it.
	Action string
	// KeptBy names the rules that keep it: "last", "hourly", "daily", "weekly", "monthly", "yearly", "pinned", or
	// "damaged" for one that doesn't restore and waits for an operator. Empty: it is deleted.
	KeptBy []string
	// Damage says, for "damaged", what the verification found, and in which backup below if not in this one.
	Damage string
}

type retentionJSON struct {
	ID         BackupID `json:"id"`
	DomainUUID string   `json:"domain_uuid,omitempty"`
	Action     string   `json:"action"`
	KeptBy     []string `json:"kept_by,omitempty"`
	Damage     string   `json:"damage,omitempty"`
}

// MarshalJSON writes the decision with the backup's ID.
func (d RetentionDecision) MarshalJSON() ([]byte, error) {
	return json.Marshal(retentionJSON{d.Backup.ID, d.Backup.DomainUUID, d.Action, d.KeptBy, d.Damage})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (d *RetentionDecision) UnmarshalJSON(b []byte) error {
	var has retentionJSON
	err := json.Unmarshal(b, &has)
	*d = RetentionDecision{Backup{ID: has.ID, DomainUUID: has.DomainUUID}, has.Action, has.KeptBy, has.Damage}
	return err
}

// Keep says whether a rule keeps the backup.
func (d RetentionDecision) Keep() bool { return len(d.KeptBy) > 0 }

// String returns the plan as lines for people.
func (p RetentionPlan) String() string {
	var s strings.Builder
	for _, d := range p.Backups {
		verdict := "delete"
		switch d.Action {
		case retentionRemove:
		case retentionKeep:
			verdict = "keep (" + strings.Join(d.KeptBy, ", ") + ")"
			if d.Damage != "" {
				verdict += ", which counts for no rule: " + d.Damage + "; verify it again, or delete it by its ID"
			}
		case retentionPending:
			verdict = "delete later: a kept backup needs it"
		}
		fmt.Fprintf(&s, "%s %s %v: %s\n", d.Backup.ID, d.Backup.StartedAt.Format(time.RFC3339), d.Backup.Kind, verdict)
	}
	if len(p.Failed) > 0 {
		fmt.Fprintf(&s, "%d records of failed backups go\n", len(p.Failed))
	}
	for _, id := range p.deletedBefore() {
		fmt.Fprintf(&s, "%s: delete; it was delete-pending, and nothing needs it then\n", id)
	}
	fmt.Fprintf(&s, "%d bytes come back now, %d later\n", p.FreeBytes, p.LaterBytes)
	return s.String()
}

// deletedBefore are those of RemoveNow that were delete-pending already, so that no rule has decided on them.
func (p RetentionPlan) deletedBefore() []BackupID {
	return slices.DeleteFunc(slices.Clone(p.RemoveNow), func(id BackupID) bool {
		return slices.ContainsFunc(p.Backups, func(d RetentionDecision) bool { return d.Backup.ID == id })
	})
}

// retentionRule puts backups into periods; the newest of a period is kept.
type retentionRule struct {
	name   string
	count  int
	period func(t time.Time, seq int64) string
}

func (p RetentionPolicy) rules() []retentionRule {
	layout := func(l string) func(time.Time, int64) string {
		return func(t time.Time, _ int64) string { return t.Format(l) }
	}
	return []retentionRule{
		{keepLast, p.Last, func(_ time.Time, seq int64) string { return fmt.Sprint(seq) }},
		{keepHourly, p.Hourly, layout("2006-01-02 15 -0700")},
		{keepDaily, p.Daily, layout("2006-01-02")},
		{keepWeekly, p.Weekly, func(t time.Time, _ int64) string {
			y, w := t.ISOWeek()
			return fmt.Sprintf("%d-%d", y, w)
		}},
		{keepMonthly, p.Monthly, layout("2006-01")},
		{keepYearly, p.Yearly, layout("2006")},
	}
}

// Validate returns ErrInvalid for a policy with a negative rule, and for one that keeps nothing: backups are deleted by
// their IDs instead.
func (p RetentionPolicy) Validate() error {
	keeps := 0
	for _, r := range p.rules() {
		if r.count < 0 {
			return fmt.Errorf("%w retention: keep-%s is negative", ErrInvalid, r.name)
		}
		keeps += r.count
	}
	if keeps == 0 {
		return fmt.Errorf("%w retention: the policy keeps nothing; set at least one rule, or delete backups by their "+
			"IDs", ErrInvalid)
	}
	return nil
}

// Plan applies the policy to the records of one VM, as far as they are in the repository with that ID; what stands on
// one of them may be anybody's. An empty ID takes those in all repositories. It is pure. Only completed backups are
// considered; records in other statuses count as what others may stand on. A policy that keeps nothing is an
// ErrInvalid: delete backups by their IDs instead.
func (p RetentionPolicy) Plan(records []Backup, repository string) (RetentionPlan, error) {
	ours := func(b Backup) bool { return repository == "" || b.Repository == repository }
	if err := p.Validate(); err != nil {
		return RetentionPlan{}, err
	}
	loc := p.Location
	if loc == nil {
		loc = time.UTC
	}
	plan := RetentionPlan{Backups: []RetentionDecision{}}
	for _, b := range latestFirst(records) {
		if plan.VM == "" {
			plan.VM = b.VM
		}
		if b.VM != plan.VM {
			return RetentionPlan{}, fmt.Errorf("%w retention: records of %q and %q; plan one VM at a time", ErrInvalid,
				plan.VM, b.VM)
		}
		if b.Status == StatusCompleted && ours(b) {
			plan.Backups = append(plan.Backups, RetentionDecision{Backup: b})
		}
	}
	plan.setAside(records)
	for _, r := range p.rules() {
		plan.apply(r, loc)
	}
	plan.simulate(records, ours)
	plan.outdate(records, ours)
	return plan, nil
}

// setAside keeps what counts for no rule.
func (p *RetentionPlan) setAside(records []Backup) {
	all := byID(records)
	for i := range p.Backups {
		d := &p.Backups[i]
		if d.Backup.Pinned {
			d.KeptBy = append(d.KeptBy, keepPinned)
		}
		if d.Damage = damageOf(d.Backup, all); d.Damage != "" {
			d.KeptBy = append(d.KeptBy, keepDamaged)
		}
	}
}

func byID(records []Backup) map[BackupID]Backup {
	all := map[BackupID]Backup{}
	for _, b := range records {
		all[b.ID] = b
	}
	return all
}

// DamageIn says why the backup is known not to restore: a failed verification of it, or of one on which it stands, that
// no later one from above has disproved; empty when the records have no such failure.
func (b Backup) DamageIn(records []Backup) string { return damageOf(b, byID(records)) }

func damageOf(b Backup, all map[BackupID]Backup) string {
	var passed []Verification
	at, there := b, true
	for n := 0; there && n < len(all); n++ { // no more than that, should the records go in a circle
		v := at.Verification
		switch {
		case v == nil:
		case v.OK:
			passed = append(passed, *v)
		case slices.ContainsFunc(passed, v.disprovedBy):
		case at.ID == b.ID:
			return cmp.Or(v.Problem, "its last verification failed")
		default:
			return fmt.Sprintf("it stands on backup %s: %s", at.ID, cmp.Or(v.Problem, "its last verification failed"))
		}
		at, there = all[at.ParentID]
	}
	return ""
}

// disprovedBy says whether a later verification of something that stands on the same files has seen as much of them.
func (v Verification) disprovedBy(passed Verification) bool {
	return passed.At.After(v.At) && (passed.Content || !v.Content)
}

func newestFirst(records []Backup) []Backup {
	sorted := slices.Clone(records)
	slices.SortFunc(sorted, func(a, b Backup) int { return cmp.Compare(b.Sequence, a.Sequence) })
	return sorted
}

// latestFirst orders by when the backups were taken.
func latestFirst(records []Backup) []Backup {
	sorted := slices.Clone(records)
	slices.SortFunc(sorted, compareLatest)
	return sorted
}

// compareLatest is negative when a was taken later than b. It goes by the stamps of the folders. They ascend as
// sequences do, but an old backup keeps its own when it is imported beside newer ones, and must not outlive those for
// it.
func compareLatest(a, b Backup) int {
	return cmp.Or(cmp.Compare(path.Base(b.Path), path.Base(a.Path)), cmp.Compare(b.Sequence, a.Sequence))
}

// domains says for each backup of which domain it is, by UUID: a name may have been another VM's before, and each VM
// has its own rules' worth. A backup whose UUID isn't known counts as of the domain that comes next, or was there last.
func (p *RetentionPlan) domains() []string {
	of := make([]string, len(p.Backups))
	known := ""
	for _, d := range slices.Backward(p.Backups) {
		if knownUUID(d.Backup.DomainUUID) {
			known = d.Backup.DomainUUID // the newest one, in the end
		}
	}
	for i, d := range p.Backups {
		if knownUUID(d.Backup.DomainUUID) {
			known = d.Backup.DomainUUID
		}
		of[i] = strings.ToLower(known)
	}
	return of
}

func (p *RetentionPlan) apply(r retentionRule, loc *time.Location) {
	domains, all := p.domains(), map[string]map[string]bool{}
	for i := range p.Backups {
		d := &p.Backups[i]
		seen := all[domains[i]]
		if seen == nil {
			seen = map[string]bool{}
			all[domains[i]] = seen
		}
		period := r.period(d.Backup.StartedAt.In(loc), d.Backup.Sequence)
		if d.Backup.Pinned || d.Damage != "" || seen[period] || len(seen) >= r.count {
			continue
		}
		seen[period] = true
		d.KeptBy = append(d.KeptBy, r.name)
	}
}

// outdate finds the failures that nobody needs to know of any more: a later backup has been completed.
func (p *RetentionPlan) outdate(records []Backup, ours func(Backup) bool) {
	for _, b := range records {
		later := len(p.Backups) > 0 && compareLatest(p.Backups[0].Backup, b) < 0
		if later && b.Status == StatusFailed && ours(b) {
			p.Failed = append(p.Failed, b.ID)
		}
	}
}

// simulate finds out which deletions free space at once: those with nothing left that stands on them. Records that are
// delete-pending already go along when their last descendant does.
func (p *RetentionPlan) simulate(records []Backup, ours func(Backup) bool) {
	goes := map[BackupID]bool{}
	for _, d := range p.Backups {
		goes[d.Backup.ID] = !d.Keep()
	}
	children := map[BackupID]int{}
	for _, b := range records {
		if b.ParentID != "" {
			children[b.ParentID]++
		}
	}
	for _, b := range newestFirst(records) { // a child is newer than its parent
		if !goes[b.ID] && (b.Status != StatusDeletePending || !ours(b)) {
			continue
		}
		if children[b.ID] == 0 && len(b.Holds) == 0 {
			p.RemoveNow = append(p.RemoveNow, b.ID)
			p.FreeBytes += b.StoredBytes()
			children[b.ParentID]--
		} else {
			p.Pending = append(p.Pending, b.ID)
			p.LaterBytes += b.StoredBytes()
		}
	}
	pending := map[BackupID]bool{}
	for _, id := range p.Pending {
		pending[id] = true
	}
	for i := range p.Backups {
		switch d := &p.Backups[i]; {
		case d.Keep():
			d.Action = retentionKeep
		case pending[d.Backup.ID]:
			d.Action = retentionPending
		default:
			d.Action = retentionRemove
		}
	}
}
