package crash_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestCrashOneOfManyGuests backs up many guests at once through one engine: all get through, no more than the limits
// allow are under way at any time, and one whose QEMU hangs keeps nobody else waiting.
func TestCrashOneOfManyGuests(t *testing.T) {
	lab.Further(t)
	h := needHost(t)
	n := min(lab.Rounds(8, 100), availableMiB(t)/200) // QEMU takes some 80 MiB for a guest
	if !lab.Thorough() {
		t.Parallel()
	}
	dir := t.TempDir()
	places := &places{}
	all := startMany(t, h, dir, n, places)
	t.Logf("%d guests", n)

	all.each(func(a *app) { a.change(); a.backup(a.request()) })
	if most := places.most.Load(); most > 4 || most < 2 {
		t.Errorf("%d backups were under way at once, the limits are 6 and 4", most)
	}

	hung := all[0]
	goOn := hung.guest.hang(h)
	late := make(chan error, 1)
	go func() { _, err := hung.engine.Backup(hung.ctx, hung.request()); late <- err }()
	all[1:].each(func(a *app) { a.change(); wantKind(kvmbackup.KindIncremental)(a, a.backup(a.request())) })
	select {
	case err := <-late:
		t.Errorf("the backup of the guest that hangs has ended: %v", err)
	default:
	}
	goOn()
	if err := <-late; err != nil {
		t.Error(err)
	}
	hung.guest.keep(hung.contentDir(2))
	for _, a := range all {
		a.domainInOrder()
		a.restoreAll()
	}
}

// places counts the backups under way, from the decision on: before it they wait for a place.
type places struct{ now, most atomic.Int64 }

func (p *places) event(e engine.Event) {
	switch e.Type {
	case engine.EventDecided:
		now := p.now.Add(1)
		for most := p.most.Load(); now > most && !p.most.CompareAndSwap(most, now); most = p.most.Load() {
		}
	case engine.EventCompleted, engine.EventFailed:
		p.now.Add(-1)
	}
}

type many []*app

// startMany starts guests that share the first one's store, repository and engine.
func startMany(t *testing.T, h *host, dir string, n int, p *places) many {
	t.Helper()
	var all many
	for i := range n {
		name := fmt.Sprintf("many-%d", i)
		g := openGuest(t, h, name, filepath.Join(dir, name), small, "vda")
		t.Cleanup(g.remove)
		g.start()
		if i == 0 {
			all = append(all,
				openApp(t, g, filepath.Join(dir, "run"), setup{patience: 20 * time.Minute, config: func(c *engine.Config) {
					c.LeaseTTL = time.Minute
					c.HostLimit, c.RepositoryLimit, c.OnEvent = engine.NewLimiter(6), engine.NewLimiter(4), p.event
				}}))
			continue
		}
		a := *all[0]
		a.guest = g
		all = append(all, &a)
	}
	return all
}

// each does something with all guests at once.
func (m many) each(f func(*app)) {
	var wg sync.WaitGroup
	for _, a := range m {
		wg.Go(func() { f(a) })
	}
	wg.Wait()
}

// hang stops QEMU's process.
func (g *guest) hang(h *host) (goOn func()) {
	g.t.Helper()
	pid := g.pid(h)
	g.must("hang", syscall.Kill(pid, syscall.SIGSTOP))
	goOn = func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
	g.t.Cleanup(goOn)
	return goOn
}

// availableMiB is how much memory the machine can spare.
func availableMiB(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "MemAvailable:")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n / 1024
}
