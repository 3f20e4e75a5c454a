package qcow2_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// lying makes an image whose data is in another file, which the header names: what a server that lies can make of an
// image after its header was looked at.
func lying(t testing.TB, path, secret string) {
	t.Helper()
	scratch := secret + ".made"
	if out, err := run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+scratch+",data_file_raw=on", path,
		"1M"); err != nil {
		t.Fatal(err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	name := (secret + strings.Repeat("\x00", len(scratch)))[:len(scratch)]
	if err := errors.Join(os.WriteFile(path, []byte(strings.Replace(string(image), scratch, name, 1)), 0o600),
		os.Remove(scratch)); err != nil {
		t.Fatal(err)
	}
}

// TestRoom: tools open what they are given, and nothing that a header names. Where the kernel has no Landlock they do
// open it, which is why headers are looked at first: the test says so, and that the tools run.
func TestRoom(t *testing.T) {
	t.Parallel()
	lab.Need(t, "qemu-img", "qemu-io", "qemu-nbd")
	tool, dir := newTool(t), t.TempDir()
	secret, image := filepath.Join(dir, "secret"), filepath.Join(dir, "image")
	if err := os.WriteFile(secret, []byte(strings.Repeat("secret", 1<<18)), 0o600); err != nil {
		t.Fatal(err)
	}
	lying(t, image, secret)
	base := filepath.Join(dir, "base")
	create(t, tool, base, qcow2.CreateOptions{SizeBytes: mib})
	ctx := t.Context()
	alone := []qcow2.Layer{}
	_, check := tool.Check(ctx, image, qcow2.CheckOptions{})
	_, digest := tool.Digest(ctx, image, alone)
	_, mapped := tool.Map(ctx, image, qcow2.MapOptions{Backing: alone})
	convert := tool.Convert(ctx, image, filepath.Join(dir, "copy"), qcow2.ConvertOptions{Backing: alone})
	into := tool.Convert(ctx, base, image, qcow2.ConvertOptions{Backing: alone, TargetExists: true})
	server, serve := tool.ServeNBD(ctx, qcow2.NBDOptions{
		Path: image, Backing: alone, Socket: filepath.Join(dir, "socket"), ReadOnly: true,
	})
	if server != nil {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}
	for what, err := range map[string]error{"check": check, "digest": digest, "map": mapped, "convert": convert,
		"convert into": into, "serve": serve} {
		switch {
		case qcow2.Confines() && !errors.Is(err, qcow2.ErrPermission):
			t.Errorf("%s: %v, want %v", what, err, qcow2.ErrPermission)
		case !qcow2.Confines() && err != nil:
			t.Errorf("%s, on a kernel without Landlock: %v", what, err)
		}
	}
	if !qcow2.Confines() {
		t.Log("this kernel has no Landlock: tools open what headers name")
		return
	}
	if data, err := os.ReadFile(secret); err != nil || string(data) != strings.Repeat("secret", 1<<18) {
		t.Error("the file outside was written to", err)
	}
	open := newToolWith(t, qcow2.Config{Unconfined: true})
	if _, err := open.Check(ctx, image, qcow2.CheckOptions{}); errors.Is(err, qcow2.ErrPermission) {
		t.Errorf("without a room: %v", err)
	}
}

// TestRoomOfOthers: another user than root has rooms too, and this process is never in one.
func TestRoomOfOthers(t *testing.T) {
	if os.Getenv("KVMBACKUP_ROOM_CHILD") == "" {
		lab.Need(t, "qemu-img", "qemu-io")
		if os.Geteuid() != 0 {
			return // TestRoom has shown it
		}
		self := filepath.Join(t.TempDir(), "test")
		data, err := os.ReadFile(os.Args[0])
		if err != nil {
			t.Fatal(err)
		}
		for dir := filepath.Dir(self); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(self, data, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^TestRoom$", "-test.v")
		asNobody(cmd)
		cmd.Env = append(os.Environ(), "KVMBACKUP_ROOM_CHILD=1", "TMPDIR="+filepath.Dir(self), "HOME=/")
		cmd.Dir = "/"
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "PASS: TestRoom") {
			t.Errorf("as an unprivileged user: %v\n%s", err, out)
		}
	}
	for range 50 { // threads that were confined are gone
		if err := os.WriteFile(filepath.Join(t.TempDir(), "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
