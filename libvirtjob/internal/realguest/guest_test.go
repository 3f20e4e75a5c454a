package realguest_test

import (
	"os"
	"testing"

	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

func TestMain(m *testing.M) { os.Exit(realguest.Main(m)) }

// TestFull is the package comment's: what is written into a guest's disk is what the model expects of its image.
func TestFull(t *testing.T) {
	guest := realguest.Start(t, realguest.Config{Disks: []realguest.Disk{{Device: "vda"}}})
	guest.Write("vda", 0x11, 0, 1<<20)
	guest.Destroy()
	guest.Model("vda").Compare(t, guest.Image("vda"))
}
