package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	tools "github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestEndToEndDefine restores to new domains, which start beside the one that was backed up and are backed up
// themselves.
func TestEndToEndDefine(t *testing.T) {
	tools.Further(t)
	t.Parallel()
	l := newLab(t)
	l.run("init")
	l.guest("stop")
	l.guest("start-uefi")
	l.variables("of the original")
	l.write(0, 0x11, 0, 8<<20)
	l.backup(kvmbackup.KindFull, kvmbackup.ReasonNoActiveCheckpoint)
	l.write(1, 0x21, 1<<20, 64<<10)
	second, held := l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental, "--digests"), l.now()
	l.write(0, 0x31, 0, 1<<20)

	l.notDefined(second)
	made := l.defines(second, held, "copy", "--host-access")
	if made.Domain.UUID == guestUUID || made.Domain.Name != "copy" || made.Domain.NVRAM != l.path("new/copy_VARS.fd") {
		t.Errorf("defined %+v", made.Domain)
	}
	xml := l.xml("copy")
	for _, text := range []string{guestUUID, guestMAC, l.path("vda.qcow2"), l.path(guestName + "_VARS.fd")} {
		if strings.Contains(xml, text) {
			t.Errorf("%s of the original is in\n%s", text, xml)
		}
	}
	if now, err := os.ReadFile(made.Domain.NVRAM); err != nil || !bytes.Contains(now, []byte("of the original")) {
		t.Errorf("the variables are others: %v", err)
	}
	for _, want := range []kvmbackup.Kind{kvmbackup.KindFull, kvmbackup.KindIncremental} {
		var own kvmbackup.Backup
		if l.get(&own, "backup", "copy"); own.Kind != want || own.ChainID == second.ChainID {
			t.Errorf("the new domain's backup is %+v", own)
		}
	}
	l.backup(kvmbackup.KindIncremental, kvmbackup.ReasonIncremental)
}

// variables marks the guest's UEFI variables. The guest has no system that would.
func (l *lab) variables(text string) {
	l.t.Helper()
	path := l.path(guestName + "_VARS.fd")
	data, err := os.ReadFile(path)
	if err != nil {
		l.t.Fatal(err)
	}
	copy(data[len(data)-len(text):], text)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// defines restores to a new domain and starts it.
func (l *lab) defines(b kvmbackup.Backup, want map[string][]byte, name string, args ...string) restoredDomain {
	l.t.Helper()
	var made restoredDomain
	l.get(&made, append([]string{"restore", string(b.ID), "--to", l.path("new"), "--define", name}, args...)...)
	for _, v := range made.Volumes {
		raw := l.path(v.Device + ".was")
		if err := os.WriteFile(raw, want[v.Device], 0o644); err != nil {
			l.t.Fatal(err)
		}
		if err := l.tool.Compare(l.t.Context(), v.Path, raw, qcow2.CompareOptions{FormatB: qcow2.FormatRaw}); err != nil {
			l.t.Error(err)
		}
	}
	l.guest("boot", name)
	return made
}

// xml returns the definition of a domain; nothing if no domain has the name.
func (l *lab) xml(name string) string {
	l.t.Helper()
	cmd := l.process("guest", l.dir, "xml", name)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, l.t.Output()
	if err := l.runPinned(cmd); err != nil {
		l.t.Fatal(err)
	}
	return out.String()
}

// notDefined asks for what can't be had: each has its error, before anything is made.
func (l *lab) notDefined(b kvmbackup.Backup) {
	l.t.Helper()
	l.file("taken/copy_VARS.fd", "another's")
	l.open()
	restore := func(args ...string) []string {
		return append([]string{"restore", string(b.ID), "--define", "copy", "--to", l.path("new")}, args...)
	}
	l.fail(exitFailed, "invalid", restore()...) // its serial port is a file of the host
	l.fail(exitFailed, "invalid", restore("--host-access", "--volume", "vda")...)
	l.fail(exitNotFound, "no-volume", restore("--host-access", "--volume", "vdx")...)
	l.fail(exitFailed, "target-exists", restore("--host-access", "--define", guestName)...)
	l.fail(exitFailed, "target-exists", restore("--host-access", "--to", l.path("taken"))...)
	l.withoutFile(b, "domain.xml", func() { l.fail(exitDamaged, "missing-file", restore("--host-access")...) })
	l.withoutFile(b, b.Volumes[0].File, func() { l.fail(exitDamaged, "missing-file", restore("--host-access")...) })
	if xml := l.xml("copy"); xml != "" {
		l.t.Errorf("a domain was defined:\n%s", xml)
	}
	if left, _ := filepath.Glob(l.path("new/*")); len(left) > 0 {
		l.t.Errorf("left: %v", left)
	}
	if left, _ := filepath.Glob(l.path("taken/*")); len(left) != 1 {
		l.t.Errorf("beside the file that was there: %v", left)
	}
}

// withoutFile calls f while a file of the backup isn't there.
func (l *lab) withoutFile(b kvmbackup.Backup, name string, f func()) {
	l.t.Helper()
	path := filepath.Join(l.path("nas"), b.Path, name)
	if err := os.Rename(path, l.path("away")); err != nil {
		l.t.Fatal(err)
	}
	f()
	if err := os.Rename(l.path("away"), path); err != nil {
		l.t.Fatal(err)
	}
}
