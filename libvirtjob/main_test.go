package libvirtjob_test

import (
	"os"
	"testing"

	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

func TestMain(m *testing.M) { os.Exit(realguest.Main(m)) }
