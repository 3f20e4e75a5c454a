package libvirtjob

import (
	"context"
	"fmt"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// oldest is the first libvirt with all that the executor uses: backup modes by disk, and checkpoints that are validated
// when they are defined again. An older one refuses the XML with a message that speaks of schemas.
const oldest = 7002000

// checkVersion asks the daemon, which may be older than the client's library.
func checkVersion(conn *libvirt.Connect) error {
	has, err := conn.GetLibVersion()
	if err != nil {
		return fmt.Errorf("ask libvirt for its version: %w", translate(err))
	}
	return newEnough(has)
}

// libvirtVersion is the daemon's, in libvirt's numbers.
func (e *Executor) libvirtVersion(ctx context.Context) (uint32, error) {
	version, err := onConnection(ctx, e, "the version", (*libvirt.Connect).GetLibVersion, nil)
	return version, translate(err)
}

func newEnough(version uint32) error {
	if version >= oldest {
		return nil
	}
	return fmt.Errorf("%w: libvirt %s can't take incremental backups of single disks; upgrade it to %s or later",
		kvmbackup.ErrUnsupported, dotted(version), dotted(oldest))
}

// dotted reads libvirt's numbers: 1,000,000 * major + 1,000 * minor + release.
func dotted(version uint32) string {
	return fmt.Sprintf("%d.%d.%d", version/1_000_000, version/1_000%1_000, version%1_000)
}
