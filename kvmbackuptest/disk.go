package kvmbackuptest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Disk describes a simulated disk and the image behind it.
type Disk struct {
	Device string // the target, e.g. vda
	// Source is the path of the image. Defaults to /simulated/DOMAIN/DEVICE.FORMAT, which is not there. With a path in a
	// folder that exists, a file is put there for restores in place to replace: its own content is not kept up to
	// date, but once something else has replaced it, the disk has the new file's content.
	Source    string
	Format    string // qcow2 or raw. Defaults to qcow2
	Version   int    // of qcow2: 3, or 2, which can't have bitmaps. Defaults to 3
	SizeBytes int64  // a multiple of 512
	// Compressed says that what the image holds takes a sixty-fourth of it on the host.
	Compressed bool
	Serial     string
	// Encryption is that of the disk on its host, e.g. luks. Its image can be read only while the domain runs.
	Encryption string
	// Medium is cdrom or floppy for drives that are never backed up. Defaults to a disk.
	Medium string
	// ReadOnly and Transient disks are never backed up; one with NoMedia is an empty drive.
	ReadOnly, Transient, NoMedia bool
	// Remote is a disk on a network server, which only a QEMU reaches: nobody can read it while the domain is off.
	Remote bool
	// Shareable lets other domains have the same Source, and run at the same time. libvirt allows it for raw disks.
	Shareable bool
}

// storedImage is the image behind a disk: it stays when the domain that used it goes.
type storedImage struct {
	path, format string
	version      int
	compressed   bool
	layers       []*layer  // the newest first
	user         any       // the domain or offline job that has it open
	sharers      []*domain // those that have it open as a shareable disk
	snapshots    []string  // internal ones
	seen         os.FileInfo
}

// layer is one file of an image's own chain, as external snapshots make it.
type layer struct {
	image
	path    string
	bitmaps bitmaps
}

func (im *storedImage) top() *layer      { return im.layers[0] }
func (im *storedImage) size() int64      { return im.top().size }
func (im *storedImage) content() Content { return flatten(im.images()) }

func (im *storedImage) images() []image {
	var out []image
	for _, l := range im.layers {
		out = append(out, l.image)
	}
	return out
}

// untrackable says why the image can't have bitmaps.
func (im *storedImage) untrackable() string {
	switch {
	case im.format != "qcow2":
		return im.format
	case im.version == 2:
		return qcow2.Version2
	}
	return ""
}

// usable says whether a bitmap tells all that changed since it began: it records on the top layer, and there is neither
// a gap nor a broken part below, nor one of another size. Without a QEMU that joins them, parts on several layers can't
// be used.
func (im *storedImage) usable(name string) bool {
	ended := false
	for i, l := range im.layers {
		b := l.bitmaps.find(name)
		switch {
		case b == nil && i == 0:
			return false
		case b == nil:
			ended = true
		case ended, l.size != im.size(), i > 0 && !im.live(), b.broken(i == 0 && im.live()):
			return false
		}
	}
	return true
}

// live says whether a QEMU has the image open.
func (im *storedImage) live() bool {
	_, ok := im.user.(*domain)
	return ok
}

// dirty joins the parts of a usable bitmap.
func (im *storedImage) dirty(name string) []int64 {
	all := map[int64]bool{}
	for _, l := range im.layers {
		if b := l.bitmaps.find(name); b != nil {
			for i := range b.dirty {
				if i*ClusterBytes < im.size() {
					all[i] = true
				}
			}
		}
	}
	return sortedKeys(all)
}

func (im *storedImage) dropBitmap(name string) {
	for _, l := range im.layers {
		l.bitmaps = slices.DeleteFunc(l.bitmaps, func(b *bitmap) bool { return b.name == name })
	}
}

// open and close are what a QEMU does that starts and ends; crash is its sudden death.
func (im *storedImage) open(user any) {
	im.user = user
	im.top().bitmaps.open()
}

func (im *storedImage) close() {
	im.user = nil
	im.top().bitmaps = im.top().bitmaps.close()
}

func (im *storedImage) crash() {
	im.user = nil
	im.top().bitmaps = im.top().bitmaps.crash()
}

func (im *storedImage) fits(offset, length int64) error {
	if offset < 0 || length < 0 || offset+length > im.size() {
		return fmt.Errorf("range %d+%d is outside of the disk of %d bytes", offset, length, im.size())
	}
	return nil
}

// write changes a range; nil data discards it. Clusters are never changed in place, so that Contents stay.
func (im *storedImage) write(offset, length int64, data []byte) error {
	if err := im.fits(offset, length); err != nil {
		return err
	}
	for end := offset + length; offset < end; {
		i, in := offset/ClusterBytes, offset%ClusterBytes
		n := min(ClusterBytes-in, end-offset)
		if data == nil {
			im.discard(i, in, n)
		} else {
			im.put(i, in, data[:n])
			data = data[n:]
		}
		offset += n
	}
	return nil
}

func (im *storedImage) put(i, in int64, data []byte) {
	now := bytes.Clone(im.read(i))
	copy(now[in:], data)
	im.top().clusters[i] = now
	im.top().bitmaps.mark(i)
}

// discard frees whole clusters and writes zeroes over parts of one.
func (im *storedImage) discard(i, in, n int64) {
	if whole := min(ClusterBytes, im.size()-i*ClusterBytes); n < whole {
		im.put(i, in, zeroes[:n])
		return
	}
	delete(im.top().clusters, i)
	if len(im.layers) > 1 {
		im.top().clusters[i] = nil
	}
	im.top().bitmaps.mark(i)
}

// read returns one cluster as the guest sees it; it must not be changed.
func (im *storedImage) read(i int64) []byte {
	end := im.size()
	for _, l := range im.layers {
		end = min(end, l.size) // behind the end of a layer there is nothing, whatever is below
		if data, ok := l.clusters[i]; ok || i*ClusterBytes >= end {
			if data == nil {
				break
			}
			return cutTail(data, end-i*ClusterBytes)
		}
	}
	return zeroes
}

// resize gives the top layer a new size. What a grown disk gets reads as zeroes, whatever is below.
func (im *storedImage) resize(size int64) {
	old, top := im.size(), im.top()
	c := Content{old, top.clusters}
	c.resize(size)
	if len(im.layers) > 1 && size > old {
		if i := old / ClusterBytes; old%ClusterBytes != 0 {
			top.clusters[i] = im.read(i)
		}
		for i := (old + ClusterBytes - 1) / ClusterBytes; i*ClusterBytes < size; i++ {
			top.clusters[i] = nil
		}
	}
	top.size = size
	top.bitmaps.resize(size)
}

// load replaces the image by what something else has put at its path, if it has. It fails when the file that stood
// there is gone.
func (im *storedImage) load() error {
	info, err := os.Stat(im.path)
	switch {
	case errors.Is(err, os.ErrNotExist) && im.seen == nil:
		return nil // there never was a file
	case err != nil:
		return err
	case im.seen != nil && sameFile(im.seen, info):
		return nil
	}
	var c Content
	if im.format == "raw" {
		c, err = ReadRaw(im.path)
	} else {
		c, err = ReadChain(im.path)
	}
	if err != nil {
		return fmt.Errorf("image that was put at %s: %w", im.path, err)
	}
	im.seen, im.version, im.snapshots = info, 3, nil
	im.layers = []*layer{{image{size: c.size, clusters: c.clusters}, im.path, nil}}
	return nil
}

func sameFile(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// place puts a file at the image's path, where its folder exists.
func (im *storedImage) place() error {
	var err error
	if im.format == "raw" {
		err = writeRaw(im.path, Content{size: im.size()}, true)
	} else {
		err = writeImage(im.path, image{size: im.size()}, true)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	im.seen, err = os.Stat(im.path)
	return err
}
