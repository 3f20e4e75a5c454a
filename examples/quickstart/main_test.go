package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// runEnv makes the test binary the program itself.
const runEnv = "KVMBACKUP_QUICKSTART_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(runEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestQuickstart runs the program and looks at what it decided.
func TestQuickstart(t *testing.T) {
	cmd, temp := program(t)
	out, err := cmd.Output()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("the program failed: %v", err)
	}
	var decided []string
	for _, m := range regexp.MustCompile(`decided: (\w+)`).FindAllSubmatch(out, -1) {
		decided = append(decided, string(m[1]))
	}
	if want := []string{"full", "incremental", "incremental", "full"}; !slices.Equal(decided, want) {
		t.Errorf("decided %v, want %v", decided, want)
	}
	for text, want := range map[string]int{"is identical": 4, "#2 is delete-pending": 1, "removed demo/": 2,
		strings.Repeat("#", 30) + "] ": 6, "\r": 0} {
		if has := bytes.Count(out, []byte(text)); has != want {
			t.Errorf("%q is there %d times, want %d", text, has, want)
		}
	}
	nothingLeft(t, temp)
}

// TestInterrupt sends Ctrl-C twice while the guest is there.
func TestInterrupt(t *testing.T) {
	cmd, temp := program(t)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "decided: full") {
	}
	for range 2 {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
	}
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("the interrupted program ended with %v, not with exit code 1", err)
	}
	nothingLeft(t, temp)
}

// program is the quickstart with a folder for its temporary files.
func program(t *testing.T) (cmd *exec.Cmd, temp string) {
	t.Helper()
	lab.Need(t, "qemu-img", "qemu-system-x86_64")
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	temp, err = os.MkdirTemp("", "qs") //nolint:usetesting // short: paths of sockets below it are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(temp) })
	if err := os.Chmod(temp, 0o777); err != nil { // root may become an ordinary user
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), executable)
	cmd.Env = append(os.Environ(), runEnv+"=1", "TMPDIR="+temp)
	cmd.Stderr = t.Output()
	return cmd, temp
}

// nothingLeft looks for files and processes of the program.
func nothingLeft(t *testing.T, temp string) {
	t.Helper()
	if left, _ := os.ReadDir(temp); len(left) > 0 {
		t.Errorf("%s is left in %s", left, temp)
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range commands {
		if text, _ := os.ReadFile(path); bytes.Contains(text, []byte(temp)) { // a process may end meanwhile
			t.Errorf("left running: %q", text)
		}
	}
}
