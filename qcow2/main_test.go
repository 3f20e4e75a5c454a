package qcow2_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// TestMain lets the test binary play a host program that gets killed.
func TestMain(m *testing.M) {
	if src := os.Getenv("KVMBACKUP_TEST_CONVERT"); src != "" {
		convertSlowly(src)
	}
	os.Exit(m.Run())
}

// convertSlowly starts a copy that takes an hour, and says so on standard output.
func convertSlowly(src string) {
	tool, err := qcow2.New(qcow2.Config{})
	if err == nil {
		err = tool.Convert(context.Background(), src, src+".copy", qcow2.ConvertOptions{
			BandwidthBytes: 4096,
			Progress:       func(float64) { fmt.Println("running") },
		})
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
