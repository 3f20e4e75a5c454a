package stories_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestAttackedBackup: a process that can write to the share exchanges what it can see being made there, while a VM is
// backed up that is off, or by pull. The backup may fail. No file outside the VM's folder is changed, and what it holds
// when it succeeds is what the disk holds. By push QEMU opens the targets by their names: see docs/security.md.
func TestAttackedBackup(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needRoot(t)
	for _, stopped := range []bool{true, false} {
		t.Run(map[bool]string{true: "stopped", false: "pull"}[stopped], func(t *testing.T) {
			t.Parallel()
			s := tell(t, config{Disks: disks("vda"), Persistent: true})
			s.write("vda", 0x11, 0, 8)
			if stopped {
				s.guest.Destroy()
			}
			room, err := os.MkdirTemp("", "s-") //nolint:usetesting // its path has to be short
			s.must(err)
			t.Cleanup(func() { _ = os.RemoveAll(room) })
			var onStep func(string)
			e := s.cfgWith(func(c *engine.Config) {
				c.Scratch, c.CleanupLimit = []string{room}, 2*time.Second
				c.OnEvent = func(ev engine.Event) {
					if ev.Type == engine.EventStep {
						onStep(ev.Step)
					}
				}
			})
			onStep = func(string) {}
			_, err = e.Backup(s.ctx, s.request())
			s.must(err)
			mine, other := filepath.Join(s.dir, s.guest.Name), filepath.Join(s.dir, "other")
			s.must(os.CopyFS(other, os.DirFS(mine)))
			canary, lying := filepath.Join(t.TempDir(), "canary"), filepath.Join(t.TempDir(), "lying.qcow2")
			s.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+canary+",data_file_raw=on", lying, "1M")
			s.must(os.WriteFile(canary, []byte(strings.Repeat("canary", 1<<18)), 0o600))
			victims := s.sums(other) + s.sums(canary)
			exchanges := 0
			for _, how := range []string{lab.ByLinks, lab.ByHeaders, lab.ByFolders} {
				for n := range lab.Rounds(4, 40) {
					a := attack{s: s, how: how, mine: mine, other: other, lying: lying, done: make(chan struct{})}
					from := []string{"create folder", "begin job", "check targets", "publish"}[n%4]
					onStep = func(step string) {
						if step == from {
							a.begin()
						}
					}
					a.backup(e, from)
					exchanges += a.end()
					if is := s.sums(other) + s.sums(canary); is != victims {
						t.Fatalf("by %s: another VM's folder, or a file outside, was changed:\n%s\nwas\n%s", how, is, victims)
					}
				}
			}
			if exchanges < 10 {
				t.Errorf("%d exchanges: the attacker hardly saw anything", exchanges)
			}
		})
	}
}

// attack is one on a backup, from one of its steps to its end.
type attack struct {
	s                       *story
	how, mine, other, lying string
	done                    chan struct{}
	exchanges               chan int // nil before it has begun
}

// begin returns when the attacker watches.
func (a *attack) begin() {
	watching := make(chan struct{})
	a.exchanges = make(chan int, 1)
	go func() {
		a.exchanges <- lab.Attacked(a.s, a.how, a.mine, a.other, a.lying, func() { close(watching); <-a.done })
	}()
	<-watching
}

// end returns how often something was exchanged.
func (a *attack) end() int {
	close(a.done)
	if a.exchanges == nil {
		return 0
	}
	return <-a.exchanges
}

// backup takes a full, and restores it if it succeeds.
func (a *attack) backup(e *engine.Engine, from string) {
	s := a.s
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	req := s.request()
	req.Policy.ForceFull = true
	b, err := e.Backup(ctx, req)
	s.Logf("by %s from %q on: %v", a.how, from, err)
	if ctx.Err() != nil {
		s.Errorf("by %s from %q on: it did not end", a.how, from)
	}
	if err != nil {
		return
	}
	dir, err := os.MkdirTemp(s.TempDir(), "restored-")
	s.must(err)
	done, err := e.Restore(s.ctx, engine.RestoreRequest{Backup: b.ID, Dir: dir})
	if err != nil {
		s.Logf("it doesn't restore: %v", err)
		return
	}
	was := s.guest.Model("vda").Path()
	s.must(s.images.Compare(s.ctx, was, done.Volumes[0].Path, qcow2.CompareOptions{FormatA: qcow2.FormatRaw}))
}

// sums are the names and contents below a path.
func (s *story) sums(path string) string {
	s.Helper()
	var all strings.Builder
	s.must(filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&all, "%s %x\n", path, sha256.Sum256(data))
		return err
	}))
	return all.String()
}
