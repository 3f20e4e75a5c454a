package qcow2

import (
	"errors"
	"os"
	"path/filepath"
)

// A room is what a tool may open, where the kernel sees to that (Landlock, from Linux 5.13 on): programs and libraries,
// the files that it is given, and nothing else; nor does it connect over TCP. A header can name any file of the host as
// an image's data file, and a server that lies can change a header after it was looked at. The files are those that
// have the names when the tool is started, or those of descriptors: a name that leads elsewhere later is refused.
//
// The thread that starts the tool enters the room first. What it starts inherits that, as root and as anybody else, and
// the thread ends with it.
type room struct {
	program     string
	read, write []string // files, and block devices
	sockets     []string // folders in which it makes sockets
}

// errNoRoom is no failure: the tool runs as it is, and opens what was looked at as far as the storage is honest.
var errNoRoom = errors.New("the kernel has no Landlock")

// roomFor returns the room of a tool that reads these images, or writes the first, and no others: nil where a chain is
// not given layer by layer.
func roomFor(path string, backing []Layer, writes bool) *room {
	if backing == nil {
		return nil
	}
	r := &room{}
	if writes {
		r.write = append(r.write, path)
	} else {
		r.read = append(r.read, path)
	}
	for _, l := range backing {
		r.read = append(r.read, l.Path)
	}
	return r
}

// roomOf returns the room of a storage daemon that serves these files, and no others: nil without any.
func roomOf(files []*os.File, readOnly bool) *room {
	if len(files) == 0 {
		return nil
	}
	r := &room{sockets: socketFolders()}
	for _, f := range files {
		if readOnly {
			r.read = append(r.read, Descriptor(f))
		} else {
			r.write = append(r.write, Descriptor(f))
		}
	}
	return r
}

// socketFolders are those of which one gets the folder with a daemon's socket, when it listens.
func socketFolders() []string { return []string{os.TempDir(), "/tmp"} }

// absolutes makes the paths what they are here, whatever the tool's working directory is.
func absolutes(paths []string) []string {
	var all []string
	for _, p := range paths {
		if abs, err := filepath.Abs(p); err == nil {
			p = abs
		}
		all = append(all, p)
	}
	return all
}

// enterRoom has this thread enter the room of c, if it has one. It says whether the thread is confined now.
func (t *Tool) enterRoom(c command) (confined bool, err error) {
	if c.room == nil || t.cfg.Unconfined {
		return false, nil
	}
	r := *c.room
	r.program = c.program.path
	r.read, r.write, r.sockets = absolutes(r.read), absolutes(r.write), absolutes(r.sockets)
	switch err := r.enter(); {
	case errors.Is(err, errNoRoom):
		t.log.Debug("tool isn't confined to its files", "tool", c.program.name, "cause", err)
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}
