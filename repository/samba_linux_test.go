package repository_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
)

const smbConfig = `[global]
server role = standalone server
map to guest = Bad User
guest account = root
private dir = %[1]s
lock directory = %[1]s
state directory = %[1]s
cache directory = %[1]s
pid directory = %[1]s
ncalrpc dir = %[1]s/ncalrpc
log file = %[1]s/log
smb ports = 445
disable netbios = yes
load printers = no
[share]
path = %[2]s
read only = no
guest ok = yes
force user = root
`

// TestSamba is a backup's life on a share of a real SMB server, which refuses to rename a folder in which a file is
// open and doesn't tell upper from lower case. It runs in namespaces of its own: server and mount are there for nobody
// else.
func TestSamba(t *testing.T) {
	const mark = "KVMBACKUP_TEST_SAMBA"
	lab.NeedRoot(t)
	if os.Getenv(mark) == "" {
		for _, tool := range []string{"smbd", "smbnetfs", "unshare", "ip"} {
			if _, err := exec.LookPath(tool); err != nil {
				lab.Missing(t, err)
			}
		}
		again := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc",
			"--kill-child",
			os.Args[0], "-test.run=^TestSamba$", "-test.count=1", "-test.v")
		again.Env = append(os.Environ(), mark+"=1")
		if out, err := again.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	share := mountSamba(t)
	r := initRepo(t, share, repository.Options{})
	m := full()
	m.VM = "Web"
	m.Path = "Web/2026.11.23.07.04.50"
	m = prepare(t, r, m)
	files := []string{"root.v1.qcow2", "datadisk.v2.qcow2"}
	release, err := r.OpenTargets(t.Context(), m.Path, m.ID, files)
	want(t, err)
	defer release()
	want(t, r.Publish(t.Context(), m))
	if _, ok, err := r.Published(t.Context(), m.Path, m.ID); !ok || err != nil {
		t.Fatal(ok, err)
	}

	want(t, r.CheckVM(t.Context(), "Web"))
	want(t, r.CheckVM(t.Context(), "mail"))
	want(t, r.CheckVM(t.Context(), "web"), kvmbackup.ErrInvalid)
	_, err = r.CreatePartial(t.Context(), "web/2026.11.23.08.04.50", incID)
	want(t, err, kvmbackup.ErrInvalid)

	reader, err := os.Open(r.FilePath(m.Path, "root.v1.qcow2"))
	want(t, err)
	short, err := repository.Open(t.Context(), share, repository.Options{Timeout: 4 * time.Second})
	want(t, err)
	_, err = short.Remove(t.Context(), m.Backup)
	want(t, err, repository.ErrInUse, syscall.EACCES)
	want(t, os.Mkdir(filepath.Join(r.Root(), m.Path, ".DS_Store"), 0o755))
	closed := make(chan error, 1)
	go func() { closed <- reader.Close() }() // it is waited for
	_, err = r.Remove(t.Context(), m.Backup)
	want(t, err, kvmbackup.ErrForeignFiles)
	want(t, <-closed)
	same(t, tree(t, r), []string{"Web", "Web/2026.11.23.07.04.50.left-" + string(m.ID),
		"Web/2026.11.23.07.04.50.left-" + string(m.ID) + "/.DS_Store"})
}

// mountSamba starts a server and mounts its share.
func mountSamba(t *testing.T) string {
	t.Helper()
	command(t, "ip", "link", "set", "lo", "up")
	state, shared, home, mnt := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	conf := filepath.Join(state, "smb.conf")
	put(t, conf, fmt.Sprintf(smbConfig, state, shared))
	start(t, "smbd", "--foreground", "--no-process-group", "--configfile="+conf)
	eventually(t, func() error {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", "127.0.0.1:445")
		if err == nil {
			err = c.Close()
		}
		return err
	})
	t.Setenv("HOME", home)
	want(t, os.Mkdir(filepath.Join(home, ".smb"), 0o700))
	put(t, filepath.Join(home, ".smb", "smbnetfs.conf"), "")
	put(t, filepath.Join(home, ".smb", "smb.conf"), "")
	cleanup(t, "umount", "--lazy", mnt)
	start(t, "smbnetfs", "-f", mnt)
	share := filepath.Join(mnt, "127.0.0.1", "share")
	eventually(t, func() error {
		put(t, filepath.Join(shared, "there"), "")
		_, err := os.Stat(filepath.Join(share, "there"))
		return err
	})
	want(t, os.Remove(filepath.Join(share, "there")))
	return share
}

// start runs a tool until the test's process namespace ends.
func start(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	out := &strings.Builder{}
	c := exec.CommandContext(ctx, name, args...)
	c.Stdout, c.Stderr = out, out
	want(t, c.Start())
	t.Cleanup(func() {
		cancel()
		_ = c.Wait()
		if t.Failed() {
			t.Log(name, out)
		}
	})
}

// eventually tries again until it works.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; <-time.After(50 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
