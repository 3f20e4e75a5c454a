package remote_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/examples/hosts/remote"
	"github.com/kvmbackup/kvmbackup/executortest"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// world is the simulator at the other end of a wire.
type world struct {
	*executortest.Simulator
	t       testing.TB
	host    *httptest.Server
	handler atomic.Pointer[http.Handler]
	limit   time.Duration
	root    string        // where the repository is mounted on the host
	scratch []string      // its folders for scratches
	closed  chan struct{} // has something once a job was closed
}

func newWorld(t testing.TB, idleLimit time.Duration) *world {
	w := &world{
		Simulator: executortest.NewSimulator(t.TempDir()), t: t, limit: idleLimit, root: "/", closed: make(chan struct{}, 1),
	}
	w.boot()
	w.host = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
		(*w.handler.Load()).ServeHTTP(out, in)
	}))
	t.Cleanup(w.host.Close)
	return w
}

// boot starts the host's process again, which knows no handles.
func (w *world) boot() {
	h := (&remote.Server{
		Executor: closing{w.Simulator.Executor(), w.closed}, Root: w.root, Scratch: w.scratch, IdleLimit: w.limit,
	}).Handler()
	w.handler.Store(&h)
}

func (w *world) Executor() kvmbackup.Executor { return remote.New(w.host.URL, "/", w.host.Client()) }

// TestConformance: over the wire the executor is the same, but a data key doesn't go over it.
func TestConformance(t *testing.T) {
	executortest.Run(t, func(t testing.TB) executortest.World { return newWorld(t, 0) }, executortest.Parallel(),
		executortest.Without("history/sealed", "history/compared-sealed"))
}

// begun is a job that lasts some seconds, on a domain that runs or is off.
func (w *world) begun(stopped bool) (kvmbackup.DomainRef, kvmbackup.JobSpec, kvmbackup.Job) {
	w.t.Helper()
	name, err := w.Make(executortest.Domain{Disks: []executortest.Disk{{Device: "vda", SizeBytes: 1 << 20}}})
	lab.OK(w.t, err)
	lab.OK(w.t, w.Write("vda", 7, 0, 1<<19))
	if stopped {
		lab.OK(w.t, w.Stop())
	}
	share, err := w.Share()
	lab.OK(w.t, err)
	ref, source := kvmbackup.DomainRef{Name: name}, must(w.Source("vda"))
	spec := kvmbackup.JobSpec{
		ID: kvmbackup.NewBackupID(), Dir: filepath.Join(share, "1"), CreatedAt: time.Now(), BandwidthBytes: 1 << 20,
		Volumes: []kvmbackup.JobVolume{
			{VolumeID: "vol", Device: "vda", Source: source, Kind: kvmbackup.KindFull, File: "vda.qcow2", VirtualSize: 1 << 20},
		},
	}
	lab.OK(w.t, os.Mkdir(spec.Dir, 0o755))
	j, err := w.Executor().PrepareJob(w.t.Context(), ref, spec)
	lab.OK(w.t, err)
	lab.OK(w.t, j.Begin(w.t.Context()))
	return ref, spec, j
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// accident waits for a job and lets something happen to the wire when it has begun to move.
func accident(t *testing.T, j kvmbackup.Job, happens func()) (calls int, err error) {
	t.Helper()
	_, err = j.Wait(t.Context(), func(kvmbackup.JobProgress) {
		if calls++; calls == 1 {
			happens()
			lab.OK(t, j.SetBandwidth(t.Context(), 0))
		}
	})
	return calls, err
}

// TestBrokenConnection: the job goes on, and so does Wait, with progress meanwhile.
func TestBrokenConnection(t *testing.T) {
	w := newWorld(t, 0)
	_, _, j := w.begun(false)
	calls, err := accident(t, j, w.host.CloseClientConnections)
	if lab.OK(t, err); calls < 2 {
		t.Errorf("progress was told %d times", calls)
	}
	lab.OK(t, j.Close(t.Context()))
}

// TestHostStartsAgain: the new process adopts the job of a running domain; that of a stopped one ended with the old
// process.
func TestHostStartsAgain(t *testing.T) {
	for stopped, want := range map[bool]error{false: nil, true: kvmbackup.ErrJobFailed} {
		w := newWorld(t, 0)
		_, _, j := w.begun(stopped)
		_, err := j.Wait(t.Context(), func(kvmbackup.JobProgress) {
			w.host.CloseClientConnections()
			w.Hypervisor().KillHost()
			w.boot()
		})
		if !errors.Is(err, want) {
			t.Errorf("stopped %v: got the error %v, want %v", stopped, err, want)
		}
		lab.OK(t, j.Abort(t.Context()))
		lab.OK(t, j.Close(t.Context()))
	}
}

// TestClientDies: the handle that nobody uses is closed. The job of a running domain goes on and can be adopted; that
// of a stopped one ends, so that the domain can be started.
func TestClientDies(t *testing.T) {
	w := newWorld(t, 300*time.Millisecond)
	ref, spec, _ := w.begun(true)
	<-w.closed
	lab.OK(t, w.Start()) // nothing has its image open
	_, err := w.Executor().AdoptJob(t.Context(), ref, spec)
	lab.Fails(t, err, kvmbackup.ErrNoJob)

	w = newWorld(t, 300*time.Millisecond)
	ref, spec, _ = w.begun(false)
	<-w.closed
	adopted, err := w.Executor().AdoptJob(t.Context(), ref, spec)
	lab.OK(t, err)
	_, err = adopted.Wait(t.Context(), nil)
	lab.OK(t, err)
}

// TestPull: a pull keeps its scratch on the hypervisor's host. It outlives the connection, and what is left in the
// scratch is found and removed from afar.
func TestPull(t *testing.T) {
	ctx, here, scratch := t.Context(), lab.Tmpfs(t, "size=256m"), t.TempDir()
	w := newWorld(t, 0)
	w.root, w.scratch = here, []string{scratch}
	w.boot()
	vm, err := w.Make(executortest.Domain{Disks: []executortest.Disk{{Device: "vda", SizeBytes: 1 << 20}}})
	lab.OK(t, err)
	lab.OK(t, w.Write("vda", 7, 0, 1<<19))
	repo, err := repository.Init(ctx, here, repository.Options{})
	lab.OK(t, err)
	broken := false
	cfg := engine.Config{
		Store: memstore.New(), Repository: repo, Executor: remote.New(w.host.URL, here, w.host.Client()), Images: w.Images(),
		Scratch: []string{scratch}, OnEvent: func(ev engine.Event) {
			if ev.Type == engine.EventProgress && !broken {
				broken = true
				w.host.CloseClientConnections()
			}
		},
	}
	eng, err := engine.New(cfg)
	lab.OK(t, err)
	b, err := eng.Backup(ctx, engine.BackupRequest{
		VM: kvmbackup.VMID(vm), Policy: kvmbackup.Policy{Transfer: kvmbackup.TransferPull}, BandwidthBytes: 1 << 20,
	})
	lab.OK(t, err)
	lab.Equal(t, "way", b.Transfer, kvmbackup.TransferPull)
	lab.Equal(t, "the connection broke", broken, true)

	left := filepath.Join(scratch, "kvmbackup-"+string(b.ID))
	lab.OK(t, os.Mkdir(left, 0o755))
	target := engine.Target{VM: kvmbackup.VMID(vm)}
	d, err := eng.Inspect(ctx, target)
	lab.OK(t, err)
	if !slices.ContainsFunc(d.Findings, func(f engine.Finding) bool {
		return f.Code == engine.FindingLeftScratch && f.Path == left
	}) {
		t.Errorf("what is left isn't found: %v", d)
	}
	_, err = eng.Repair(ctx, target)
	lab.OK(t, err)
	if names, err := os.ReadDir(scratch); err != nil || len(names) > 0 {
		t.Errorf("the scratch has %v, %v", names, err)
	}
}

// TestNoOtherFolder: a client of the server reaches no other folder of its host than those for scratches.
func TestNoOtherFolder(t *testing.T) {
	w := newWorld(t, 0)
	scratch, other := t.TempDir(), t.TempDir()
	w.scratch = []string{scratch}
	w.boot()
	kept := filepath.Join(other, "kept")
	lab.OK(t, os.Mkdir(kept, 0o755))
	host := w.Executor().(engine.ScratchHost)
	_, _, errSpace := host.ScratchSpace(t.Context(), other)
	_, errEntries := host.ScratchEntries(t.Context(), other)
	_, errJob := w.Executor().PrepareJob(t.Context(), kvmbackup.DomainRef{Name: "x"}, kvmbackup.JobSpec{
		Dir: "/x", Scratch: kept,
	})
	for _, err := range []error{errSpace, errEntries, errJob, host.RemoveScratch(t.Context(), other, "kept")} {
		lab.Fails(t, err, kvmbackup.ErrScratch)
	}
	for _, name := range []string{"", ".", "..", "../" + filepath.Base(other), kept, "a/b"} {
		lab.Fails(t, host.RemoveScratch(t.Context(), scratch, name), kvmbackup.ErrInvalid)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}

// TestPathsOfAJob: whatever a job names in the repository is named as the host has it, and nothing outside of it is.
func TestPathsOfAJob(t *testing.T) {
	w := newWorld(t, 0)
	w.root = t.TempDir()
	seen := &seeing{Executor: w.Simulator.Executor()}
	w.host.Config.Handler = (&remote.Server{Executor: seen, Root: w.root}).Handler()
	prepare := func(dir string, parent ...string) error {
		_, err := remote.New(w.host.URL, "/mnt/nas", w.host.Client()).PrepareJob(t.Context(), kvmbackup.DomainRef{Name: "x"},
			kvmbackup.JobSpec{Dir: dir, Volumes: []kvmbackup.JobVolume{{Device: "vda", Parent: parent[1:], Index: parent[0]}}})
		return err
	}
	lab.Fails(t, prepare("/mnt/nas/vm/2", "/mnt/nas/vm/1/a.index", "/mnt/nas/vm/1/a", "/mnt/nas/vm/0/a"), errSeen)
	lab.Equal(t, "folder", seen.spec.Dir, w.root+"/vm/2")
	lab.Same(t, seen.spec.Volumes[0].Parent, []string{w.root + "/vm/1/a", w.root + "/vm/0/a"})
	lab.Equal(t, "index", seen.spec.Volumes[0].Index, w.root+"/vm/1/a.index")
	lab.Fails(t, prepare("/mnt/other", ""), kvmbackup.ErrInvalid)
	lab.Fails(t, prepare("/mnt/nas/vm/2", "", "/etc/passwd"), kvmbackup.ErrInvalid)
	lab.Fails(t, prepare("/mnt/nas/vm/2", "/etc/passwd"), kvmbackup.ErrInvalid)
}

var errSeen = kvmbackup.ErrUnsupported

// seeing prepares no job.
type seeing struct {
	kvmbackup.Executor
	spec kvmbackup.JobSpec
}

func (s *seeing) PrepareJob(_ context.Context, _ kvmbackup.DomainRef, spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	s.spec = spec
	return nil, errSeen
}

// closing tells when the server closes a job.
type closing struct {
	kvmbackup.Executor
	closed chan struct{}
}

type closingJob struct {
	kvmbackup.Job
	closed chan struct{}
}

func (c closing) PrepareJob(ctx context.Context, dom kvmbackup.DomainRef,
	spec kvmbackup.JobSpec) (kvmbackup.Job, error) {
	j, err := c.Executor.PrepareJob(ctx, dom, spec)
	return closingJob{j, c.closed}, err
}

func (c closingJob) Close(ctx context.Context) error {
	err := c.Job.Close(ctx)
	select {
	case c.closed <- struct{}{}:
	default:
	}
	return err
}

// TestUnreachable: nothing is known, and Abort says so when its time is over.
func TestUnreachable(t *testing.T) {
	w := newWorld(t, 0)
	_, _, j := w.begun(false)
	w.host.Close()
	if _, err := w.Executor().Inspect(t.Context(), kvmbackup.DomainRef{Name: "x"}); kvmbackup.Code(err) != "unavailable" {
		t.Errorf("Inspect: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := j.Abort(ctx); !errors.Is(err, kvmbackup.ErrJobStuck) {
		t.Errorf("Abort: %v", err)
	}
}
