package restoretest_test

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/repository"
)

// TestExchangedDomainXML: a domain that reaches into its host, put in place of a backup's, is found out by what the
// record has, although its sum and the manifest's are its own.
func TestExchangedDomainXML(t *testing.T) {
	t.Parallel()
	l := newWorld(t, "vda")
	b := l.chain(2)[1]
	dir := filepath.Join(l.nas, b.Path)
	good, err := l.engine.Definition(t.Context(), b.ID)
	l.ok(err)
	manifest, err := os.ReadFile(filepath.Join(dir, repository.ManifestName))
	l.ok(err)

	evil := []byte("<domain><devices><filesystem><source dir='/'/></filesystem></devices></domain>")
	l.ok(os.WriteFile(filepath.Join(dir, repository.DomainXMLName), evil, 0o600))
	_, err = l.engine.Definition(t.Context(), b.ID)
	l.fails(err, kvmbackup.ErrDamaged)
	l.finds(l.damaged(b, false), engine.ProblemSideFile, b, repository.DomainXMLName, b)

	m, err := repository.DecodeManifest(manifest)
	l.ok(err)
	at := slices.IndexFunc(m.Files, func(f kvmbackup.SideFile) bool { return f.Name == repository.DomainXMLName })
	sum := sha256.Sum256(evil)
	m.Files[at].Size, m.Files[at].SHA256 = int64(len(evil)), hex.EncodeToString(sum[:])
	forged, err := m.Encode()
	l.ok(err)
	l.ok(os.WriteFile(filepath.Join(dir, repository.ManifestName), forged, 0o600))
	_, err = l.engine.Definition(t.Context(), b.ID)
	l.fails(err, kvmbackup.ErrDamaged)
	l.finds(l.damaged(b, false), engine.ProblemManifest, b, repository.ManifestName, b)
	l.refused(b)

	l.ok(os.WriteFile(filepath.Join(dir, repository.DomainXMLName), good.XML, 0o600))
	_, err = l.engine.Export(t.Context(), vm) // a manifest is written from what the record says
	l.ok(err)
	l.verified(b, false)
	l.ok(os.Remove(filepath.Join(dir, repository.DomainXMLName)))
	_, err = l.engine.Definition(t.Context(), b.ID)
	l.fails(err, kvmbackup.ErrMissingFile)
}
