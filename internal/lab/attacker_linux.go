package lab

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// attackEnv has what an attacker is to do: what it exchanges for what, the folder that it watches, another VM's, and
// the file that headers are to lead to.
const attackEnv = "KVMBACKUP_TEST_ATTACK"

// What an attacker exchanges.
const (
	ByLinks   = "links"   // each file for a link to a file of the other VM's
	ByHeaders = "headers" // each file for an image whose header names a file of the host
	ByFolders = "folders" // the file's folder for a link to the other VM's
	ByFIFOs   = "FIFOs"   // each file for a FIFO, at which an open waits
	ByNames   = "names"   // each file for another name of a file of the other VM's
	ByOutside = "outside" // each file for a link to an image of the host's, whose header names a file of the host
)

// attacker is a process that can write to the share: whenever somebody opens, reads, makes or closes anything in a VM's
// folder it puts something else there, and puts back what was there at the next thing that happens, or soon.
type attacker struct {
	Exchange
	events    *os.File
	watched   map[int32]string
	undo      func()
	exchanges int
	over      atomic.Bool
}

// Exchange is something else to be put in the place of what is in a VM's folder: see ByLinks. Other is another VM's
// folder, Lying an image whose header names a file of the host.
type Exchange struct{ How, Dir, Other, Lying string }

// Attacker makes a process that Attacked has started the attacker, and ends it; in any other it does nothing. A package
// that uses Attacked calls it first in its TestMain.
func Attacker() {
	if args := os.Getenv(attackEnv); args != "" {
		os.Exit(attack(args))
	}
}

func attack(args string) int {
	part := strings.Split(args, "\n")
	a := &attacker{Exchange: Exchange{part[0], part[1], part[2], part[3]}, watched: map[int32]string{}}
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	a.events = os.NewFile(uintptr(fd), "inotify")
	if err := filepath.WalkDir(a.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			a.watch(path)
		}
		return nil
	}); err != nil {
		return 1
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test has seen enough
		a.over.Store(true)
		_ = a.events.SetReadDeadline(time.Unix(1, 0))
	}()
	_, _ = fmt.Fprintln(os.Stdout, "watching")
	a.run()
	_, _ = fmt.Fprintln(os.Stdout, a.exchanges)
	return 0
}

func (a *attacker) watch(dir string) {
	const mask = syscall.IN_ALL_EVENTS&^syscall.IN_MOVED_FROM | syscall.IN_ONLYDIR
	w, err := syscall.InotifyAddWatch(int(a.events.Fd()), dir, mask)
	if err == nil {
		a.watched[int32(w)] = dir
	}
}

func (a *attacker) run() {
	buffer := make([]byte, 1<<16)
	for !a.over.Load() {
		patience := time.Now().Add(time.Minute)
		if a.undo != nil {
			patience = time.Now().Add(3 * time.Millisecond)
		}
		if err := a.events.SetReadDeadline(patience); err != nil || a.over.Load() {
			break
		}
		n, err := a.events.Read(buffer)
		a.putBack()
		if err == nil {
			a.seen(buffer[:n])
		}
	}
	a.putBack()
}

func (a *attacker) putBack() {
	if a.undo != nil {
		a.undo()
		a.undo = nil
	}
}

// seen exchanges what the last event was about.
func (a *attacker) seen(events []byte) {
	path := ""
	for len(events) >= syscall.SizeofInotifyEvent {
		w, mask := int32(binary.NativeEndian.Uint32(events)), binary.NativeEndian.Uint32(events[4:])
		size := syscall.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		name := string(bytes.TrimRight(events[syscall.SizeofInotifyEvent:size], "\x00"))
		events = events[size:]
		if dir, ok := a.watched[w]; ok && name != "" && !strings.HasSuffix(name, ".x") {
			path = cmp.Or(a.target(dir, name, mask), path)
		}
	}
	if path != "" {
		a.exchange(path)
	}
}

// target is the file to exchange when something has happened to a name in a folder; empty: none. Where a file was
// removed, or a folder renamed, it is the next that is there.
func (a *attacker) target(dir, name string, mask uint32) string {
	path := filepath.Join(dir, name)
	switch {
	case mask&syscall.IN_ISDIR == 0 && mask&syscall.IN_DELETE == 0:
		return path
	case mask&syscall.IN_ISDIR == 0:
		path = dir
	case mask&(syscall.IN_CREATE|syscall.IN_MOVED_TO) == 0:
		return ""
	default:
		a.watch(path)
	}
	entries, _ := os.ReadDir(path) // it may have gone
	for _, e := range entries {
		if e.Type().IsRegular() && !strings.HasSuffix(e.Name(), ".x") {
			return filepath.Join(path, e.Name())
		}
	}
	return ""
}

func (a *attacker) exchange(path string) {
	if a.undo = a.Put(path); a.undo != nil {
		a.exchanges++
	}
}

// Put exchanges a file, or its folder, and returns what puts it back; nil: there is nothing to exchange.
func (x Exchange) Put(path string) (undo func()) {
	if x.How == ByFolders {
		if path = filepath.Dir(path); !strings.HasPrefix(path, x.Dir+"/") {
			return nil
		}
	}
	info, err := os.Lstat(path)
	if err != nil || os.Rename(path, path+".x") != nil {
		return nil
	}
	_ = x.put(path, info.IsDir()) // nothing in its place is something else, too
	return func() {
		_ = os.Remove(path)
		_ = os.Rename(path+".x", path)
	}
}

// Plant puts something where nothing is, for a program that is about to make it, and returns what takes it away again
// unless it has gone; nil: there is something, or no folder for it.
func (x Exchange) Plant(path string) (undo func()) {
	if x.put(path, x.How == ByFolders) != nil {
		return nil
	}
	planted, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	return func() {
		if is, err := os.Lstat(path); err == nil && os.SameFile(planted, is) {
			_ = os.Remove(path)
		}
	}
}

// put makes what is put in the place of a folder or a file. It leaves alone what is there.
func (x Exchange) put(path string, folder bool) error {
	switch x.How {
	case ByHeaders:
		data, err := os.ReadFile(x.Lying)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		return errors.Join(err, f.Close())
	case ByFIFOs:
		return syscall.Mkfifo(path, 0o600)
	case ByNames:
		return os.Link(x.victim(path, false), path)
	case ByOutside:
		return os.Symlink(x.Lying, path)
	}
	to, err := filepath.Rel(filepath.Dir(path), x.victim(path, folder)) // it stays on the share
	if err != nil {
		return err
	}
	return os.Symlink(to, path)
}

// victim is something of the other VM's, of the same name if there is one: its folder, one of its backups, or a file of
// that.
func (x Exchange) victim(path string, folder bool) string {
	all, _ := filepath.Glob(filepath.Join(x.Other, "*"))
	switch {
	case folder && filepath.Dir(path) == filepath.Dir(x.Other):
		return x.Other
	case folder:
		return all[0]
	}
	same := filepath.Join(all[0], filepath.Base(path))
	if _, err := os.Stat(same); err == nil {
		return same
	}
	files, _ := filepath.Glob(filepath.Join(all[0], "*"))
	return files[0]
}

// Attacked runs f while a process watches a VM's folder, and puts something else there whenever anybody opens, reads,
// makes or closes a file: see ByLinks. The folder of another VM and the image whose header lies are what it puts there.
// It returns how often it did.
func Attacked(t testing.TB, how, dir, other, lying string, f func()) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), attackEnv+"="+strings.Join([]string{how, dir, other, lying}, "\n"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make([]byte, len("watching\n"))
	if _, err := io.ReadFull(out, ready); err != nil {
		t.Fatal(err)
	}
	f()
	_ = in.Close()
	count, err := io.ReadAll(out)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(count)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
