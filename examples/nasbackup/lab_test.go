package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	tools "github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// lab is a folder with a libvirt root, a guest with two disks, a repository and a store. disks is what the guest's
// disks hold; it is written beside QEMU.
type lab struct {
	t      *testing.T
	dir    string
	number int
	tool   *qcow2.Tool
	disks  map[string][]byte
	missed int // backups that were over before they were interrupted
}

var labSizes = map[string]int{"vda": 64 << 20, "vdb": 16 << 20}

func newLab(t *testing.T) *lab {
	t.Helper()
	tools.Need(t, "qemu-img", "qemu-system-x86_64")
	dir, err := os.MkdirTemp("", "nasb") //nolint:usetesting // short: paths of sockets below it are limited
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, dir: dir, number: int(labs.Add(1)), disks: map[string][]byte{}}
	t.Cleanup(l.cleanUp)
	if l.tool, err = qcow2.New(qcow2.Config{}); err != nil {
		t.Fatal(err)
	}
	l.file("libvirt/etc/qemu.conf", qemuConf())
	l.file("nas/.keep", "")
	for device, size := range labSizes {
		l.disks[device] = make([]byte, size)
		err := l.tool.Create(t.Context(), l.path(device+".qcow2"), qcow2.CreateOptions{SizeBytes: int64(size)})
		if err != nil {
			t.Fatal(err)
		}
	}
	l.open()
	l.guest("start")
	return l
}

// qemuConf keeps libvirt from starting a log daemon, and lets QEMU run as the user of this test.
func qemuConf() string {
	conf := "stdio_handler = \"file\"\n"
	if os.Geteuid() == 0 && !needsNobody() {
		conf += "user = \"+0\"\ngroup = \"+0\"\n"
	}
	return conf
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) file(name, text string) {
	l.t.Helper()
	if err := os.MkdirAll(filepath.Dir(l.path(name)), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(l.path(name), []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// open gives the folder to the user that the processes run as.
func (l *lab) open() {
	l.t.Helper()
	if !needsNobody() {
		return
	}
	err := filepath.Walk(l.dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, nobody, nobody)
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) cleanUp() {
	if err := l.runPinned(l.process("guest", l.dir, "stop")); err != nil {
		l.t.Errorf("stop the guest: %v", err)
	}
	if err := os.RemoveAll(l.dir); err != nil {
		l.t.Error(err)
	}
}

// process is this test binary as the program or as the guest's handler.
func (l *lab) process(as string, args ...string) *exec.Cmd {
	l.t.Helper()
	executable, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command(executable, args...)
	cmd.Env = append(os.Environ(), asEnv+"="+as, "LIBVIRT_LOG_OUTPUTS=4:file:/dev/null", "LIBVIRT_DEBUG=4", "HOME="+l.dir,
		"NASBACKUP_REPO="+l.path("nas"), "NASBACKUP_STORE="+l.path("records.db"), "NASBACKUP_CONNECT="+rootURI(l.dir))
	return cmd
}

func (l *lab) guest(args ...string) {
	l.t.Helper()
	cmd := l.process("guest", append([]string{l.dir}, args...)...)
	cmd.Stderr = l.t.Output()
	if err := l.runPinned(cmd); err != nil {
		l.t.Fatalf("guest %q: %v", args, err)
	}
}

// write fills a range of a disk with one byte, in the guest and in disks.
func (l *lab) write(disk int, pattern byte, offset, length int) {
	l.t.Helper()
	l.guest("write", fmt.Sprint(disk), fmt.Sprintf("%#x", pattern), fmt.Sprint(offset), fmt.Sprint(length))
	copy(l.disks[[]string{"vda", "vdb"}[disk]][offset:], bytes.Repeat([]byte{pattern}, length))
}

// spread writes into every other cluster of vda. A limit comes into force when a job has begun, and doesn't hold for
// what it copies by then: many clusters keep it busy.
func (l *lab) spread(pattern byte) {
	l.t.Helper()
	const cluster = 64 << 10
	disk := l.disks["vda"]
	l.guest("spread", "0", fmt.Sprintf("%#x", pattern), "0", fmt.Sprint(cluster), fmt.Sprint(len(disk)))
	for at := 0; at < len(disk); at += 2 * cluster {
		copy(disk[at:], bytes.Repeat([]byte{pattern}, cluster))
	}
}

// now is a copy of what the disks hold.
func (l *lab) now() map[string][]byte {
	copies := map[string][]byte{}
	for device, content := range l.disks {
		copies[device] = bytes.Clone(content)
	}
	return copies
}

func (l *lab) run(args ...string) result {
	l.t.Helper()
	cmd := l.process("program", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := l.runPinned(cmd)
	l.t.Logf("nasbackup %s: %d after %v\n%s%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(),
		time.Since(began).Round(time.Millisecond), stdout.String(), stderr.String())
	if err != nil && cmd.ProcessState.ExitCode() < 0 {
		l.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// get runs what has to succeed and decodes its one line of JSON.
func (l *lab) get(v any, args ...string) {
	l.t.Helper()
	l.expect(exitDone, v, args...)
}

func (l *lab) expect(exit int, v any, args ...string) {
	l.t.Helper()
	r := l.run(append(args, "--json")...)
	if r.code != exit {
		l.t.Fatalf("nasbackup %q: exit code %d, want %d", args, r.code, exit)
	}
	if err := json.Unmarshal([]byte(r.stdout), v); err != nil {
		l.t.Fatalf("nasbackup %q: %v in %q", args, err, r.stdout)
	}
}

// fail runs what has to fail.
func (l *lab) fail(exit int, code string, args ...string) {
	l.t.Helper()
	r := l.run(append(args, "--json")...)
	var report struct{ Error failure }
	if err := json.Unmarshal([]byte(r.stderr), &report); err != nil || r.code != exit || report.Error.Code != code {
		l.t.Errorf("nasbackup %q: exit code %d, %v, error %+v; want %d and %q", args, r.code, err, report.Error, exit, code)
	}
}

func (l *lab) backup(kind kvmbackup.Kind, reason kvmbackup.ReasonCode, args ...string) kvmbackup.Backup {
	l.t.Helper()
	var b kvmbackup.Backup
	l.get(&b, append([]string{"backup", guestName}, args...)...)
	if b.Kind != kind || len(b.Reasons) == 0 || b.Reasons[0].Code != reason || b.Status != kvmbackup.StatusCompleted {
		l.t.Errorf("a %v backup because of %v, want %v because of %s", b.Kind, b.Reasons, kind, reason)
	}
	return b
}

// list returns what list prints, a line for each backup.
func (l *lab) list(args ...string) []kvmbackup.Backup {
	l.t.Helper()
	r := l.run(append([]string{"list", "--json"}, args...)...)
	var all []kvmbackup.Backup
	for line := range strings.Lines(r.stdout) {
		var b kvmbackup.Backup
		if err := json.Unmarshal([]byte(line), &b); err != nil {
			l.t.Fatalf("%v in %q", err, line)
		}
		all = append(all, b)
	}
	return all
}

// restores compares a restore to raw files with what the disks held.
func (l *lab) restores(b kvmbackup.Backup, want map[string][]byte) {
	l.t.Helper()
	dir := l.path("restored-" + string(b.ID[:8]))
	var done engine.Restored
	l.get(&done, "restore", string(b.ID), "--to", dir, "--format", "raw")
	if len(done.Volumes) != len(want) {
		l.t.Errorf("restored %+v", done)
	}
	for _, v := range done.Volumes {
		has, err := os.ReadFile(v.Path)
		if err != nil {
			l.t.Fatal(err)
		}
		if !bytes.Equal(has, want[v.Device]) {
			l.t.Errorf("%s of %s is not what the disk held", v.Device, b.Path)
		}
	}
}
