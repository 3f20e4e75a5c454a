package crash_test

import (
	"os"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// What these tests use of the harness for real guests. A process has one host: this one's, or that of the root
// that a helper was told.
type host = realguest.Host

var (
	needHost   = realguest.Need
	needRoot   = lab.NeedRoot
	newDaemon  = realguest.Daemon
	newRoot    = realguest.NewRoot
	useRoot    = realguest.UseRoot
	removeRoot = realguest.RemoveRoot
	eventually = lab.Eventually
)

type connection = libvirt.Connect

func TestMain(m *testing.M) { os.Exit(realguest.Main(m)) }
