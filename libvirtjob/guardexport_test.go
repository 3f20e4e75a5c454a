package libvirtjob

import "context"

// TestedGuard is a guard that a test has started.
type TestedGuard struct{ g *guard }

// StartGuard starts one for a job that the test begins.
func StartGuard(ctx context.Context, uri, uuid, socket string) (TestedGuard, error) {
	g, err := startGuard(ctx, guardOrder{URI: uri, UUID: uuid, Socket: socket})
	return TestedGuard{g}, err
}

// Began, Dismiss and PID are what a job does with its guard, and its process.
func (t TestedGuard) Began()   { t.g.began() }
func (t TestedGuard) Dismiss() { t.g.dismiss() }
func (t TestedGuard) PID() int { return t.g.cmd.Process.Pid }

// Ended says whether its process is gone.
func (t TestedGuard) Ended() bool { return t.g.cmd.ProcessState != nil }

// GuardLook is one look of a guard whose program is gone.
func GuardLook(uri, uuid, socket string) (there bool, err error) {
	return guardOrder{URI: uri, UUID: uuid, Socket: socket}.look()
}
