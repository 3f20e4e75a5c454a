package libvirtjob_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// guardedEnv has what the program of TestGuard is told.
const guardedEnv = "KVMBACKUP_GUARDED"

// guardedProgram begins a pull job, and does nothing more until it is killed.
type guardedProgram struct {
	URI, Domain, UUID, Socket, Scratch string
	// Guarded starts a guard; a Silent one dies before it has said that the job began.
	Guarded, Silent bool
	// Spec is that of an Executor's job, which is begun in place of one of the program's own.
	Spec *kvmbackup.JobSpec
}

func (p guardedProgram) xml() string {
	return fmt.Sprintf("<domainbackup mode='pull'><server transport='unix' socket='%s'/><disks>"+
		"<disk name='vda' backup='yes' type='file'><scratch file='%s'/></disk></disks></domainbackup>", p.Socket, p.Scratch)
}

// TestGuardedProgram is that program, in a process of its own, which TestGuard starts.
func TestGuardedProgram(t *testing.T) {
	text := os.Getenv(guardedEnv)
	if text == "" {
		return
	}
	var p guardedProgram
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(json.Unmarshal([]byte(text), &p))
	if p.Spec != nil {
		exec := openExecutor(t, &realguest.Host{URI: p.URI})
		job, err := exec.PrepareJob(t.Context(), kvmbackup.DomainRef{Name: p.Domain, UUID: p.UUID}, *p.Spec)
		must(err)
		must(job.Begin(t.Context()))
		fmt.Println("the job runs, its guard is", 0)
		_, err = job.Wait(t.Context(), nil)
		must(err)
		return
	}
	conn, err := libvirt.NewConnect(p.URI)
	must(err)
	dom, err := conn.LookupDomainByName(p.Domain)
	must(err)
	pid := 0
	began := func() {}
	if p.Guarded {
		g, err := libvirtjob.StartGuard(t.Context(), p.URI, p.UUID, p.Socket)
		must(err)
		began, pid = g.Began, g.PID()
	}
	must(dom.BackupBegin(p.xml(), "", 0))
	if !p.Silent {
		began()
	}
	fmt.Println("the job runs, its guard is", pid)
	select {}
}

// start returns when the job runs, with the guard's process ID.
func (p guardedProgram) start(t *testing.T) (kill func(), guard int) {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestGuardedProgram$")
	cmd.Env, cmd.Stderr = append(os.Environ(), guardedEnv+"="+string(text)), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if pid, ok := strings.CutPrefix(lines.Text(), "the job runs, its guard is "); ok {
			guard, err = strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }, guard
		}
	}
	t.Fatalf("the program has begun no job: %v", cmd.Wait())
	return nil, 0
}

// smallScratch is a file system of its own, as visible to every libvirt that is started after it.
func smallScratch(t *testing.T, size string) string {
	t.Helper()
	lab.NeedRoot(t)
	dir, err := os.MkdirTemp("", "kvmb-") //nolint:usetesting // the paths of sockets are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size="+size, "kvmbackup-test", dir).
		CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// TestGuard kills a program with -9 while its pull job runs and nobody starts it again. The guest goes on writing more
// than the scratch holds. With the guard the job is gone within seconds, and every write is there; without one the job
// stays, and writes are lost.
func TestGuard(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	const written = 128 << 20
	for name, c := range map[string]struct{ guarded, silent bool }{
		"guarded":                        {true, false},
		"guarded, killed while it began": {true, true},
		"without a guard":                {false, false},
	} {
		t.Run(name, func(t *testing.T) {
			scratch := smallScratch(t, "64M")
			host := realguest.Daemon(t)
			b := newBench(t, realguest.Config{
				Host: host, Disks: []realguest.Disk{{Device: "vda", SizeBytes: written}}, Persistent: true,
			})
			b.exec = openExecutor(t, host)
			defer func() { b.must(b.exec.Close()) }()
			b.guest.Write("vda", 0x11, 0, written)
			kill, guard := guardedProgram{
				URI: host.URI, Domain: b.guest.Name, UUID: b.inspect().UUID, Socket: filepath.Join(scratch, "s"),
				Scratch: filepath.Join(scratch, "f"), Guarded: c.guarded, Silent: c.silent,
			}.start(t)
			if st := b.inspect(); st.Job != kvmbackup.JobBackup {
				t.Fatalf("no job: %+v", st)
			}
			if there, err := libvirtjob.GuardLook(host.URI, b.inspect().UUID, "/another/job"); there || err != nil ||
				b.inspect().Job != kvmbackup.JobBackup {
				t.Errorf("another job's guard: %v, %v", there, err)
			}
			if c.guarded { // as a terminal that is closed, or a service that is stopped, sends them to all
				b.must(syscall.Kill(guard, syscall.SIGHUP))
				b.must(syscall.Kill(guard, syscall.SIGTERM))
			}
			killed := time.Now()
			kill()
			gone := time.Duration(0)
			for at := int64(0); at < written; at += 1 << 20 {
				b.guest.Write("vda", 0x22, at, 1<<20)
				if gone == 0 && b.inspect().Job == kvmbackup.JobNone {
					gone = time.Since(killed)
				}
			}
			if !c.guarded {
				if gone != 0 {
					t.Errorf("the job has ended without a guard, after %v", gone)
				}
				b.must(b.guest.Domain().AbortJob())
				b.guest.Destroy()
				if b.same("vda") {
					t.Error("no write was lost: this test shows nothing of the guard")
				}
				return
			}
			t.Logf("the job was gone %v after the program", gone)
			if gone == 0 || gone > 5*time.Second {
				t.Errorf("the job was gone after %v", gone)
			}
			lab.Eventually(t, "the guard ends", func() bool { return syscall.Kill(guard, 0) != nil })
			b.guest.Destroy()
			if !b.same("vda") {
				t.Error("writes of the guest are lost")
			}
		})
	}
}

// TestGuardOfAPull kills a program with -9 in the middle of an Executor's pull job. The guest goes on writing all the
// while, the job is gone within seconds, and the next backup is an incremental.
func TestGuardOfAPull(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	host := realguest.Daemon(t)
	b := newBench(t, realguest.Config{Host: host, Disks: disks("vda"), Persistent: true})
	b.exec, b.way = openExecutor(t, host), kvmbackup.TransferPull
	defer func() { b.must(b.exec.Close()) }()
	b.backup("c1", "", full("vda"))
	b.guest.Write("vda", 0x22, 0, 32<<20)
	spec := b.spec("c2", "c1", incr("vda"))
	spec.BandwidthBytes = 1 << 20
	kill, _ := guardedProgram{URI: host.URI, Domain: b.guest.Name, UUID: b.inspect().UUID, Spec: &spec}.start(t)
	b.guest.Write("vda", 0x33, 8<<20, 8<<20)
	if st := b.inspect(); st.Job != kvmbackup.JobBackup {
		t.Fatalf("no job: %+v", st)
	}
	killed := time.Now()
	kill()
	for at := int64(0); b.inspect().Job != kvmbackup.JobNone; at++ {
		b.guest.Write("vda", byte(at), at%32<<20, 1<<20)
		if time.Since(killed) > 10*time.Second {
			t.Fatal("the job is still there")
		}
	}
	t.Logf("the job was gone %v after the program", time.Since(killed))
	_, err := b.exec.AdoptJob(b.ctx, b.ref, spec)
	b.wantErr(err, kvmbackup.ErrNoJob)
	if files := realguest.Files(b.room); len(files) > 0 {
		t.Errorf("left in the scratch: %q", files)
	}
	b.drop("c2")
	b.must(os.Remove(filepath.Join(spec.Dir, spec.Volumes[0].File)))
	b.backup("c2", "c1", incr("vda"))
	b.guest.Destroy()
	if !b.same("vda") {
		t.Error("writes of the guest are lost")
	}
}

// same says whether the image has what the guest wrote.
func (b *bench) same(device string) bool {
	b.Helper()
	err := exec.CommandContext(b.ctx, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", b.guest.Model(device).Path(),
		b.guest.Image(device)).Run()
	return err == nil
}

// TestGuardIsDismissed: a guard ends when its program says so, and leaves the job alone.
func TestGuardIsDismissed(t *testing.T) {
	t.Parallel()
	scratch := smallScratch(t, "64M")
	host := realguest.Daemon(t)
	b := newBench(t, realguest.Config{Host: host, Disks: disks("vda"), Persistent: true})
	b.exec = openExecutor(t, host)
	defer func() { b.must(b.exec.Close()) }()
	p := guardedProgram{Socket: filepath.Join(scratch, "s"), Scratch: filepath.Join(scratch, "f")}
	g, err := libvirtjob.StartGuard(b.ctx, host.URI, b.inspect().UUID, p.Socket)
	b.must(err)
	b.must(b.guest.Domain().BackupBegin(p.xml(), "", 0))
	g.Began()
	g.Dismiss()
	g.Dismiss()
	if !g.Ended() || b.inspect().Job != kvmbackup.JobBackup {
		t.Errorf("the guard has ended: %v, the job: %v", g.Ended(), b.inspect().Job)
	}
	if there, err := libvirtjob.GuardLook(host.URI, b.inspect().UUID, p.Socket); !there || err != nil {
		t.Errorf("its own job: %v, %v", there, err)
	}
	lab.Eventually(t, "the job is aborted", func() bool { return b.inspect().Job == kvmbackup.JobNone })
	if there, err := libvirtjob.GuardLook(host.URI, b.inspect().UUID, p.Socket); there || err != nil {
		t.Errorf("no job any more: %v, %v", there, err)
	}
	if there, err := libvirtjob.GuardLook(host.URI, "00000000-0000-4000-8000-000000000000", p.Socket); there ||
		err != nil {
		t.Errorf("no such domain: %v, %v", there, err)
	}
}
