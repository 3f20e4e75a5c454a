package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// fixture is a repository with the backups F I I of the domain web, and F of mail, and a store that was imported from
// it.
type fixture struct {
	t    *testing.T
	dir  string // the repository's
	id   string // the repository's
	args []string
}

// The IDs differ in their first digits.
const (
	web1  = "11111111-0000-4000-8000-000000000001"
	web2  = "22222222-0000-4000-8000-000000000002"
	web3  = "23333333-0000-4000-8000-000000000003"
	mail1 = "44444444-0000-4000-8000-000000000004"

	chainWeb  = "aaaaaaaa-0000-4000-8000-00000000000a"
	chainMail = "bbbbbbbb-0000-4000-8000-00000000000b"
)

var webTime = time.Date(2026, 11, 23, 7, 4, 50, 0, time.UTC)

func newFixture(t *testing.T) *fixture {
	t.Helper()
	t.Setenv("NASBACKUP_REPO", "")
	t.Setenv("NASBACKUP_STORE", "")
	t.Setenv("NASBACKUP_CONNECT", "")
	f := &fixture{t: t, dir: filepath.Join(t.TempDir(), "nas")}
	f.args = []string{"--repo", f.dir, "--store", filepath.Join(t.TempDir(), "records.db"), "--wait", "0s",
		"--connect", "qemu+unix:///system?socket=/nothing/there"} // no command of these tests gets far enough to need one
	if err := os.Mkdir(f.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var made struct{ Repository string }
	f.decode(f.must("init", "--json"), &made)
	f.id = made.Repository
	for i, id := range []kvmbackup.BackupID{web1, web2, web3} {
		f.publish(manifest("web", chainWeb, id, i))
	}
	f.publish(manifest("mail", chainMail, mail1, 0))
	f.must("import")
	return f
}

// manifest describes the backup at a position of a chain with one volume.
func manifest(vm kvmbackup.VMID, chain kvmbackup.ChainID, id kvmbackup.BackupID, position int) repository.Manifest {
	at := func(p int) time.Time { return webTime.Add(time.Duration(p) * 24 * time.Hour) }
	stamp := func(p int) string { return at(p).Format("2006.01.02.15.04.05") }
	folder := func(p int) string { return fmt.Sprintf("%s/%s", vm, stamp(p)) }
	b := kvmbackup.Backup{
		ID: id, VM: vm, Domain: string(vm), DomainUUID: "5c1a0000-0000-4000-8000-000000000017", Kind: kvmbackup.KindFull,
		ChainID: chain, Position: position, Checkpoint: kvmbackup.CheckpointName("kvmbackup-" + stamp(position)),
		Path: folder(position), Sequence: int64(position + 1), StartedAt: at(position),
		CompletedAt: at(position).Add(90 * time.Second), Consistency: kvmbackup.ConsistencyCrash,
		Reasons: []kvmbackup.Reason{{Code: kvmbackup.ReasonNoActiveCheckpoint}},
		Volumes: []kvmbackup.VolumeBackup{{
			VolumeID: kvmbackup.VolumeID("disk-" + vm), Device: "vda", Kind: kvmbackup.KindFull,
			File:        fmt.Sprintf("root.disk-%s.qcow2", vm),
			VirtualSize: 1 << 20, StoredSize: 196 << 10, DirtyBytes: 1 << 20, SourceFormat: "qcow2", Tracked: true,
		}},
	}
	if position > 0 {
		b.Kind, b.ParentID = kvmbackup.KindIncremental, []kvmbackup.BackupID{web1, web2}[position-1]
		b.Reasons = []kvmbackup.Reason{{Code: kvmbackup.ReasonIncremental, Detail: fmt.Sprintf("position %d", position)}}
		v := &b.Volumes[0]
		v.Kind, v.DirtyBytes = kvmbackup.KindIncremental, 64<<10
		v.ParentFile = kvmbackup.Backup{Path: folder(position - 1)}.BackingLink(v.File)
	}
	return repository.NewManifest(b)
}

// publish puts a backup into the repository, with real images where qemu-img is there.
func (f *fixture) publish(m repository.Manifest) {
	f.t.Helper()
	ctx := f.t.Context()
	repo, err := repository.Open(ctx, f.dir, repository.Options{NoSync: true})
	if err != nil {
		f.t.Fatal(err)
	}
	dir, err := repo.CreatePartial(ctx, m.Path, m.ID)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, v := range m.Volumes {
		f.image(filepath.Join(dir, v.File), v)
	}
	if err := repo.Publish(ctx, m); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) image(path string, v kvmbackup.VolumeBackup) {
	f.t.Helper()
	tool, err := qcow2.New(qcow2.Config{})
	if err == nil {
		err = tool.Create(f.t.Context(), path, qcow2.CreateOptions{SizeBytes: v.VirtualSize, BackingFile: v.ParentFile})
	} else {
		err = os.WriteFile(path, []byte("stands for an image"), 0o644)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// result is what one run of the program gave.
type result struct {
	code           int
	stdout, stderr string
}

// run runs the program within this process.
func (f *fixture) run(args ...string) result {
	var stdout, stderr bytes.Buffer
	code := run(f.t.Context(), append(args, f.args...), &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// must is run for what has to succeed.
func (f *fixture) must(args ...string) result {
	f.t.Helper()
	r := f.run(args...)
	if r.code != exitDone {
		f.t.Fatalf("nasbackup %q: exit code %d\n%s%s", args, r.code, r.stdout, r.stderr)
	}
	return r
}

// decode reads what was printed with --json.
func (f *fixture) decode(r result, v any) {
	f.t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), v); err != nil {
		f.t.Fatalf("%v in %q", err, r.stdout)
	}
}

// fail runs what has to end with the exit code and, as JSON, the error's code.
func (f *fixture) fail(exit int, code string, args ...string) {
	f.t.Helper()
	r := f.run(append(args, "--json")...)
	var report struct{ Error failure }
	if err := json.Unmarshal([]byte(r.stderr), &report); err != nil {
		f.t.Fatalf("nasbackup %q: stderr is no JSON: %v\n%s", args, err, r.stderr)
	}
	if r.code != exit || report.Error.Code != code || report.Error.Message == "" {
		f.t.Errorf("nasbackup %q: exit code %d and %+v, want %d and %q", args, r.code, report.Error, exit, code)
	}
}

// openRecords opens a store as the program does.
func openRecords(t *testing.T, dir, store string) *sqlstore.Store {
	t.Helper()
	a := newApp(io.Discard, io.Discard)
	a.store = store
	repo, err := repository.Open(t.Context(), dir, repository.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &session{repo: repo}
	records, err := a.openStore(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.closers[0]() })
	return records
}
