package stories_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// Another host has a libvirt of its own and shares the storage: the images, the repository and the store's database. It
// is this test binary again, on another libvirt root.

const (
	handoverEnv = "KVMBACKUP_STORY_HANDOVER"
	rootEnv     = "KVMBACKUP_REALGUEST_ROOT"
)

// handover is what one process tells the next.
type handover struct {
	Name, UUID string
	Persistent bool
	Volumes    []engine.Volume
	Images     map[string]string // device: path
	Models     map[string]string // device: path of a raw file with what the disk holds
	Dir, DB    string
	Policy     kvmbackup.Policy
	Taken      []kvmbackup.Backup // by the process that answers
	Contents   []map[kvmbackup.VolumeID]string
}

// root makes a libvirt root for other processes.
func otherRoot(t *testing.T) string {
	t.Helper()
	root, err := os.MkdirTemp("", "kvmb-") //nolint:usetesting // the paths of sockets are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeRoot(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

// process starts a test of this binary in another process, which works on the root and finds the handover in the file.
func process(t *testing.T, test, root, file string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), handoverEnv+"="+file, rootEnv+"="+root, "LIBVIRT_LOG_OUTPUTS=",
		"TMPDIR="+filepath.Dir(file))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

// elsewhere runs a test in another process to its end.
func elsewhere(t *testing.T, test, root, file string) {
	t.Helper()
	cmd, out := process(t, test, root, file)
	text, err := io.ReadAll(out)
	if again := cmd.Wait(); err != nil || again != nil || !strings.Contains(string(text), "--- PASS: "+test) {
		t.Fatalf("%s: %v, %v:\n%s", test, err, again, text)
	}
}

func (s *story) handOver(file string) {
	s.Helper()
	h := handover{
		Name: s.guest.Name, UUID: s.guest.UUID, Persistent: s.cfg.Persistent, Volumes: s.volumes, Policy: s.policy,
		Dir: s.dir, DB: s.db, Images: map[string]string{}, Models: map[string]string{},
	}
	for _, v := range s.volumes {
		h.Images[v.Device], h.Models[v.Device] = s.guest.Image(v.Device), s.guest.Model(v.Device).Path()
	}
	s.save(file, h)
}

func (s *story) save(file string, h handover) {
	s.Helper()
	text, err := json.Marshal(h)
	s.must(err)
	s.must(os.WriteFile(file, text, 0o644))
}

func load(t *testing.T) (h handover, file string) {
	t.Helper()
	file = os.Getenv(handoverEnv)
	if file == "" {
		return h, ""
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &h); err != nil {
		t.Fatal(err)
	}
	return h, file
}

// takeOver begins a story where another process has left off, with the guest as it is: running or stopped.
func takeOver(t *testing.T, h handover, change ...func(*engine.Config)) *story {
	t.Helper()
	cfg := config{Name: h.Name, UUID: h.UUID, Persistent: h.Persistent, Stopped: true}
	for _, v := range h.Volumes {
		cfg.Disks = append(cfg.Disks, disk{
			Device: v.Device, Path: h.Images[v.Device], SizeBytes: sizeOf(t, h.Models[v.Device]),
		})
	}
	s := tell(t, cfg)
	s.volumes, s.policy = h.Volumes, h.Policy
	for device, from := range h.Models {
		s.run("cp", "--sparse=always", from, s.guest.Model(device).Path())
	}
	s.consumers = nil
	s.consumer = s.newConsumer("", h.Dir, h.DB, change...)
	return s
}

// handBack saves the backups taken here, and what the disks held and hold, where the other process can read them.
func (s *story) handBack(file string, h handover) {
	s.Helper()
	keep := func(from, name string) string {
		to := filepath.Join(filepath.Dir(file), name)
		s.run("cp", "--sparse=always", from, to)
		return to
	}
	for i, t := range s.taken {
		h.Taken = append(h.Taken, t.Backup)
		content := map[kvmbackup.VolumeID]string{}
		for id, m := range t.content {
			content[id] = keep(m.Path(), fmt.Sprintf("%s.%d", id, i))
		}
		h.Contents = append(h.Contents, content)
	}
	for device := range h.Models {
		h.Models[device] = keep(s.guest.Model(device).Path(), device+".now")
	}
	s.save(file, h)
}

// takeBack goes on with what the other process has left.
func (s *story) takeBack(file string) {
	s.Helper()
	text, err := os.ReadFile(file)
	s.must(err)
	var h handover
	s.must(json.Unmarshal(text, &h))
	for i, b := range h.Taken {
		t := taken{Backup: b, content: map[kvmbackup.VolumeID]*model{}}
		for id, path := range h.Contents[i] {
			t.content[id] = openModel(s.T, path)
		}
		s.taken = append(s.taken, t)
	}
	for device, from := range h.Models {
		s.run("cp", "--sparse=always", from, s.guest.Model(device).Path())
	}
}

// The VM moves to another host and back: one chain.
func TestAnotherHost(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: persistent})
		s.write("vda", 0x11, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.write("vda", 0x21, 2, 4)
		s.incremental()
		s.guest.Destroy()
		s.undefine()

		file := filepath.Join(t.TempDir(), "handover.json")
		s.handOver(file)
		elsewhere(t, "TestHelperOtherHost", otherRoot(t), file)
		s.takeBack(file)

		s.rebuild(part{"vol-vda", disk{Device: "vda"}}, part{"vol-vdb", disk{Device: "vdb"}})
		s.start()
		s.write("vdb", 0x41, 8, 2)
		s.incremental()
		if len(s.taken) != 5 || s.taken[4].Position != 4 {
			t.Errorf("%d backups, the last at position %d", len(s.taken), s.taken[4].Position)
		}
		s.restoreAll()
	}
}

// TestHelperOtherHost is the other host.
func TestHelperOtherHost(t *testing.T) {
	h, file := load(t)
	if file == "" {
		return // only for TestAnotherHost
	}
	s := takeOver(t, h)
	s.start()
	s.write("vdb", 0x31, 0, 4)
	s.incremental()
	s.write("vda", 0x32, 4, 4)
	s.incremental()
	s.restoreAll()
	s.guest.Destroy()
	s.undefine()
	s.handBack(file, h)
}

// The backup application is killed in the middle of a job. QEMU goes on with the job, and the next process follows it
// to its end; a stopped guest's job has died with the application, and is undone. The chain goes on either way.
func TestKilledApplication(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needGuests(t)
	for _, guest := range []string{"Running", "Stopped"} {
		t.Run(guest, func(t *testing.T) {
			t.Parallel()
			root, file := killed(t, "TestHelperIsKilled"+guest)
			for range 3 {
				if root != "" {
					break
				}
				root, file = killed(t, "TestHelperIsKilled"+guest)
			}
			elsewhere(t, "TestHelperFollows"+guest, root, file)
		})
	}
}

// killed runs a process until it says that it copies, and kills it. The root is empty when QEMU had copied all before
// its limit was set, as it may on a busy machine.
func killed(t *testing.T, test string) (root, file string) {
	t.Helper()
	root, file = otherRoot(t), filepath.Join(t.TempDir(), "handover.json")
	first, out := process(t, test, root, file)
	said, line := "", ""
	for ; line != "copying" && line != "copied"; said += line + "\n" {
		text, err := out.ReadString('\n')
		if line = strings.TrimSpace(text); err != nil {
			t.Fatalf("the first process has ended: %v: %s%s", err, said, text)
		}
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()
	if line == "copied" {
		return "", ""
	}
	return root, file
}

// The first process waits in the middle of a backup to be killed.
func TestHelperIsKilledRunning(t *testing.T) { beKilled(t, false) }
func TestHelperIsKilledStopped(t *testing.T) { beKilled(t, true) }

func beKilled(t *testing.T, stopped bool) {
	t.Helper()
	file := os.Getenv(handoverEnv)
	if file == "" {
		return // only for TestKilledApplication
	}
	s := tell(t, config{Persistent: true, Stopped: stopped, Disks: []disk{{Device: "vda", SizeBytes: 640 * mib}}})
	// a pull that was interrupted is only taken back
	s.policy.OfflineIncremental, s.policy.Transfer = true, kvmbackup.TransferPush
	dir := filepath.Join(filepath.Dir(file), "repository")
	s.must(os.MkdirAll(dir, 0o777))
	s.consumers = nil
	s.consumer = s.newConsumer("", dir, filepath.Join(dir, "..", "backups.db"), func(c *engine.Config) {
		c.LeaseTTL = 6 * time.Second
	})
	s.write("vda", 0x11, 0, 1)
	s.full(kvmbackup.ReasonNoActiveCheckpoint)
	s.write("vda", 0x21, 0, 576)
	s.handOver(file)
	req := s.request()
	req.BandwidthBytes = 256 << 10
	req.OnJob = func(engine.JobControl) {
		var jobs []struct{}
		if !stopped {
			s.guest.QMP("query-block-jobs", nil, &jobs)
		}
		_, _ = os.Stdout.WriteString(map[bool]string{true: "copying\n", false: "copied\n"}[stopped || len(jobs) > 0])
		select {}
	}
	_, err := s.engine.Backup(s.ctx, req)
	t.Errorf("the backup has ended: %v", err)
}

// The second process comes after it.
func TestHelperFollowsRunning(t *testing.T) { followUp(t, engine.RecoveryFollowed) }
func TestHelperFollowsStopped(t *testing.T) { followUp(t, engine.RecoveryUndone) }

func followUp(t *testing.T, want engine.RecoveryOutcome) {
	t.Helper()
	h, file := load(t)
	if file == "" {
		return // only for TestKilledApplication
	}
	var s *story
	s = takeOver(t, h, func(c *engine.Config) { c.OnEvent = func(e engine.Event) { s.hurry(e) } })
	running, err := s.consumer.cfg.Store.List(s.ctx, kvmbackup.Query{
		Statuses: []kvmbackup.Status{kvmbackup.StatusRunning},
	})
	if s.must(err); len(running) != 1 {
		t.Fatalf("running are %+v", running)
	}
	recovered, err := s.engine.Recover(s.ctx, engine.Target{VM: s.vm()})
	s.must(err)
	if len(recovered) != 1 || recovered[0].Outcome != want {
		t.Fatalf("recovered are %+v", recovered)
	}
	s.inOrder()
	if want == engine.RecoveryFollowed {
		b, err := s.engine.Get(s.ctx, running[0].ID)
		s.must(err)
		s.restore(s.consumer, taken{
			Backup: b, content: map[kvmbackup.VolumeID]*model{"vol-vda": s.guest.Model("vda").Snapshot()},
		})
		s.write("vda", 0x31, 100, 1)
	}
	s.incremental()
	s.restoreAll()
}
