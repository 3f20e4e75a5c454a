package stories_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/seal"
)

// A chain of plain, sealed and compressed backups, of the VM running and stopped, taken by a host that has the
// recipient alone, is restored with the identity, and by hand with what is printed for it.
func TestSealedChain(t *testing.T) {
	t.Parallel()
	lab.Need(t, "age", "age-keygen", "bash")
	s := tell(t, config{Disks: disks("vda", "vdb"), Persistent: true})
	nas := lab.Tmpfs(t, "size=256m") // apart from the scratch
	s.must(os.Chmod(nas, 0o777))
	scratch, identity := t.TempDir(), filepath.Join(t.TempDir(), "identity.txt")
	s.tool("age-keygen", "-o", identity)
	recipient := strings.TrimSpace(s.tool("age-keygen", "-y", identity))
	public, private := seal.New(), seal.New()
	s.must(public.AddRecipient(recipient))
	text, err := os.ReadFile(identity)
	s.must(err)
	s.must(private.AddIdentities(strings.NewReader(string(text))))
	db := filepath.Join(t.TempDir(), "db")
	c := s.newConsumer("", nas, db, func(c *engine.Config) { c.Scratch, c.Keys = []string{scratch}, public })
	reader := s.newConsumer("", nas, db, func(c *engine.Config) { c.Keys = private })
	take := func(way kvmbackup.Transfer, sealed kvmbackup.Encryption, compressed kvmbackup.Compression) kvmbackup.Backup {
		t.Helper()
		s.write("vda", byte(len(c.taken)+1), int64(len(c.taken)), 3)
		s.write("vdb", byte(len(c.taken)+77), 2, 1)
		req := s.request()
		req.Policy = kvmbackup.Policy{FullEvery: 100, OfflineIncremental: true, Encryption: sealed, Compression: compressed}
		if way != kvmbackup.TransferOffline {
			req.Policy.Transfer = way
		}
		b := s.backupBy(c, req)
		if b.Transfer != way || b.Volumes[0].FileEncryption != sealed || b.Position != len(c.taken)-1 {
			t.Errorf("backed up by %v at %d with %q", b.Transfer, b.Position, b.Volumes[0].FileEncryption)
		}
		return b
	}
	take(kvmbackup.TransferPull, kvmbackup.EncryptionLUKS, kvmbackup.CompressionZstd)
	take(kvmbackup.TransferPush, "", "")
	take(kvmbackup.TransferPull, kvmbackup.EncryptionLUKS, "")
	s.guest.Destroy()
	take(kvmbackup.TransferOffline, kvmbackup.EncryptionLUKS, kvmbackup.CompressionZstd)

	if _, err := c.engine.Restore(s.ctx, engine.RestoreRequest{Backup: c.taken[3].ID, Dir: t.TempDir()}); err == nil {
		t.Error("the host that has the recipient alone reads its backups")
	}
	s.unproved = 0
	for _, b := range c.taken {
		s.restore(reader, b)
		s.byHand(b, identity)
	}
	s.overlays(reader, c.taken[3])
	s.disksExchanged(reader, c.taken[2])
}

// disksExchanged gives two disks' files of one backup each other's names after their digests were compared: neither
// opens, and the error names the file.
func (s *story) disksExchanged(c *consumer, b taken) {
	s.Helper()
	folder := filepath.Join(c.dir, b.Path)
	one, other := filepath.Join(folder, b.Volumes[0].File), filepath.Join(folder, b.Volumes[1].File)
	s.must(errors.Join(os.Rename(one, one+".x"), os.Rename(other, one), os.Rename(one+".x", other)))
	for _, v := range b.Volumes {
		_, err := c.engine.Restore(s.ctx, engine.RestoreRequest{Backup: b.ID, Dir: s.TempDir(), SkipDigests: true,
			Volumes: []engine.RestoreVolume{{ID: v.VolumeID}}})
		if !errors.Is(err, kvmbackup.ErrDamaged) || !errors.Is(err, qcow2.ErrSecret) ||
			!strings.Contains(err.Error(), v.File) {
			s.Errorf("two disks' files were exchanged: %v", err)
		}
	}
}

// overlays opens a backup and starts from its overlays.
func (s *story) overlays(c *consumer, b taken) {
	s.Helper()
	dir := s.TempDir()
	opened, err := c.engine.Open(s.ctx, engine.OpenRequest{Backup: b.ID, Dir: dir})
	s.must(err)
	s.Cleanup(func() { _ = opened.Close(context.Background()) })
	var disks []disk
	for _, v := range opened.Volumes {
		s.must(c.images.Compare(s.ctx, b.content[v.VolumeID].Path(), v.Path, qcow2.CompareOptions{FormatA: qcow2.FormatRaw}))
		disks = append(disks, disk{Device: v.Device, Path: v.Path})
	}
	second := startGuest(s.T, config{Disks: disks})
	second.Destroy()
	s.must(opened.Close(s.ctx))
	for _, file := range s.files(dir) {
		if strings.HasSuffix(file, ".socket") {
			s.Errorf("%s is left", file)
		}
	}
}

// tool runs a program and returns what it printed.
func (s *story) tool(name string, args ...string) string {
	s.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		s.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// byHand restores a backup with what is printed for it.
func (s *story) byHand(b taken, identity string) {
	s.Helper()
	recipe, err := s.consumers[1].engine.Recipe(s.ctx, b.ID)
	s.must(err)
	out := s.TempDir()
	cmd := exec.Command("bash", "-s", out, identity)
	cmd.Dir = filepath.Join(s.consumers[1].dir, filepath.Dir(b.Path))
	cmd.Stdin = strings.NewReader(recipe)
	if text, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("the recipe fails: %v: %s\n%s", err, text, recipe)
	}
	for _, v := range b.Volumes {
		was := b.content[v.VolumeID].Path()
		s.must(s.images.Compare(s.ctx, was, filepath.Join(out, v.Device+".qcow2"), qcow2.CompareOptions{
			FormatA: qcow2.FormatRaw,
		}))
	}
	if len(b.KeyIDs) > 0 {
		if xml, err := os.ReadFile(filepath.Join(out, "domain.xml")); err != nil ||
			!strings.Contains(string(xml), "<domain") {
			s.Errorf("domain.xml by hand: %.100q, %v", xml, err)
		}
	}
}
