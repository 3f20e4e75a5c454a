//go:build cgo

package guests_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// share is a file system for a repository, on a server of the test's own: a storage daemon that exports memory through
// a throttle, over FUSE. It is mounted so that each write goes to the server before it returns: the page cache, which
// would take a small disk whole, doesn't hide how fast the server is.
type share struct {
	testing.TB
	dir     string
	daemon  *exec.Cmd
	monitor net.Conn
}

func newShare(tb testing.TB, mebibytes int) *share {
	tb.Helper()
	lab.NeedRoot(tb)
	lab.Need(tb, "qemu-storage-daemon", "losetup", "mount", "umount", "mkfs.ext4")
	work, err := newWorkDir()
	lab.OK(tb, err)
	s := &share{TB: tb, dir: filepath.Join(work, fmt.Sprintf("share-%d", guestNumber.Add(1)))}
	lab.OK(tb, os.Mkdir(s.dir, 0o755))
	memory, err := os.MkdirTemp("/dev/shm", "kvmbg-") //nolint:usetesting // it is to be in memory
	lab.OK(tb, err)
	tb.Cleanup(func() { _ = os.RemoveAll(memory) })
	image, export, socket := filepath.Join(memory, "image"), s.dir+".img", s.dir+".qmp"
	for _, file := range []string{image, export} {
		lab.OK(tb, os.WriteFile(file, nil, 0o600))
	}
	lab.OK(tb, os.Truncate(image, int64(mebibytes)<<20))
	s.daemon = exec.Command("qemu-storage-daemon", "--object", "throttle-group,id=speed",
		"--blockdev", "driver=file,node-name=file,filename="+image,
		"--blockdev", "driver=throttle,node-name=throttle,throttle-group=speed,file=file",
		"--chardev", "socket,id=qmp,server=on,wait=off,path="+socket, "--monitor", "chardev=qmp",
		"--export", "fuse,id=fuse,node-name=throttle,writable=on,mountpoint="+export)
	ended := s.start()
	tb.Cleanup(func() {
		_ = s.daemon.Process.Kill()
		<-ended
		_ = exec.Command("umount", "-l", export).Run()
	})
	lab.Eventually(tb, "the server exports its memory", func() bool {
		info, err := os.Stat(export)
		return err == nil && info.Size() > 0
	})
	s.monitor, err = net.Dial("unix", socket)
	lab.OK(tb, err)
	command(tb, "mkfs.ext4", "-q", "-F", "-m", "0", export)
	command(tb, "mount", "-o", "loop,sync", export, s.dir)
	tb.Cleanup(func() {
		s.goOn()
		lab.Eventually(tb, "the share is unmounted", func() bool { return syscall.Unmount(s.dir, 0) == nil })
	})
	return s
}

// start has the server end with this process, so that its clients come back. The kernel goes by the thread that
// started it.
func (s *share) start() (ended chan struct{}) {
	s.Helper()
	s.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(ended)
		err := s.daemon.Start()
		if started <- err; err == nil {
			_ = s.daemon.Wait() // it is killed
		}
	}()
	lab.OK(s, <-started)
	return ended
}

// throttle has the server take so many bytes per second; 0 lifts it.
func (s *share) throttle(bytesPerSecond int64) {
	s.Helper()
	for _, order := range []string{
		`{"execute":"qmp_capabilities"}`, // an error from the second time on
		fmt.Sprintf(`{"execute":"qom-set","arguments":{"path":"/objects/speed","property":"limits",`+
			`"value":{"bps-total":%d}},"id":"done"}`, bytesPerSecond),
	} {
		_, err := s.monitor.Write([]byte(order))
		lab.OK(s, err)
	}
	for replies := json.NewDecoder(s.monitor); ; {
		var r struct {
			ID    string
			Error json.RawMessage
		}
		lab.OK(s, replies.Decode(&r))
		if r.ID == "done" {
			lab.Equal(s, "the error of the throttle", string(r.Error), "")
			return
		}
	}
}

// stall has the server answer nobody, as a dead one does, until goOn.
func (s *share) stall() { s.Helper(); lab.OK(s, s.daemon.Process.Signal(syscall.SIGSTOP)) }
func (s *share) goOn()  { s.Helper(); lab.OK(s, s.daemon.Process.Signal(syscall.SIGCONT)) }
