package libvirtjob_test

import (
	"os"
	"testing"

	"github.com/kvmbackup/kvmbackup/libvirtjob/realguest"
)

func TestMain(m *testing.M) { os.Exit(realguest.Main(m)) }
