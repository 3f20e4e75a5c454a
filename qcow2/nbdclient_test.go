package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// These tests are inside of the package because a real server sends nothing of this.

// wire puts big-endian numbers, strings and bytes in a row.
func wire(parts ...any) []byte {
	var b bytes.Buffer
	for _, part := range parts {
		switch p := part.(type) {
		case string:
			b.WriteString(p)
		case []byte:
			b.Write(p)
		default:
			if err := binary.Write(&b, binary.BigEndian, p); err != nil {
				panic(err)
			}
		}
	}
	return b.Bytes()
}

// chunkOf is one chunk of a reply.
func chunkOf(flags, kind uint16, cookie uint64, payload ...any) []byte {
	p := wire(payload...)
	return wire(uint32(nbdChunkMagic), flags, kind, cookie, uint32(len(p)), p)
}

const (
	testReadLength   = 64
	testStatusLength = 1000
	testContext      = uint32(5)
)

// pendingClient has a read at 128 with cookie 1 and a question for the state with cookie 2 in
// flight, and is told the reply.
func pendingClient(t testing.TB, reply []byte) (read, status *nbdRequest, err error) {
	t.Helper()
	conn, peer := net.Pipe()
	defer peer.Close()
	c := newNBDClient(conn, nbdExport{size: 4096, contextID: testContext})
	read = &nbdRequest{
		command: nbdCmdRead, offset: 128, length: testReadLength,
		buf: bytes.Repeat([]byte{0xee}, testReadLength), done: make(chan struct{}),
	}
	status = &nbdRequest{command: nbdCmdBlockStatus, length: testStatusLength, contextID: testContext, done: make(chan struct{})}
	c.pending[1], c.pending[2] = read, status
	c.receive(bytes.NewReader(reply))
	for _, q := range []*nbdRequest{read, status} {
		select {
		case <-q.done:
		default:
			t.Error("a request is left waiting")
		}
	}
	c.close()
	return read, status, c.err
}

func TestNBDReplies(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte{7}, testReadLength)
	reply := wire(
		chunkOf(nbdChunkDone, nbdChunkStatus, 2, testContext, uint32(512), uint32(3), uint32(4096), uint32(0)),
		chunkOf(0, nbdChunkData, 1, uint64(128), data[:10]),
		chunkOf(0, nbdChunkHole, 1, uint64(138), uint32(4)),
		chunkOf(0, nbdChunkData, 1, uint64(142), data[14:]),
		chunkOf(nbdChunkDone, nbdChunkNone, 1),
	)
	clear(data[10:14])
	read, status, err := pendingClient(t, reply)
	if !errors.Is(err, io.EOF) || read.err != nil || status.err != nil {
		t.Fatalf("%v, %v, %v", err, read.err, status.err)
	}
	if !bytes.Equal(read.buf, data) {
		t.Errorf("read %x", read.buf)
	}
	want := []digestExtent{{length: 512, zero: true}, {length: testStatusLength - 512}}
	if len(status.extents) != 2 || status.extents[0] != want[0] || status.extents[1] != want[1] {
		t.Errorf("extents %v, want %v", status.extents, want)
	}
}

func TestNBDErrorReplies(t *testing.T) {
	t.Parallel()
	read, status, err := pendingClient(t, wire(
		chunkOf(nbdChunkDone, nbdChunkErrorOffset, 1, uint32(5), uint16(3), "bad", uint64(128)),
		chunkOf(nbdChunkDone, nbdChunkError, 2, uint32(1), uint16(0)),
	))
	if !errors.Is(err, io.EOF) || !errors.Is(read.err, ErrIO) || !errors.Is(status.err, ErrPermission) {
		t.Errorf("%v, %v, %v", err, read.err, status.err)
	}
}

func TestNBDBadReplies(t *testing.T) {
	t.Parallel()
	data := make([]byte, testReadLength)
	for name, reply := range map[string][]byte{
		"simple reply":         wire(uint32(0x67446698), uint32(0), uint64(1), data),
		"no such request":      chunkOf(nbdChunkDone, nbdChunkData, 9, uint64(128), data),
		"answered twice":       bytes.Repeat(chunkOf(nbdChunkDone, nbdChunkData, 1, uint64(128), data), 2),
		"too much":             chunkOf(nbdChunkDone, nbdChunkData, 1, uint64(128), data, byte(0)),
		"too little":           chunkOf(nbdChunkDone, nbdChunkData, 1, uint64(128), data[1:]),
		"no data":              chunkOf(0, nbdChunkData, 1, uint64(128)),
		"other place":          chunkOf(nbdChunkDone, nbdChunkData, 1, uint64(0), data),
		"overlap":              wire(chunkOf(0, nbdChunkData, 1, uint64(128), data[:8]), chunkOf(0, nbdChunkData, 1, uint64(130), data[:8])),
		"wraps around":         chunkOf(0, nbdChunkHole, 1, uint64(1<<64-1), uint32(8)),
		"large hole":           chunkOf(0, nbdChunkHole, 1, uint64(128), uint32(1<<32-1)),
		"empty hole":           chunkOf(0, nbdChunkHole, 1, uint64(128), uint32(0)),
		"none, not done":       chunkOf(0, nbdChunkNone, 1),
		"none too early":       chunkOf(nbdChunkDone, nbdChunkNone, 1),
		"unknown type":         chunkOf(nbdChunkDone, 77, 1, data),
		"unknown error":        chunkOf(nbdChunkDone, 1<<15+9, 1, uint32(5), uint16(0)),
		"state of a read":      chunkOf(nbdChunkDone, nbdChunkStatus, 1, testContext, uint32(512), uint32(0)),
		"data for the state":   chunkOf(nbdChunkDone, nbdChunkData, 2, uint64(0), data),
		"no extents":           chunkOf(nbdChunkDone, nbdChunkStatus, 2, testContext),
		"odd extents":          chunkOf(nbdChunkDone, nbdChunkStatus, 2, testContext, uint32(512), uint32(0), uint32(1)),
		"empty extent":         chunkOf(nbdChunkDone, nbdChunkStatus, 2, testContext, uint32(0), uint32(0)),
		"extent after the end": chunkOf(nbdChunkDone, nbdChunkStatus, 2, testContext, uint32(1000), uint32(0), uint32(1), uint32(0)),
		"other context":        chunkOf(nbdChunkDone, nbdChunkStatus, 2, testContext+1, uint32(512), uint32(0)),
		"too many extents":     wire(uint32(nbdChunkMagic), uint16(1), uint16(nbdChunkStatus), uint64(2), uint32(1<<32-4)),
		"no error":             chunkOf(nbdChunkDone, nbdChunkError, 1, uint32(0), uint16(0)),
		"long message":         chunkOf(nbdChunkDone, nbdChunkError, 1, uint32(5), uint16(9), "short"),
		"huge message":         wire(uint32(nbdChunkMagic), uint16(1), uint16(nbdChunkError), uint64(1), uint32(1<<32-1)),
		"two errors":           bytes.Repeat(chunkOf(0, nbdChunkError, 1, uint32(5), uint16(0)), 2),
	} {
		read, status, err := pendingClient(t, reply)
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v, want ErrProtocol", name, err)
		}
		if read.err == nil && status.err == nil {
			t.Errorf("%s: both requests answered", name)
		}
	}
}

// FuzzNBDReplies finds nothing that makes the receiver panic, hang, or take an incomplete answer.
func FuzzNBDReplies(f *testing.F) {
	data := make([]byte, testReadLength)
	f.Add(chunkOf(nbdChunkDone, nbdChunkData, 1, uint64(128), data))
	f.Add(wire(chunkOf(0, nbdChunkData, 1, uint64(128), data[:9]), chunkOf(nbdChunkDone, nbdChunkHole, 1, uint64(137), uint32(testReadLength-9))))
	f.Add(chunkOf(nbdChunkDone, nbdChunkStatus, 2, testContext, uint32(512), uint32(3), uint32(4096), uint32(0)))
	f.Add(chunkOf(nbdChunkDone, nbdChunkErrorOffset, 1, uint32(5), uint16(3), "bad", uint64(128)))
	f.Add(chunkOf(0, nbdChunkError, 2, uint32(1), uint16(0)))
	f.Fuzz(func(t *testing.T, reply []byte) {
		read, status, err := pendingClient(t, reply)
		if err == nil {
			t.Error("no error at the end")
		}
		if read.err == nil && read.filled != testReadLength {
			t.Errorf("%d bytes taken for a whole read", read.filled)
		}
		total := int64(0)
		for _, e := range status.extents {
			if e.length <= 0 {
				t.Errorf("extent of %d bytes", e.length)
			}
			total += e.length
		}
		if total > testStatusLength || status.err == nil && total == 0 {
			t.Errorf("extents of %d bytes", total)
		}
	})
}

// deaf reads what it is given and takes every write.
type deaf struct{ io.Reader }

func (deaf) Write(p []byte) (int, error) { return len(p), nil }

func optionReply(option, kind uint32, payload ...any) []byte {
	p := wire(payload...)
	return wire(uint64(nbdOptionReplyMagic), option, kind, uint32(len(p)), p)
}

// Answers of a server that does all that is needed.
var (
	testGreeting   = wire(nbdMagic, nbdOptionMagic, uint16(3))
	testStructured = optionReply(nbdOptStructuredReply, nbdRepAck)
	testMeta       = wire(
		optionReply(nbdOptSetMetaContext, nbdRepMetaContext, testContext, nbdAllocation),
		optionReply(nbdOptSetMetaContext, nbdRepAck))
	testExport = optionReply(nbdOptGo, nbdRepInfo, uint16(nbdInfoExport), uint64(4096), uint16(nbdExportHasFlags|nbdExportSendDF))
	testBlocks = optionReply(nbdOptGo, nbdRepInfo, uint16(nbdInfoBlockSize), uint32(1), uint32(4096), uint32(32<<20))
	testGo     = optionReply(nbdOptGo, nbdRepAck)
)

func TestNBDNegotiation(t *testing.T) {
	t.Parallel()
	other := optionReply(nbdOptGo, nbdRepInfo, uint16(1), "name")
	export, err := negotiateNBD(deaf{bytes.NewReader(wire(testGreeting, testStructured, testMeta, testExport, other, testBlocks, testGo))})
	if want := (nbdExport{size: 4096, canDF: true, contextID: testContext}); err != nil || export != want {
		t.Errorf("%+v, %v", export, err)
	}
}

func TestNBDBadNegotiation(t *testing.T) {
	t.Parallel()
	refused := func(option uint32) []byte { return optionReply(option, nbdRepError+1, "no") }
	ready := wire(testGreeting, testStructured, testMeta)
	for name, server := range map[string][]byte{
		"other greeting":     []byte("HTTP/1.1 400 Bad Request\r\n"),
		"oldstyle":           wire(nbdMagic, uint64(0x00420281861253), uint16(0)),
		"not fixed":          wire(nbdMagic, nbdOptionMagic, uint16(0)),
		"no structured":      wire(testGreeting, refused(nbdOptStructuredReply)),
		"no contexts":        wire(testGreeting, testStructured, refused(nbdOptSetMetaContext)),
		"no context":         wire(testGreeting, testStructured, optionReply(nbdOptSetMetaContext, nbdRepAck), testExport, testGo),
		"other context":      wire(testGreeting, testStructured, optionReply(nbdOptSetMetaContext, nbdRepMetaContext, testContext, "x:y")),
		"no export":          wire(ready, refused(nbdOptGo)),
		"no size":            wire(ready, testGo),
		"two sizes":          wire(ready, testExport, testExport),
		"negative size":      wire(ready, optionReply(nbdOptGo, nbdRepInfo, uint16(nbdInfoExport), uint64(1<<63), uint16(1))),
		"short size":         wire(ready, optionReply(nbdOptGo, nbdRepInfo, uint16(nbdInfoExport), uint64(1))),
		"large blocks":       wire(ready, optionReply(nbdOptGo, nbdRepInfo, uint16(nbdInfoBlockSize), uint32(1<<20), uint32(1<<20), uint32(32<<20))),
		"small reads":        wire(ready, optionReply(nbdOptGo, nbdRepInfo, uint16(nbdInfoBlockSize), uint32(1), uint32(1), uint32(1<<20))),
		"empty information":  wire(ready, optionReply(nbdOptGo, nbdRepInfo)),
		"other option":       wire(testGreeting, testGo),
		"huge answer":        wire(testGreeting, uint64(nbdOptionReplyMagic), uint32(nbdOptStructuredReply), uint32(1), uint32(1<<32-1)),
		"ack with payload":   wire(testGreeting, optionReply(nbdOptStructuredReply, nbdRepAck, "x")),
		"endless":            wire(ready, bytes.Repeat(optionReply(nbdOptGo, nbdRepInfo, uint16(1), "name"), 1000)),
		"unexpected context": wire(testGreeting, optionReply(nbdOptStructuredReply, nbdRepMetaContext, testContext, nbdAllocation)),
	} {
		if export, err := negotiateNBD(deaf{bytes.NewReader(server)}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %+v, %v, want ErrProtocol", name, export, err)
		}
	}
	whole := wire(ready, testExport, testBlocks, testGo)
	for n := range whole {
		if _, err := negotiateNBD(deaf{bytes.NewReader(whole[:n])}); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
}

// FuzzNBDNegotiation finds nothing that makes the negotiation panic, hang, or end well without a size.
func FuzzNBDNegotiation(f *testing.F) {
	f.Add(wire(testGreeting, testStructured, testMeta, testExport, testBlocks, testGo))
	f.Add(wire(testGreeting, optionReply(nbdOptStructuredReply, nbdRepError+1, "no")))
	f.Fuzz(func(t *testing.T, server []byte) {
		export, err := negotiateNBD(deaf{bytes.NewReader(server)})
		if err == nil && export.size < 0 {
			t.Errorf("%+v", export)
		}
	})
}

// TestNBDServerGoes has many readers when the server closes the connection, and when the context ends.
func TestNBDServerGoes(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(cancel context.CancelFunc, peer net.Conn) error{
		"server closes": func(_ context.CancelFunc, peer net.Conn) error { return peer.Close() },
		"context ends":  func(cancel context.CancelFunc, _ net.Conn) error { cancel(); return nil },
	} {
		conn, peer := net.Pipe()
		c := newNBDClient(conn, nbdExport{size: 1 << 20})
		go c.receive(conn)
		ctx, cancel := context.WithCancel(t.Context())
		stop := c.bind(ctx)
		var readers sync.WaitGroup
		for i := range 8 {
			readers.Go(func() {
				if err := c.readAt(make([]byte, 512), int64(i)*512); err == nil {
					t.Errorf("%s: reader %d ends well", name, i)
				}
			})
		}
		if _, err := io.ReadFull(peer, make([]byte, 4*28)); err != nil { // half of the requests have arrived
			t.Fatal(err)
		}
		if err := end(cancel, peer); err != nil {
			t.Fatal(err)
		}
		readers.Wait()
		c.close()
		if err := c.readAt(make([]byte, 512), 0); err == nil {
			t.Errorf("%s: a read after the end", name)
		}
		stop()
		cancel()
		_ = peer.Close()
	}
}
