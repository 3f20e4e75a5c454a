package qcow2_test

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// An image that stands on another, which needn't be there yet. It isn't run: qemu-img may be missing.
func ExampleTool_Create() {
	_ = func(ctx context.Context, dir string) error {
		tool, err := qcow2.New(qcow2.Config{})
		if err != nil {
			return err
		}
		err = tool.Create(ctx, filepath.Join(dir, "i1.qcow2"), qcow2.CreateOptions{
			SizeBytes:   10 << 30,
			BackingFile: "full.qcow2", // as it will be stored; it is not opened
		})
		if err != nil {
			return err
		}
		h, err := tool.Header(ctx, filepath.Join(dir, "i1.qcow2"), nil)
		fmt.Println(h.VirtualSizeBytes, h.BackingFile)
		return err
	}
}
