package kvmbackup

import "fmt"

// compares says whether contents may stand in for bitmaps: the policy asks for it, there is something to compare with,
// and it can be done.
func (in DecideInput) compares() bool {
	return in.CantCompare == "" && in.Newest != nil && (in.Policy.Compare ||
		in.Policy.compareDue(in.Newest.Position+1) != "")
}

// cause is the reason as the detail of another one.
func (r Reason) cause() string {
	if r.Detail == "" {
		return string(r.Code)
	}
	return fmt.Sprintf("%s: %s", r.Code, r.Detail)
}
