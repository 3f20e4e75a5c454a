package libvirtjob

import (
	"errors"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
)

func TestOldLibvirtIsRefused(t *testing.T) {
	for _, tc := range []struct {
		version uint32
		fits    bool
	}{{6_000_000, false}, {7_001_999, false}, {7_002_000, true}, {9_000_000, true}, {11_010_000, true}} {
		err := newEnough(tc.version)
		if tc.fits != (err == nil) || !tc.fits && !errors.Is(err, kvmbackup.ErrUnsupported) {
			t.Errorf("version %d: %v", tc.version, err)
		}
	}
	if err := newEnough(6_006_001); !strings.Contains(err.Error(), "6.6.1") {
		t.Errorf("%v doesn't name the version", err)
	}
}
