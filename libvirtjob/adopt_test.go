package libvirtjob_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// TestAdopt kills the process that began a job, and follows the job to its end from another. A process has only one
// libvirt root, so both are helpers: this test binary again, on a root of their own.
func TestAdopt(t *testing.T) { both(t, lab.Sparse(2), testAdopt) }

func testAdopt(t *testing.T, way kvmbackup.Transfer) {
	t.Parallel()
	realguest.Need(t)
	root, err := realguest.NewRoot()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { realguest.RemoveRoot(root) })
	dir := t.TempDir()

	first, lines := startHelper(t, way, "TestHelperBegins", root, dir)
	for lines.Scan() && lines.Text() != "begun" {
		t.Log(lines.Text())
	}
	if err := first.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait()

	second, lines := startHelper(t, way, "TestHelperAdopts", root, dir)
	var text strings.Builder
	for lines.Scan() {
		text.WriteString(lines.Text() + "\n")
	}
	if err := second.Wait(); err != nil || !strings.Contains(text.String(), "adopted") {
		t.Fatalf("second helper: %v\n%s", err, text.String())
	}
}

const (
	helperDirEnv = "KVMBACKUP_HELPER_DIR"
	helperWayEnv = "KVMBACKUP_HELPER_WAY"
)

func startHelper(t *testing.T, way kvmbackup.Transfer, test, root, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), helperDirEnv+"="+dir, helperWayEnv+"="+way.String(), "KVMBACKUP_REALGUEST_ROOT="+root,
		"TMPDIR="+dir, "LIBVIRT_LOG_OUTPUTS=")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, bufio.NewScanner(out)
}

// helperState is what the first helper tells the second.
type helperState struct {
	Ref   kvmbackup.DomainRef
	Spec  kvmbackup.JobSpec
	Model string
}

// TestHelperBegins is the first process: it begins a job that doesn't end, and waits to be killed.
func TestHelperBegins(t *testing.T) {
	dir := os.Getenv(helperDirEnv)
	if dir == "" {
		return // only for TestAdopt
	}
	b := newBench(t, realguest.Config{Disks: bigDisks("vda"), Persistent: true})
	b.must(b.way.UnmarshalText([]byte(os.Getenv(helperWayEnv))))
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("c0", "", full("vda")) // an outcome that must not be taken for the next job's
	b.spread("vda", 0x12)
	_, spec := b.slow("c1", "c0", incr("vda"))
	text, err := json.Marshal(helperState{b.ref, spec, b.guest.Model("vda").Path()})
	b.must(err)
	b.must(os.WriteFile(filepath.Join(dir, "state.json"), text, 0o644))
	fmt.Println("begun")
	select {}
}

// TestHelperAdopts is the second process.
func TestHelperAdopts(t *testing.T) {
	dir := os.Getenv(helperDirEnv)
	if dir == "" {
		return // only for TestAdopt
	}
	text, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s helperState
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	b := &bench{T: t, ctx: t.Context(), exec: newExecutor(t), ref: s.Ref, dir: s.Spec.Dir}
	if got := b.inspect(); got.Job != kvmbackup.JobBackup || len(got.Checkpoints) != 2 {
		t.Errorf("status is %+v", got)
	}
	other := s.Spec
	other.Dir, other.Scratch = "/elsewhere", filepath.Join(dir, "elsewhere")
	_, err = b.exec.AdoptJob(b.ctx, b.ref, other)
	b.wantErr(err, kvmbackup.ErrNoJob)

	known := s.Spec
	if known.Scratch != "" { // the host's configuration has changed since
		known.Scratch = filepath.Join(dir, filepath.Base(known.Scratch))
	}
	job, err := b.exec.AdoptJob(b.ctx, b.ref, known)
	b.must(err)
	b.must(job.SetBandwidth(b.ctx, 0))
	if s.Spec.Transfer == kvmbackup.TransferPull {
		b.endLeftPull(job, s.Spec)
		fmt.Println("adopted")
		return
	}
	result, err := job.Wait(b.ctx, nil)
	b.must(err)
	if result.TotalBytes != big || result.CopiedBytes["id-vda"] != big {
		t.Errorf("result is %+v", result)
	}
	realguest.OpenModel(t, s.Model).Compare(t, filepath.Join(s.Spec.Dir, s.Spec.Volumes[0].File))
	again, err := b.exec.AdoptJob(b.ctx, b.ref, s.Spec)
	b.must(err)
	result, err = again.Wait(b.ctx, nil)
	b.must(err)
	if result.TotalBytes != big || result.CopiedBytes["id-vda"] != big {
		t.Errorf("result of the job that has ended is %+v", result)
	}
	b.must(again.Abort(b.ctx))
	b.must(again.Close(b.ctx))
	b.must(b.exec.DropCheckpoint(b.ctx, b.ref, "c1"))
	_, err = b.exec.AdoptJob(b.ctx, b.ref, s.Spec)
	b.wantErr(err, kvmbackup.ErrNoJob)
	fmt.Println("adopted")
}

// endLeftPull ends a pull job whose process was killed: nobody reads what it exports.
func (b *bench) endLeftPull(job kvmbackup.Job, spec kvmbackup.JobSpec) {
	b.Helper()
	_, err := job.Wait(b.ctx, nil)
	b.wantErr(err, kvmbackup.ErrJobFailed)
	b.must(job.Abort(b.ctx))
	b.must(job.Close(b.ctx))
	if got := b.inspect().Job; got != kvmbackup.JobNone {
		b.Errorf("job is %v", got)
	}
	if _, err := os.Stat(spec.Scratch); !os.IsNotExist(err) {
		b.Errorf("the scratch is there: %v", err)
	}
	_, err = b.exec.AdoptJob(b.ctx, b.ref, spec)
	b.wantErr(err, kvmbackup.ErrNoJob)
	b.must(b.exec.DropCheckpoint(b.ctx, b.ref, spec.Checkpoint))
}
