package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	tools "github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/internal/testpg"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// measured depends on the file system.
var measured = regexp.MustCompile(`"removed_bytes":[1-9][0-9]*`)

// golden compares what the program printed with testdata/NAME.
func (f *fixture) golden(name string, r result) {
	f.t.Helper()
	path := filepath.Join("testdata", name)
	if f.id != "" {
		r.stdout = strings.ReplaceAll(r.stdout, f.id, "REPOSITORY-ID")
	}
	r.stdout = measured.ReplaceAllString(r.stdout, `"removed_bytes":"MEASURED"`)
	if *update {
		if err := os.WriteFile(path, []byte(r.stdout), 0o644); err != nil {
			f.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	if r.stdout != string(want) {
		f.t.Errorf("%s: printed\n%s\nwant\n%s", name, r.stdout, want)
	}
	if strings.HasSuffix(name, ".json") && r.stderr != "" {
		f.t.Errorf("%s: with --json stderr is for the error alone, it has: %s", name, r.stderr)
	}
}

// TestJSON pins the machine-readable output.
func TestJSON(t *testing.T) {
	f := newFixture(t)
	f.golden("list.json", f.must("list", "web", "--json"))
	f.golden("show.json", f.must("show", "web/latest", "--json"))
	f.golden("import.json", f.must("import", "--json"))
	f.golden("retain.json", f.must("retain", "web", "--keep-daily", "1", "--dry-run", "--json"))
	f.golden("delete-plan.json", f.must("delete", web1, "--dry-run", "--json"))
	f.golden("delete-force-plan.json", f.must("delete", "web/2026.11.24.07.04.50", "--force", "--dry-run", "--json"))
	f.golden("delete-pending.json", f.must("delete", "2222", "--json"))
	f.golden("delete-cascade.json", f.must("delete", "2333", "--json"))
	f.golden("list-all.json", f.must("list", "--all", "--json"))
}

// TestText pins what people see.
func TestText(t *testing.T) {
	f := newFixture(t)
	f.golden("list.txt", f.must("list"))
	f.golden("show.txt", f.must("show", "web/latest"))
	f.golden("recipe.txt", f.must("show", "web/latest", "--recipe"))
	f.golden("retain.txt", f.must("retain", "web", "--keep-last", "1", "--dry-run"))
	f.golden("delete.txt", f.must("delete", web2))
	f.golden("list-all.txt", f.must("list", "web", "--all"))
}

// TestPlan: what keeps a backup from being taken now is part of its plan.
func TestPlan(t *testing.T) {
	p := engine.Plan{VM: "web", Decision: kvmbackup.Decision{Kind: kvmbackup.KindFull}, EstimateBytes: 1 << 30}
	said := func() string {
		var out bytes.Buffer
		printPlan(&out, p)
		return out.String()
	}
	if text := said(); strings.Contains(text, "not now") {
		t.Errorf("nothing is in its way: %s", text)
	}
	p.Blocked = &kvmbackup.SpaceError{NeedBytes: 1 << 30, FreeBytes: 1<<30 - 1, Where: "the repository"}
	if text := said(); !strings.Contains(text, "not now: the repository has 1073741823 bytes free") ||
		!strings.Contains(text, "--ignore-space") {
		t.Errorf("one byte too few: %s", text)
	}
	p.Blocked = &kvmbackup.BusyError{VM: "web", Holder: "blockcommit"}
	if text := said(); !strings.Contains(text, "not now: \"web\" is busy: held by blockcommit") ||
		strings.Contains(text, "--ignore-space") {
		t.Errorf("and a job: %s", text)
	}
}

func TestHelp(t *testing.T) {
	f := &fixture{t: t}
	f.golden("help.txt", f.must("help"))
	f.golden("help-backup.txt", f.must("backup", "--help"))
	f.golden("help-restore.txt", f.must("help", "restore"))
}

// TestUsage: a command line that can't be carried out does nothing, and says so.
func TestUsage(t *testing.T) {
	f := newFixture(t)
	for _, args := range [][]string{
		{},
		{"frobnicate"},
		{"list", "--frobnicate"},
		{"list", "web", "mail"},
		{"backup"},
		{"backup", "web", "--full-every", "0"},
		{"backup", "web", "--full-every", "many"},
		{"backup", "web", "--bandwidth", "-1"},
		{"backup", "web", "--bandwidth", "99999999999999"},
		{"backup", "web", "--transfer", "offline"},
		{"backup", "web", "--transfer", "somehow"},
		{"backup", "web", "--transfer", "pull"},
		{"backup", "web", "--recipients-file", ""},
		{"backup", "web", "--recipient", ""},
		{"verify", web1, "--identity", ""},
		{"plan", "web", "--transfer", "pull"},
		{"plan"},
		{"show"},
		{"show", "2"},
		{"verify"},
		{"verify", web1, "--all"},
		{"restore", web1},
		{"restore", web1, "--to", "x", "--in-place"},
		{"restore", web1, "--to", "x", "--drop-snapshots"},
		{"restore", web1, "--to", "x", "--format", "vmdk"},
		{"restore", web1, "--to", "x", "--volume", "=x"},
		{"restore", web1, "--to", "x", "--volume", "vda", "--volume", "disk-web"},
		{"restore", web1, "--in-place", "--format", "raw"},
		{"retain", "web"},
		{"retain", "web", "--keep-last", "-1"},
		{"delete"},
		{"man"},
	} {
		f.fail(exitUsage, "usage", args...)
	}
	unnamed := &fixture{t: t}
	unnamed.fail(exitUsage, "usage", "list")
	r := f.run("list", "--frobnicate")
	if !strings.Contains(r.stderr, "frobnicate") || !strings.Contains(r.stderr, "\nUsage: nasbackup list [DOMAIN] ") ||
		r.stdout != "" {
		t.Errorf("without --json: %+v", r)
	}
}

// TestErrors: each failure has its exit code and its code in the JSON.
func TestErrors(t *testing.T) {
	tools.Need(t, "qemu-img") // verify and restore ask for it first
	f := newFixture(t)
	const unknown = "99999999-0000-4000-8000-000000000009"
	for _, command := range [][]string{{"show"}, {"delete"}, {"restore", "--to", t.TempDir()}} {
		f.fail(exitNotFound, "no-backup", append(command, unknown)...)
		f.fail(exitNotFound, "no-backup", append(command, "nobody/latest")...)
		f.fail(exitNotFound, "no-backup", append(command, "9999")...)
	}
	f.fail(exitNotFound, "no-backup", "retain", "nobody", "--keep-last", "1")
	f.fail(exitNotFound, "no-backup", "retain", "nobody", "--keep-last", "1", "--dry-run")
	f.must("delete", web1)
	f.fail(exitFailed, "wrong-status", "verify", web1)
	f.fail(exitFailed, "invalid", "list", "--scratch", "relative")
	elsewhere := &fixture{t: t, args: []string{"--repo", t.TempDir(), "--store", filepath.Join(t.TempDir(), "x.db")}}
	elsewhere.fail(exitFailed, "no-repository", "list")
	if r := elsewhere.run("list"); !strings.Contains(r.stderr, "nasbackup init") {
		t.Errorf("no way out: %s", r.stderr)
	}
}

// TestEmpty: where there is nothing yet, people are told so, and programs get nothing.
func TestEmpty(t *testing.T) {
	tools.Need(t, "qemu-img")
	f := &fixture{t: t, args: []string{"--repo", t.TempDir(), "--store", filepath.Join(t.TempDir(), "records.db")}}
	f.must("init")
	for _, command := range [][]string{{"list"}, {"verify", "--all"}, {"import"}} {
		if r := f.must(command...); r.stdout != "no backups\n" || r.stderr != "" {
			t.Errorf("%q: %+v", command, r)
		}
		if r := f.must(append(command, "--json")...); r.stdout != "" || r.stderr != "" {
			t.Errorf("%q --json: %+v", command, r)
		}
	}
}

// TestBadStore: what is said of a store that can't be opened names it once, and no password.
func TestBadStore(t *testing.T) {
	f := newFixture(t)
	for store, want := range map[string]struct {
		exit int
		text string
	}{
		"/nothing/there.db":                    {exitFailed, "/nothing/there.db"},
		"postgres://op:secret@127.0.0.1:1/db":  {exitFailed, "127.0.0.1:1"},
		"postgres://op:secret word@[broken/db": {exitFailed, "PostgreSQL"},
		"mysql://op:secret@127.0.0.1/db":       {exitUsage, "mysql://"},
	} {
		f.args[3] = store
		r := f.run("list")
		if r.code != want.exit || !strings.Contains(r.stderr, want.text) || strings.Count(r.stderr, "unable to open") > 1 ||
			strings.Contains(r.stderr, "secret") {
			t.Errorf("%s: exit code %d\n%s", store, r.code, r.stderr)
		}
	}
}

// TestBusy: another process holds the VM.
func TestBusy(t *testing.T) { newFixture(t).busy() }

// TestPostgreSQL keeps the records there.
func TestPostgreSQL(t *testing.T) {
	f := newFixture(t)
	host, _, _ := strings.Cut(strings.TrimPrefix(testpg.DSN(t), "host="), " ")
	f.args[3] = "postgres:///postgres?user=postgres&host=" + host
	f.must("import")
	f.golden("list.json", f.must("list", "web", "--json"))
	f.busy()
}

func (f *fixture) busy() {
	f.t.Helper()
	store := openRecords(f.t, f.dir, f.args[3])
	lease, err := store.AcquireLease(f.t.Context(), "web", "somebody else", 1<<40)
	if err != nil {
		f.t.Fatal(err)
	}
	f.fail(exitBusy, "busy", "delete", web3)
	if err := store.ReleaseLease(f.t.Context(), lease); err != nil {
		f.t.Fatal(err)
	}
	f.must("delete", web3)
}

// TestVerifyAndRestore need qemu-img and no hypervisor.
func TestVerifyAndRestore(t *testing.T) {
	tools.Need(t, "qemu-img")
	f := newFixture(t)
	f.golden("verify.json", f.must("verify", web3, "--json"))
	if r := f.must("verify", web3, "--content"); !strings.Contains(r.stdout, ": ok, 3 files; content not compared") {
		t.Errorf("content that could not be compared: %s", r.stdout)
	}
	to := filepath.Join(t.TempDir(), "restored")
	f.must("restore", web3, "--to", to, "--format", "raw")
	if info, err := os.Stat(filepath.Join(to, "vda.disk-web.raw")); err != nil || info.Size() != 1<<20 {
		t.Errorf("the restored file: %v, %v", info, err)
	}
	f.fail(exitFailed, "target-exists", "restore", web3, "--to", to, "--format", "raw")
	f.must("restore", web3, "--volume", "vda="+filepath.Join(to, "other.qcow2"))
	f.fail(exitNotFound, "no-volume", "restore", web3, "--to", to, "--volume", "vdz")

	if err := os.WriteFile(filepath.Join(f.dir, "web", "2026.11.24.07.04.50", "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := f.must("verify", web3); !strings.Contains(r.stdout, ": ok, 3 files") ||
		!strings.Contains(r.stdout, "note, no damage: extra: ") {
		t.Errorf("a file that isn't the backup's: %s", r.stdout)
	}

	damaged := filepath.Join(f.dir, "web", "2026.11.24.07.04.50", "root.disk-web.qcow2")
	if err := os.Remove(damaged); err != nil {
		t.Fatal(err)
	}
	f.fail(exitDamaged, "missing-file", "restore", web3, "--to", t.TempDir())
	f.fail(exitDamaged, "damaged", "verify", web3)
	f.fail(exitDamaged, "damaged", "verify", "--all")
	if r := f.run("verify", "--all", "--json"); strings.Count(r.stdout, `"problems":[]`) != 2 {
		t.Errorf("web's full and mail's are sound, the report says %s", r.stdout)
	}
	r := f.must("retain", "web", "--keep-last", "1", "--dry-run")
	if strings.Count(r.stdout, "is damaged and counts for no rule") != 2 ||
		!strings.Contains(r.stdout, "keep    last ") {
		t.Errorf("the full is kept, as the two that stand on the lost file are damaged; the plan says %s", r.stdout)
	}
}

func TestMan(t *testing.T) {
	f := &fixture{t: t}
	dir := filepath.Join(t.TempDir(), "man")
	f.must("man", dir)
	for _, page := range []string{"nasbackup.1", "nasbackup-backup.1", "nasbackup-retain.1"} {
		if _, err := os.Stat(filepath.Join(dir, page)); err != nil {
			t.Error(err)
		}
	}
	if r := f.must("completion", "bash"); !strings.Contains(r.stdout, "nasbackup") {
		t.Error("no completion for bash")
	}
}

// TestDocs: every command line of the README is one.
func TestDocs(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile("(?:^|[\\s`/])nasbackup ([a-z][^#|`>\n]*)").FindAllStringSubmatch(string(readme), -1)
	for _, m := range lines {
		root := newApp(io.Discard, io.Discard).rootCommand()
		root.InitDefaultCompletionCmd()
		cmd, args, err := root.Find(strings.Fields(m[1]))
		if err == nil {
			err = cmd.ParseFlags(args)
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err != nil {
			t.Errorf("%s: %v", m[0], err)
		}
	}
	if len(lines) < 10 {
		t.Errorf("found %d", len(lines))
	}
}

func TestComplete(t *testing.T) {
	f := newFixture(t)
	t.Setenv("NASBACKUP_REPO", f.dir)
	t.Setenv("NASBACKUP_STORE", f.args[3])
	shell := &fixture{t: t}
	if r := shell.run("__complete", "list", ""); !strings.HasPrefix(r.stdout, "mail\nweb\n") {
		t.Errorf("domains: %q", r.stdout)
	}
	if r := shell.run("__complete", "show", "web/"); strings.Count(r.stdout, "web/2026") != 3 {
		t.Errorf("backups: %q", r.stdout)
	}
}
