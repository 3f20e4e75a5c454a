package stories_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// A backup of a stopped VM is full and leaves a bitmap in every image, so that the first backup after the start is
// incremental.
func TestStoppedThenStarted(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true, Stopped: true})
	s.write("vda", 0x11, 0, 4)
	s.write("vdb", 0x12, 1, 2)
	s.full(kvmbackup.ReasonStopped)

	s.start()
	s.write("vda", 0x21, 3, 2)
	s.incremental()

	s.guest.Destroy()
	s.write("vdb", 0x32, 0, 2) // somebody works on the image: qcow2 keeps the bitmap up
	s.full(kvmbackup.ReasonStopped)
	s.start()
	s.write("vda", 0x41, 0, 1)
	s.incremental()
	s.restoreAll()
}

// A host with transient domains doesn't have the stopped VM defined: the request describes its disks.
func TestStoppedAndNotDefined(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Stopped: true})
	s.write("vda", 0x11, 0, 4)
	s.full(kvmbackup.ReasonStopped)

	s.start()
	s.write("vdb", 0x22, 3, 2)
	s.incremental()

	s.guest.Destroy()
	without := s.request()
	without.Disks = nil
	s.refuses(without, kvmbackup.ErrNoDomain)
	s.full(kvmbackup.ReasonStopped)
	s.restoreAll()
}

// While a stopped VM is copied, QEMU's lock keeps it from starting, which would tear the copy.
func TestStartDuringStoppedBackup(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true, Stopped: true})
	s.write("vda", 0x11, 0, 16)
	s.write("vdb", 0x12, 0, 16)
	req := s.request()
	req.BandwidthBytes = 64 << 10
	ctx, cancel := context.WithCancelCause(s.ctx)
	begun := make(chan engine.JobControl, 1)
	req.OnJob = func(c engine.JobControl) { begun <- c }
	done := make(chan error, 1)
	go func() {
		_, err := s.engine.Backup(ctx, req)
		done <- err
	}()
	<-begun
	if err := s.guest.TryCreate(); err == nil {
		t.Error("the guest could be started while its disks are copied")
	} else {
		t.Log(err)
	}
	cancel(errEnough)
	s.wantErr(<-done, errEnough)
	s.inOrder()

	s.full(kvmbackup.ReasonStopped)
	s.start()
	s.write("vda", 0x21, 8, 1)
	s.incremental()
	s.restoreAll()
}

// With offline incrementals allowed, a VM that is started, stopped and backed up in any order keeps one chain.
func TestOfflineIncrementals(t *testing.T) {
	t.Parallel()
	for _, persistent := range lab.Either(t, true, false) {
		s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: persistent, Stopped: true})
		s.policy.OfflineIncremental = true
		s.write("vda", 0x11, 0, 4)
		s.full(kvmbackup.ReasonNoActiveCheckpoint)
		s.incremental()
		s.write("vda", 0x21, 2, 4)
		s.incremental()
		s.start()
		s.write("vda", 0x31, 1, 2)
		s.write("vdb", 0x32, 0, 2)
		s.guest.Destroy()
		s.incremental()
		s.start()
		s.write("vdb", 0x42, 1, 2)
		s.incremental()
		s.write("vdb", 0x52, 2, 2)
		s.incremental()
		s.guest.Destroy()
		last := s.incremental()
		if last.Position != 6 || last.ChainID != s.taken[0].ChainID {
			t.Errorf("the last backup is at position %d of chain %s, which began as %s", last.Position, last.ChainID,
				s.taken[0].ChainID)
		}
		s.restoreAll()
	}
}

// libvirt starts a guest on what the definition says is below an image, whatever the image says. No tool does, so that
// a stopped guest whose definition and image differ is refused: its backup would have other data than the guest sees.
func TestStoppedOverOtherFiles(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for name, below := range map[string]string{
		"another file": "<backingStore type='file'><format type='qcow2'/><source file='DIR/other.qcow2'/></backingStore>",
		"nothing":      "<backingStore/>",
		"the same file": "<backingStore type='file'><format type='qcow2'/>" +
			"<source file='DIR/../DIRNAME/base.qcow2'/><backingStore/></backingStore>",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			run := func(name string, args ...string) {
				if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
					t.Fatalf("%s %q: %v: %s", name, args, err, out)
				}
			}
			run("qemu-img", "create", "-q", "-f", "qcow2", dir+"/base.qcow2", "16M")
			run("qemu-img", "create", "-q", "-f", "qcow2", dir+"/other.qcow2", "16M")
			run("qemu-img", "create", "-q", "-f", "qcow2", "-b", dir+"/base.qcow2", "-F", "qcow2", dir+"/top.qcow2", "16M")
			if name != "the same file" {
				run("qemu-io", "-f", "qcow2", "-c", "write -P 0x55 8M 1M", dir+"/base.qcow2")
			}
			run("chmod", "-R", "a+rwX", dir)
			below := strings.NewReplacer("DIRNAME", filepath.Base(dir), "DIR", dir).Replace(below)
			s := tell(t,
				config{Persistent: true, Disks: []disk{{Device: "vda", SizeBytes: 16 * mib, Path: dir + "/top.qcow2", Type: "file",
					SourceXML: "<source file='" + dir + "/top.qcow2'/>" + below}}})
			s.write("vda", 0x11, 0, 4)
			s.full(kvmbackup.ReasonNoActiveCheckpoint)
			s.guest.Destroy()
			if name == "the same file" {
				s.full(kvmbackup.ReasonStopped)
			} else {
				s.Log(s.refuses(s.request(), kvmbackup.ErrUnreadable))
			}
			s.start()
			s.write("vda", 0x21, 1, 1)
			s.incremental()
			s.restoreAll()
		})
	}
}
