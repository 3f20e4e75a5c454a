package stories_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/seal"
)

// A flipped byte anywhere in a sealed backup's folder is found and named, by who has the key and by who hasn't; and
// nothing is restored from it.
func TestFlippedByteInASealedFolder(t *testing.T) {
	t.Parallel()
	s := tell(t, config{Disks: disks("vda"), Persistent: true, Stopped: true})
	identity, err := age.GenerateX25519Identity()
	s.must(err)
	public, private := seal.New(), seal.New()
	s.must(public.AddRecipient(identity.Recipient().String()))
	s.must(private.AddIdentity(identity.String()))
	nas, db := t.TempDir(), filepath.Join(t.TempDir(), "db")
	c := s.newConsumer("", nas, db, func(c *engine.Config) { c.Keys = public })
	reader := s.newConsumer("", nas, db, func(c *engine.Config) { c.Keys = private })
	s.write("vda", 7, 0, 2)
	req := s.request()
	req.Policy = kvmbackup.Policy{Encryption: kvmbackup.EncryptionLUKS, Compression: kvmbackup.CompressionZstd}
	b := s.backupBy(c, req)
	s.restore(reader, c.taken[0])
	s.unproved = 0

	dir := filepath.Join(nas, filepath.FromSlash(b.Path))
	for _, file := range s.files(dir) {
		if file = strings.TrimPrefix(file, "/"); file == "" {
			continue // the folder itself
		}
		for _, at := range places(t, filepath.Join(dir, file)) {
			s.flipped(filepath.Join(dir, file), at, func() {
				for who, c := range map[string]*consumer{"without the key": c, "with the key": reader} {
					report, err := c.engine.Verify(s.ctx, b.ID, engine.VerifyOptions{})
					named := slices.ContainsFunc(report.Problems, func(p engine.Problem) bool {
						return p.Backup == b.ID &&
							(strings.HasSuffix(p.File, file) || strings.Contains(p.Detail, file) || p.Code == engine.ProblemManifest)
					})
					if !errors.Is(err, kvmbackup.ErrDamaged) || !named || report.OK() {
						t.Errorf("%s: byte %d of %s was flipped: %v, %v", who, at, file, err, report)
					}
				}
				out := t.TempDir()
				_, err := reader.engine.Restore(s.ctx, engine.RestoreRequest{Backup: b.ID, Dir: out})
				if left, _ := os.ReadDir(out); strings.HasSuffix(file, ".qcow2") &&
					(!errors.Is(err, kvmbackup.ErrDamaged) || len(left) > 0) {
					t.Errorf("restored from %s with byte %d flipped: %v, %v", file, at, err, left)
				}
			})
		}
	}
	for _, c := range []*consumer{c, reader} {
		if report, err := c.engine.Verify(s.ctx, b.ID, engine.VerifyOptions{}); err != nil {
			t.Errorf("with every byte back: %v, %v", err, report)
		}
	}
}

// places are bytes of a file: the first and the last, those of the container's header, and some of all the rest that
// holds data.
func places(t *testing.T, path string) (all []int64) {
	t.Helper()
	info, err := os.Stat(path)
	lab.OK(t, err)
	all = []int64{0, info.Size() - 1}
	if strings.HasSuffix(path, ".qcow2") {
		all = append(all, 7, 9, 104, 112, 140, 166, 170, 210, 214, 230, 251, 300, 4096, 100_000, 260_000, 1<<20,
			2<<20, 2<<20+1<<16)
	}
	for i := range int64(lab.Rounds(4, 40)) {
		all = append(all, (i*2+1)*info.Size()/int64(2*lab.Rounds(4, 40)))
	}
	return all
}

// flipped calls f while the byte has one bit changed.
func (s *story) flipped(path string, at int64, f func()) {
	s.Helper()
	data, err := os.ReadFile(path) // as verifications write manifests, too
	s.must(err)
	if at >= int64(len(data)) {
		return
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	s.must(err)
	_, err = file.WriteAt([]byte{data[at] ^ 1}, at)
	s.must(errors.Join(err, file.Close()))
	f()
	s.must(os.WriteFile(path, data, 0o600))
}
