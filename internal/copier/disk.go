package copier

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/kvmbackup/kvmbackup/internal/nbd"
	"github.com/kvmbackup/kvmbackup/internal/pace"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// Disk is one disk to be copied.
type Disk struct {
	// Name is for errors.
	Name string
	// Source and Target have the same size, except that the target's may be one of whole clusters. It is fresh: it
	// reads as zeroes.
	Source, Target End
	// Bitmap is the one of the source's export whose marks are copied. Empty: everything.
	Bitmap string
	// Parent, if it can be dialled, is what the source is compared with: everything is read, and what differs is copied. A
	// shorter one goes on with zeroes. A Bitmap's marks are not copied then, but what differs outside of them is counted.
	Parent End
	// Index, if not nil, is proved to be of the parent's content: pieces that have the sums in it are the same, and not
	// read of the parent. One of another size is passed over.
	Index *qcow2.Index
	// Alone says that the Index is all that is known of the parent: pieces that it doesn't show to be the same are copied
	// whole.
	Alone bool
	// Sums has everything hashed that is copied, for Copy.Index. An incremental by bitmap takes the sums of what isn't
	// marked from Index, and has none without: of what is marked only in part the source is read whole.
	Sums bool
}

// End is an export of a server.
type End struct {
	Dial   func(context.Context) (net.Conn, error)
	Export string
}

// Progress is how far one disk is.
type Progress struct {
	// DoneBytes of TotalBytes are seen to. Of a full the total is the disk's size, and holes count as soon as they are
	// found; of an incremental it is what the bitmap marks, in clusters of 64 KiB, and 0 until that is known. What is
	// compared counts as a full does.
	DoneBytes, TotalBytes int64
	// ParentBytes were read of the parent, its holes apart. ChangedBytes differed from the parent, MissedBytes of them
	// outside of the bitmap's marks, in clusters.
	ParentBytes, ChangedBytes, MissedBytes int64
	// UnreadableBytes could not be read of the parent; they are among ChangedBytes.
	UnreadableBytes int64
}

// disk is a Disk with its connections.
type disk struct {
	Disk
	size             int64
	sources, targets []*nbd.Client
	parent           *parent     // nil where nothing is compared
	marksClient      *nbd.Client // a connection to the source for the bitmap; nil in a full
	allocation       asker
	marks            asker
	sums             *qcow2.Sums // nil where there are none
	limit            *pace.Limit
	turn             atomic.Uint32 // of the connections

	done, total, read, changed, missed, unreadable atomic.Int64
}

// connections is how many connections to an export are opened, if the server allows more than one, and most is how many
// over all disks of a copy.
const (
	connections = 4
	most        = 16
)

// connect opens the connections. After an error those that are open are to be closed still.
func (d *disk) connect(ctx context.Context, share int) (err error) {
	if d.sources, err = d.Source.open(ctx, share, nbd.Allocation); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if d.Bitmap != "" {
		if d.marksClient, err = d.Source.dial(ctx, nbd.DirtyBitmap(d.Bitmap)); err != nil {
			return fmt.Errorf("source: bitmap %q: %w", d.Bitmap, err)
		}
		d.marks = d.marksClient
	}
	if d.targets, err = d.Target.open(ctx, share, ""); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	d.allocation, d.size = d.sources[0], d.sources[0].SizeBytes()
	whole := (d.size + cluster - 1) / cluster * cluster
	if d.compared() {
		if err := d.connectParent(ctx, share); err != nil {
			return fmt.Errorf("parent: %w", err)
		}
	}
	switch to := d.targets[0]; {
	case to.SizeBytes() != d.size && to.SizeBytes() != whole:
		return fmt.Errorf("%w: source has %d bytes, target %d", qcow2.ErrSizeMismatch, d.size, to.SizeBytes())
	case to.ReadOnly(), !to.CanFlush(), !to.CanZero():
		return fmt.Errorf("%w: target can't be written, zeroed or flushed", qcow2.ErrUnsupported)
	}
	if !d.marked() {
		d.total.Store(d.size)
	}
	switch {
	case d.Sums && !d.marked():
		d.sums = qcow2.NewSums(d.size, nil)
	case d.Sums && d.Index != nil:
		d.sums = qcow2.NewSums(d.size, d.Index)
	}
	return nil
}

// prime has the QEMU of the source keep the memory of its buffers for the reads of a Run. glibc's malloc maps each that
// is larger than any before, and gives back twice that size at most (mallopt(3), M_MMAP_THRESHOLD): without this the
// pages of every read are made and zeroed again, in the thread that serves the guest. A read behind the end is refused,
// but only once QEMU has its buffer (nbd_co_receive_request in 7.2). Where that is otherwise, nothing is gained.
func (d *disk) prime() {
	source := d.sources[0]
	_ = source.ReadSparse(make([]byte, inFlight), source.SizeBytes())
}

// summed says whether the disk is read in the pieces of an index.
func (d *disk) summed() bool { return d.sums != nil || d.indexed() }

// marked says whether what is copied is what the bitmap marks; incremental whether zeroes have to be written.
func (d *disk) marked() bool      { return d.Bitmap != "" && !d.compared() }
func (d *disk) incremental() bool { return d.Bitmap != "" || d.compared() }

func (d *disk) compared() bool { return d.Parent.Dial != nil || d.Alone }

// open returns those connections that were made, also beside an error.
func (e End) open(ctx context.Context, share int, metadata string) (clients []*nbd.Client, err error) {
	for len(clients) < share {
		c, err := e.dial(ctx, metadata)
		if err != nil {
			return clients, err
		}
		clients = append(clients, c)
		if !c.MultiConn() {
			break
		}
	}
	return clients, nil
}

func (e End) dial(ctx context.Context, metadata string) (*nbd.Client, error) {
	conn, err := e.Dial(ctx)
	if err != nil {
		return nil, err
	}
	enlarge(conn)
	c, err := nbd.Open(ctx, conn, nbd.Options{Export: e.Export, Context: metadata})
	return c, qcow2.NBDError(err)
}

// enlarge gives a socket room for a piece, so that sender and receiver don't wait for each other at every few pages.
func enlarge(conn net.Conn) {
	if unix, ok := conn.(*net.UnixConn); ok {
		_ = unix.SetWriteBuffer(maxPiece) // the kernel allows what it allows
		_ = unix.SetReadBuffer(maxPiece)
	}
}

func (d *disk) each(f func(*nbd.Client)) {
	for _, list := range [][]*nbd.Client{d.sources, d.targets} {
		for _, c := range list {
			f(c)
		}
	}
	if d.marksClient != nil {
		f(d.marksClient)
	}
	if d.parent != nil {
		for _, c := range d.parent.clients {
			f(c)
		}
	}
}

// next are the connections for the next piece.
func (d *disk) next() (source, target *nbd.Client) {
	i := int(d.turn.Add(1))
	return d.sources[i%len(d.sources)], d.targets[i%len(d.targets)]
}

// pass counts bytes that are seen to.
func (d *disk) pass(n int64) { d.done.Add(n) }

// pieceSize is small where the limit is, so that bytes flow and progress shows.
func (d *disk) pieceSize() int64 {
	limit := d.limit.Now()
	if limit == 0 {
		return maxPiece
	}
	return min(max(limit/8/cluster*cluster, cluster), maxPiece)
}
