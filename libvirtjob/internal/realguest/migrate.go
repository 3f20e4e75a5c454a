//go:build cgo

package realguest

import (
	"path/filepath"

	"libvirt.org/go/libvirt"
)

// Migrate moves the guest, which has a QEMU, to another of Daemon's hosts, which sees the same files. A persistent one
// stays defined where it was.
func (g *Guest) Migrate(to *Host, more ...libvirt.DomainMigrateFlags) {
	g.tb.Helper()
	flags := libvirt.MIGRATE_LIVE
	for _, f := range more {
		flags |= f
	}
	if g.cfg.Persistent {
		flags |= libvirt.MIGRATE_PERSIST_DEST
	}
	g.must("migrate", g.TryMigrate(to, flags, 0))
	g.Host = to
}

// TryMigrate returns libvirt's error, and leaves the guest where it is as far as the harness goes. A bandwidth is in
// MiB/s; 0 is no limit.
func (g *Guest) TryMigrate(to *Host, flags libvirt.DomainMigrateFlags, bandwidth uint64) error {
	g.tb.Helper()
	params := &libvirt.DomainMigrateParameters{
		URISet: true, URI: "unix://" + filepath.Join(to.Root, "migrate.sock"), DisksURISet: true,
		DisksURI:     "unix://" + filepath.Join(to.Root, "disks.sock"),
		BandwidthSet: bandwidth > 0, Bandwidth: bandwidth,
	}
	// To libvirt a local file system isn't shared.
	dom, err := g.Domain().Migrate3(to.Conn, params, flags|libvirt.MIGRATE_UNSAFE)
	if err != nil {
		return err
	}
	return dom.Free()
}
