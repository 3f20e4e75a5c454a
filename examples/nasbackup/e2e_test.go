package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	tools "github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestEndToEnd is an operator's life with one domain: each command is a process of its own.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.write(0, 0x11, 0, 8<<20)
	l.write(1, 0x12, 1<<20, 1<<20)
	if r := l.run("init"); r.code != exitDone {
		t.Fatal("init")
	}
	for _, command := range []string{"plan", "backup", "doctor", "recover", "forget"} {
		l.fail(exitNotFound, "no-domain", command, "nobody")
	}
	var report doctorReport
	l.get(&report, "doctor", guestName) // without a backup yet
	if v := report.Versions; report.VM != guestName || v.Libvirt == "" || v.QEMU == "" || v.QEMUImg == "" ||
		len(v.Features) == 0 {
		t.Errorf("doctor: %+v", report)
	}
	if r := l.run("doctor", guestName); !strings.Contains(r.stdout, "libvirt "+report.Versions.Libvirt+", QEMU ") {
		t.Error("doctor doesn't print the versions")
	}
	var plan engine.Plan
	l.get(&plan, "plan", guestName)
	if plan.Kind != kvmbackup.KindFull || plan.Reasons[0].Code != kvmbackup.ReasonNoActiveCheckpoint ||
		len(plan.Volumes) != 2 {
		t.Errorf("plan of the first backup: %+v", plan)
	}
	first, held1 := l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint, "--digests"), l.now()
	l.write(0, 0x21, 4<<20, 2<<20)
	second, held2 := l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental, "--digests"), l.now()
	l.write(1, 0x31, 0, 64<<10)
	third, held3 := l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental, "--quiesce"), l.now()
	if !slices.ContainsFunc(third.Reasons, func(r kvmbackup.Reason) bool { return r.Code == engine.ReasonQuiesceFailed }) {
		t.Errorf("a guest without an agent was quiesced: %v", third.Reasons)
	}
	fourth := l.backup(kvmbackup.KindFull, kvmbackup.ReasonChainComplete, "--full-every", "3")

	if all := l.list(guestName); len(all) != 4 || all[1].ParentID != first.ID || all[3].ChainID == first.ChainID {
		t.Errorf("list: %+v", all)
	}
	var shown kvmbackup.Backup
	l.get(&shown, "show", second.Path)
	if shown.ID != second.ID {
		t.Errorf("show %s: %+v", second.Path, shown)
	}
	if r := l.run("verify", "--all", "--content"); r.code != exitDone || strings.Count(r.stdout, ": ok, ") != 4 {
		t.Error("verify finds damage")
	}
	l.restores(second, held2)
	l.restores(third, held3)
	l.get(&engine.Diagnosis{}, "doctor", guestName)
	l.deletions(first, second, third, fourth)
	l.restores(first, held1)
}

// deletions leaves the first and, delete-pending until then, nothing of the second.
func (l *lab) deletions(first, second, third, fourth kvmbackup.Backup) {
	l.t.Helper()
	var d deletion
	l.get(&d, "delete", string(second.ID))
	if len(d.Remove) != 0 || len(d.Pending) != 1 || d.ClearsActive {
		l.t.Errorf("delete of a parent: %+v", d)
	}
	l.fail(exitFailed, "wrong-status", "restore", string(second.ID), "--to", l.path("x"))
	if all := l.list(guestName, "--all"); len(all) != 4 || all[1].Status != kvmbackup.StatusDeletePending {
		l.t.Errorf("list --all: %+v", all)
	}
	l.get(&d, "delete", string(third.ID[:8]))
	if len(d.Remove) != 2 || d.Remove[0].ID != third.ID || d.Remove[1].ID != second.ID {
		l.t.Errorf("delete of the last child: %+v", d)
	}
	l.get(&d, "delete", guestName+"/latest")
	if !d.ClearsActive || d.Backup != fourth.ID {
		l.t.Errorf("delete of the newest: %+v", d)
	}
	l.fail(exitFailed, "not-consistent", "backup", guestName, "--require-consistent")
	if all := l.list(); len(all) != 1 || all[0].ID != first.ID {
		l.t.Errorf("left: %+v", all)
	}
	if left, _ := filepath.Glob(l.path("nas/vm1/*")); len(left) != 1+l.missed {
		l.t.Errorf("left in the repository: %v", left)
	}
	var after engine.Diagnosis
	l.get(&after, "doctor", guestName)
	if after.Record.ActiveCheckpoint != "" || !after.Healthy() {
		l.t.Errorf("after the deletion of the newest: %+v", after)
	}
}

// TestOptions goes through what the other tests leave out.
func TestOptions(t *testing.T) {
	tools.Further(t)
	t.Parallel()
	l := newLab(t)
	l.run("init")
	first := l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint)
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonForced, "--full")
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonIncrementalDisabled, "--no-incremental")
	l.guest("stop")
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonStopped)
	l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental, "--offline-incremental")

	l.crashed(first, "2030.01.01.00.00.00")
	var d engine.Diagnosis
	if l.expect(exitFailed, &d, "doctor", guestName); d.Healthy() || d.Findings[0].Code != engine.FindingRunningRecord {
		t.Errorf("doctor finds %+v", d)
	}
	var r engine.Recovery
	if l.get(&r, "recover", guestName); r.VM != guestName || r.Outcome != engine.RecoveryUndone {
		t.Errorf("recover did %+v", r)
	}
	l.crashed(first, "2030.01.01.00.00.01")
	if l.get(&d, "doctor", guestName, "--repair"); !d.Healthy() || len(d.Findings) > 0 {
		t.Errorf("doctor --repair leaves %+v", d)
	}

	var kept retention
	l.get(&kept, "retain", guestName, "--keep-last", "1")
	if all := l.list("--all"); len(kept.Backups) != 5 || len(all) != 4 || all[0].Status != kvmbackup.StatusDeletePending ||
		all[1].Status != kvmbackup.StatusCompleted {
		t.Errorf("retain did %+v and left %+v", kept, all)
	}
	var gone deletion
	l.get(&gone, "delete", string(l.list("--all")[0].ID), "--force")
	if len(gone.Remove) != 2 || len(l.list()) != 0 {
		t.Errorf("delete --force did %+v", gone)
	}
}

// crashed leaves the record of a backup that a process began before it died, and whose lease has run out.
func (l *lab) crashed(like kvmbackup.Backup, stamp string) {
	l.t.Helper()
	store := openRecords(l.t, l.path("nas"), l.path("records.db"))
	lease, err := store.AcquireLease(l.t.Context(), like.VM, "a process that died", 1<<40)
	if err != nil {
		l.t.Fatal(err)
	}
	like.ID, like.Status, like.CompletedAt = kvmbackup.NewBackupID(), kvmbackup.StatusRunning, time.Time{}
	like.Path, like.Checkpoint = guestName+"/"+stamp, kvmbackup.CheckpointName("nasbackup-x-"+stamp)
	if _, err := store.Begin(l.t.Context(), lease, like); err != nil {
		l.t.Fatal(err)
	}
	if err := store.ReleaseLease(l.t.Context(), lease); err != nil {
		l.t.Fatal(err)
	}
	l.open()
}

// TestTwoRepositories takes backups of one domain to two of them, with records of their own: each has a chain of its
// own.
func TestTwoRepositories(t *testing.T) {
	tools.Further(t)
	t.Parallel()
	l := newLab(t)
	l.file("other/.keep", "")
	l.open()
	other := []string{"--repo", l.path("other"), "--store", l.path("other.db")}
	l.run("init")
	l.run(append([]string{"init"}, other...)...)
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint)
	l.write(0, 0x11, 0, 1<<20)
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint, other...)
	l.write(0, 0x21, 2<<20, 1<<20)
	l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental, other...)
	second, held := l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental), l.now()
	l.get(&engine.Diagnosis{}, append([]string{"doctor", guestName}, other...)...)
	l.restores(second, held)
}

// TestLostStore rebuilds the records from the repository, without a hypervisor.
func TestLostStore(t *testing.T) {
	tools.Further(t)
	t.Parallel()
	l := newLab(t)
	l.run("init")
	l.write(0, 0x11, 0, 1<<20)
	first := l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint)
	l.write(0, 0x21, 0, 1<<20)
	second, held := l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental), l.now()
	l.guest("stop")
	for _, name := range []string{"records.db", "records.db-wal", "records.db-shm"} {
		if err := os.RemoveAll(l.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	nowhere := []string{"--connect", "qemu+unix:///system?socket=/nothing/there"}
	if r := l.run(append([]string{"import", "--json"}, nowhere...)...); strings.Count(r.stdout, `"added":true`) != 2 {
		t.Error("import did not add both")
	}
	if all := l.list(); len(all) != 2 || all[0].ID != first.ID || all[1].ID != second.ID {
		t.Errorf("rebuilt: %+v", all)
	}
	l.restores(second, held)
	l.fail(exitFailed, "unavailable", append([]string{"backup", guestName}, nowhere...)...)
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonStopped)
}

// TestInPlace restores over the disks of a guest that is off.
// TestVMID: a domain whose name can't be a folder's has its backups under a name that is given.
func TestVMID(t *testing.T) {
	tools.Further(t)
	t.Parallel()
	l := newLab(t)
	l.write(0, 0x11, 0, 1<<20)
	held := l.now()
	l.run("init")
	l.guest("stop")
	for i, domain := range []string{"a<b", "-rf", "web."} {
		uuid := fmt.Sprintf("0b0e7a3c-8a3c-4f0e-9a53-6f6b3cf1b00%d", i)
		l.guest("define", domain, uuid)
		for _, command := range []string{"plan", "backup", "doctor", "recover", "import"} {
			if r := l.run(command, "--", domain); r.code == exitDone || !strings.Contains(r.stderr, "--vm-id") {
				t.Errorf("%s of %s: no way out: %d\n%s", command, domain, r.code, r.stderr)
			}
		}
		do := func(v any, command string, flags ...string) {
			t.Helper()
			r := l.run(append(append([]string{command, "--json", "--vm-id", uuid}, flags...), "--", domain)...)
			if err := json.Unmarshal([]byte(r.stdout), v); r.code != exitDone || err != nil {
				t.Fatalf("%s of %s: %d, %v", command, domain, r.code, err)
			}
		}
		var plan engine.Plan
		if do(&plan, "plan"); string(plan.VM) != uuid {
			t.Errorf("%+v", plan)
		}
		var b, listed kvmbackup.Backup
		do(&b, "backup")
		if do(&listed, "list"); string(b.VM) != uuid || b.Domain != domain || listed.ID != b.ID {
			t.Errorf("%+v, listed %+v", b, listed)
		}
		do(&engine.Diagnosis{}, "doctor")
		do(&engine.Imported{}, "import")
		if r := l.run("recover", "--vm-id", uuid, "--", domain); r.code != exitDone {
			t.Error("recover")
		}
		l.restores(b, held)
		l.get(&engine.Restored{}, "restore", uuid+"/latest", "--in-place")
		do(&retention{}, "retain", "--keep-last", "1")
		do(&map[string]string{}, "forget")
	}
	if r := l.run("backup", "-rf"); r.code != exitUsage || !strings.Contains(r.stderr, `"--"`) {
		t.Errorf("no way out: %d\n%s", r.code, r.stderr)
	}
}

func TestInPlace(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.run("init")
	l.write(0, 0x11, 0, 1<<20)
	first, held := l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint), l.now()
	l.write(0, 0x21, 512<<10, 4<<20)
	l.write(1, 0x22, 0, 4<<20)
	l.fail(exitFailed, "domain-running", "restore", string(first.ID), "--in-place")
	l.guest("stop")
	l.get(&engine.Restored{}, "restore", string(first.ID), "--in-place")
	for device, want := range held {
		path := l.path(device + ".was")
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := l.tool.Compare(t.Context(), l.path(device+".qcow2"), path,
			qcow2.CompareOptions{FormatB: qcow2.FormatRaw}); err != nil {
			t.Error(err)
		}
	}
	l.guest("start")
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint)
	l.get(&map[string]string{}, "forget", guestName)
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint)
}

// TestCtrlC interrupts backups, one of them twice, and lets one run into its time limit: they leave nothing behind, and
// the next one is as cheap as the first of them would have been.
func TestCtrlC(t *testing.T) {
	// Not in parallel: the job has to be there still when the signal comes.
	l := newLab(t)
	l.run("init")
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint)
	l.spread(0x21)
	l.interrupt(os.Interrupt, os.Interrupt)
	l.nothingLeft(1)
	l.interrupt(syscall.SIGTERM)
	l.nothingLeft(2)
	l.fail(exitFailed, "timeout", "backup", guestName, "--timeout", "1ms")
	l.nothingLeft(2)
	second, held := l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental), l.now()
	l.restores(second, held)
	var found engine.Diagnosis
	l.get(&found, "doctor", guestName)
}

// interrupt sends the signals to a backup whose job runs. A job may copy all that there is before its limit holds; then
// it is done again.
func (l *lab) interrupt(signals ...os.Signal) {
	l.t.Helper()
	for range 10 {
		if l.interruptOnce(signals...) {
			return
		}
		l.missed++
		l.spread(byte(0x30 + l.missed))
	}
	l.t.Fatal("every backup was over before it was interrupted")
}

func (l *lab) interruptOnce(signals ...os.Signal) bool {
	l.t.Helper()
	cmd := l.process("program", "backup", guestName, "--bandwidth", "1", "--verbose")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.startPinned(cmd); err != nil {
		l.t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.Contains(lines.Text(), `step="follow job"`) {
	}
	for _, s := range signals {
		if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
			l.t.Error(err)
		}
	}
	rest, _ := io.ReadAll(stderr)
	_ = cmd.Wait() // the exit code is what counts
	code := cmd.ProcessState.ExitCode()
	if code != exitFailed && code != 0 {
		l.t.Errorf("%v: %v\n%s", signals, cmd.ProcessState, rest)
	}
	return code != 0
}

// nothingLeft looks after some backups have failed that came after the first.
func (l *lab) nothingLeft(failed int) {
	l.t.Helper()
	if all := l.list("--all"); len(all) != 1+l.missed+failed ||
		all[l.missed+failed].Status != kvmbackup.StatusFailed {
		l.t.Errorf("after the interruption: %+v", all)
	}
	if left, _ := filepath.Glob(l.path("nas/vm1/*")); len(left) != 1+l.missed {
		l.t.Errorf("left in the repository: %v", left)
	}
}
