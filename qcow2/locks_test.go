package qcow2_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// withoutLocks is a library that has the storage refuse QEMU's locks, all or only the question who has them.
const withoutLocks = `
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>

static int lock(const char *name, int fd, int cmd, void *arg)
{
	int (*real)(int, int, ...) = dlsym(RTLD_NEXT, name);
	int asks = cmd == F_OFD_GETLK || cmd == F_GETLK;
	int sets = cmd == F_OFD_SETLK || cmd == F_SETLK;
	if ((asks || sets && !getenv("TEST_ASK")) && ((struct flock *)arg)->l_start >= 100) { /* the bytes that QEMU locks */
		errno = atoi(getenv("TEST_ERRNO"));
		return -1;
	}
	return real(fd, cmd, arg);
}

#define ENTRY(name) \
	int name(int fd, int cmd, ...) \
	{ \
		va_list args; \
		va_start(args, cmd); \
		return lock(#name, fd, cmd, va_arg(args, void *)); \
	}
ENTRY(fcntl)
ENTRY(fcntl64)
`

// TestStorageWithoutLocks: nobody uses the image, so it must not be said; waiting would help nobody.
func TestStorageWithoutLocks(t *testing.T) {
	lab.Need(t, "gcc")
	dir := t.TempDir()
	library := filepath.Join(dir, "locks.so")
	if err := os.WriteFile(filepath.Join(dir, "locks.c"), []byte(withoutLocks), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "gcc", "-shared", "-fPIC", "-o", library,
		filepath.Join(dir, "locks.c"), "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tool := newTool(t)
	image := filepath.Join(dir, "image.qcow2")
	create(t, tool, image, qcow2.CreateOptions{})
	for _, ask := range []string{"", "1"} {
		for _, errno := range []syscall.Errno{syscall.ENOLCK, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EINVAL,
			syscall.EAGAIN} {
			t.Run(fmt.Sprintf("%v/ask=%s", errno, ask), func(t *testing.T) {
				t.Setenv("LD_PRELOAD", library)
				t.Setenv("TEST_ERRNO", fmt.Sprint(int(errno)))
				if ask != "" {
					t.Setenv("TEST_ASK", ask)
				}
				want, not := qcow2.ErrNoLocks, qcow2.ErrLocked
				if errno == syscall.EAGAIN { // somebody has the lock
					want, not = not, want
				}
				for step, f := range map[string]func() error{
					"create": func() error {
						return tool.Create(t.Context(), filepath.Join(t.TempDir(), "new.qcow2"), qcow2.CreateOptions{SizeBytes: 1 << 20})
					},
					"check": func() error { _, err := tool.Check(t.Context(), image, qcow2.CheckOptions{}); return err },
				} {
					if err := f(); !errors.Is(err, want) || errors.Is(err, not) {
						t.Errorf("%s: got %v, want %v", step, err, want)
					}
				}
			})
		}
	}
}
