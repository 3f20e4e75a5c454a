package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/seal"
)

// identityFile makes a private key, as age-keygen does, and returns the file's name and the public one.
func (l *lab) identityFile(name string) (file, public string) {
	l.t.Helper()
	i, err := age.GenerateX25519Identity()
	if err != nil {
		l.t.Fatal(err)
	}
	file, public = l.path(name), i.Recipient().String()
	if err := os.WriteFile(file, []byte("# public key: "+public+"\n"+i.String()+"\n"), 0o644); err != nil {
		l.t.Fatal(err)
	}
	return file, public
}

// watchProcesses gathers the arguments and environments of all processes until the function that it returns is called.
func watchProcesses(t *testing.T) (seen func() string) {
	t.Helper()
	var all strings.Builder
	known := map[string]bool{}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"} {
				files, _ := filepath.Glob(pattern) // the pattern is sound
				for _, f := range files {
					b, err := os.ReadFile(f) // the process may be gone
					if text := string(b); err == nil && !known[text] {
						known[text] = true
						all.WriteString(text)
					}
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() string {
		close(stop)
		<-done
		return all.String()
	}
}

// TestSealed takes backups for a public key, reads them with the private one, and gives them to another.
func TestSealed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	old, oldKey := l.identityFile("old.txt")
	fresh, freshKey := l.identityFile("fresh.txt")
	l.file("recipients.txt", "# who reads\n"+oldKey+"\n")
	l.run("init")
	seen := watchProcesses(t)
	printed := &strings.Builder{}
	verbose := func(args ...string) {
		r := l.run(append(args, "--verbose")...)
		printed.WriteString(r.stdout + r.stderr)
		if r.code != exitDone {
			t.Errorf("nasbackup %q: %d", args, r.code)
		}
	}
	l.write(0, 0x11, 0, 1<<20)
	l.fail(exitUsage, "usage", "backup", guestName, "--recipient", "age1nobody")
	l.fail(exitFailed, "unsupported", "backup", guestName, "--recipient", oldKey) // it runs, and there is no scratch
	l.guest("stop")
	held := l.now()
	var first, second kvmbackup.Backup
	l.get(&first, "backup", guestName, "--recipient", oldKey, "--compress", "zstd")
	l.get(&second, "backup", guestName, "--recipients-file", l.path("recipients.txt"), "--offline-incremental")
	if !slices.Equal(first.KeyIDs, []string{oldKey}) || second.Kind != kvmbackup.KindIncremental ||
		second.Volumes[0].FileEncryption != kvmbackup.EncryptionLUKS ||
		first.Volumes[0].Compression != kvmbackup.CompressionZstd {
		t.Errorf("taken: %+v, %+v", first, second)
	}
	l.fail(exitFailed, "no-key", "restore", string(second.ID), "--to", l.path("nothing"))
	l.fail(exitFailed, "no-key", "verify", string(second.ID), "--identity", fresh)
	var report engine.VerifyReport
	if l.get(&report, "verify", string(second.ID)); !slices.Equal(report.MissingKeys, []string{oldKey}) {
		t.Errorf("verified without a key: %+v", report)
	}
	l.getsBack(second, held, "before", "--identity", old)
	verbose("backup", guestName, "--recipient", oldKey, "--offline-incremental")
	verbose("restore", guestName+"/latest", "--to", l.path("verbose"), "--identity", old)
	verbose("verify", guestName+"/latest", "--content", "--identity", old)
	l.fail(exitUsage, "usage", "rekey", "--all", "--identity", old)
	r := l.run("rekey", guestName, "--identity", old, "--recipient", freshKey, "--json")
	if strings.Count(r.stdout, `"changed":true`) != 3 {
		t.Errorf("rekeyed: %s", r.stdout)
	}
	l.fail(exitFailed, "no-key", "restore", string(second.ID), "--to", l.path("nothing"), "--identity", old)
	l.getsBack(second, held, "after", "--identity", fresh)
	report = engine.VerifyReport{}
	if l.get(&report, "verify", string(second.ID), "--content", "--identity", fresh); len(report.MissingKeys) > 0 ||
		!report.OK() {
		t.Errorf("verified with the key: %+v", report)
	}
	l.comparesSealed(freshKey, verbose)
	said := map[string]string{"arguments and environments": seen(), "what was printed": printed.String()}
	if !strings.Contains(said["arguments and environments"], "qemu-storage-daemon") ||
		!strings.Contains(said["what was printed"], "step=") {
		t.Error("nothing was seen")
	}
	l.holdsNoKey(said, fresh)
	l.importsSealed(first, second, fresh)
}

// importsSealed gives one backup the wrapped key of another, and rebuilds the records: with an identity that is
// noticed.
func (l *lab) importsSealed(of, in kvmbackup.Backup, identity string) {
	l.t.Helper()
	read := func(b kvmbackup.Backup) (repository.Manifest, string) {
		name := l.path("nas/" + b.Path + "/backup.json")
		text, err := os.ReadFile(name)
		if err != nil {
			l.t.Fatal(err)
		}
		m, err := repository.DecodeManifest(text)
		if err != nil {
			l.t.Fatal(err)
		}
		return m, name
	}
	other, _ := read(of)
	m, name := read(in)
	text, err := m.WithKeys(other.Keys).Encode()
	if err = errors.Join(err, os.WriteFile(name, text, 0o644)); err != nil {
		l.t.Fatal(err)
	}
	for _, name := range []string{"records.db", "records.db-wal", "records.db-shm"} {
		if err := os.RemoveAll(l.path(name)); err != nil {
			l.t.Fatal(err)
		}
	}
	r := l.run("import", "--identity", identity, "--json")
	// the first, and the index's two
	if strings.Count(r.stdout, `"added":true`) != 3 || !strings.Contains(r.stdout, "MAC") {
		l.t.Errorf("imported with the identity: %s", r.stdout)
	}
	if r := l.run("import", "--json"); strings.Count(r.stdout, `"added":true`) != 2 {
		l.t.Errorf("imported without: %s", r.stdout)
	}
}

var indexKey = strings.Repeat("5a", 32)

// comparesSealed compares with backups that nobody opens, by an index under a key in a file, which is looked for, too.
func (l *lab) comparesSealed(recipient string, verbose func(args ...string)) {
	l.t.Helper()
	l.file("index.key", indexKey+"\n")
	l.file("short.key", indexKey[2:])
	args := []string{guestName, "--recipient", recipient, "--compare", "--offline-incremental", "--index-key-file",
		l.path("index.key")}
	l.fail(exitUsage, "usage", "backup", guestName, "--index-key-file", l.path("short.key"))
	l.fail(exitFailed, "unsupported", append([]string{"backup"}, args...)...) // there is no index yet
	verbose(append([]string{"backup", "--full"}, args...)...)
	var b kvmbackup.Backup
	l.get(&b, append([]string{"backup"}, args...)...)
	if b.Kind != kvmbackup.KindIncremental || b.Volumes[0].DirtyBytes != 0 {
		l.t.Errorf("compared, %d bytes are stored: %v", b.Volumes[0].DirtyBytes, b.Reasons)
	}
	if err := os.Remove(l.path("index.key")); err != nil {
		l.t.Fatal(err)
	}
}

// holdsNoKey looks for the backups' data keys in the texts and in every file of the lab, those of images and records
// included.
func (l *lab) holdsNoKey(texts map[string]string, identity string) {
	l.t.Helper()
	keys := seal.New()
	text, err := os.ReadFile(identity)
	if err = errors.Join(err, keys.AddIdentities(bytes.NewReader(text))); err != nil {
		l.t.Fatal(err)
	}
	secrets := map[string]string{"the index key": indexKey}
	manifests, _ := filepath.Glob(l.path("nas/" + guestName + "/*/backup.json"))
	for _, name := range manifests {
		b, err := os.ReadFile(name)
		if err != nil {
			l.t.Fatal(err)
		}
		m, err := repository.DecodeManifest(b)
		if err != nil {
			l.t.Fatal(err)
		}
		key, err := keys.UnwrapKey(l.t.Context(), m.Keys)
		if err != nil {
			l.t.Fatal(err)
		}
		raw, _ := key.MarshalBinary() // never fails
		secrets[m.Path+": its data key"], secrets[m.Path+": its data key in hexadecimal"] = string(raw),
			hex.EncodeToString(raw)
		secrets[m.Path+": its images' secret"] = key.ImagesSecret()
		for _, v := range m.Volumes {
			secrets[m.Path+": the secret of "+v.File] = key.ImageSecret(v.File)
		}
	}
	if len(manifests) != 5 || len(secrets) <= 5*3 {
		l.t.Fatalf("%d secrets of %d backups to look for", len(secrets), len(manifests))
	}
	err = filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			b, rerr := os.ReadFile(path)
			texts[path], err = string(b), rerr
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	for where, text := range texts {
		for what, secret := range secrets {
			if strings.Contains(text, secret) {
				l.t.Errorf("%s is in %s", what, where)
			}
		}
	}
}

// getsBack restores raw and compares.
func (l *lab) getsBack(b kvmbackup.Backup, held map[string][]byte, dir string, flags ...string) {
	l.t.Helper()
	var done engine.Restored
	l.get(&done, append([]string{"restore", string(b.ID), "--to", l.path(dir), "--format", "raw"}, flags...)...)
	if len(done.Volumes) != len(held) {
		text, _ := json.Marshal(done)
		l.t.Errorf("restored %s", text)
	}
	for _, v := range done.Volumes {
		got, err := os.ReadFile(v.Path)
		if err != nil || !bytes.Equal(got, held[v.Device]) {
			l.t.Errorf("%s of %s is not what it was: %v", v.Device, filepath.Base(v.Path), err)
		}
	}
}
