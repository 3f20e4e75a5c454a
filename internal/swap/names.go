package swap

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// MaxName is how long a file's name may be on nearly all file systems, in bytes.
const MaxName = 255

// Owner begins the names of what waits beside a set's files. Each holder of the right to replace the files has an
// owner of its own, so that it neither writes over what others have left there nor takes that for its own.
type Owner string

// Aside is where the new file is written before it takes the path's name.
func (o Owner) Aside(path string) string { return beside(path, "."+string(o)+"-new") }

// Old is where the path's old file waits during a swap.
func (o Owner) Old(path string) string { return beside(path, "."+string(o)+"-old") }

// beside adds an ending to a file's name. A name that is too long for that is cut, and a sum of the whole tells it from
// others.
func beside(path, ending string) string {
	dir, base := filepath.Split(path)
	if len(base)+len(ending) > MaxName {
		sum := sha256.Sum256([]byte(base))
		tag := "~" + hex.EncodeToString(sum[:4])
		base = strings.ToValidUTF8(base[:MaxName-len(ending)-len(tag)], "") + tag
	}
	return dir + base + ending
}

// maxLinks is how many links of a name are followed, as many as Linux follows.
const maxLinks = 40

// BehindLinks returns where a name leads that may be a link, also to a file that is not there now.
func BehindLinks(path string) (string, error) {
	for range maxLinks {
		to, err := os.Readlink(path)
		if errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			return path, nil // no link, or nothing
		}
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return "", &fs.PathError{Op: "readlink", Path: path, Err: syscall.ELOOP}
}

func isMissing(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}
