//go:build !linux

package qcow2

import (
	"errors"
	"os"
)

const hasDescriptors = false

func duplicate(int) (*os.File, error) { return nil, errors.ErrUnsupported }
