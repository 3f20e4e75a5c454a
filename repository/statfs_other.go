//go:build !linux

package repository

import (
	"errors"
	"io/fs"
	"os"
)

func allocated(info fs.FileInfo) int64 { return info.Size() }

func hardLink(fs.FileInfo) (fileKey, bool) { return fileKey{}, false }

func statfs(*os.Root) (Space, error) { return Space{}, errors.ErrUnsupported }
