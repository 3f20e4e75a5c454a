package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
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
	return wire(uint32(magicChunk), flags, kind, cookie, uint32(len(p)), p)
}

const (
	testReadLength   = 64
	testStatusLength = 1000
	testContext      = uint32(5)
)

// pendingClient has a read at 128 with cookie 1 and a question for the state with cookie 2 in
// flight, and is told the reply.
func pendingClient(t testing.TB, reply []byte) (read, status *request, err error) {
	t.Helper()
	conn, peer := net.Pipe()
	defer peer.Close()
	c := newClient(conn, export{size: 4096})
	read = &request{
		command: commandRead, offset: 128, length: testReadLength,
		buf: bytes.Repeat([]byte{0xee}, testReadLength), done: make(chan struct{}),
	}
	status = &request{
		command: commandBlockStatus, length: testStatusLength, context: testContext, done: make(chan struct{}),
	}
	c.pending[1], c.pending[2] = read, status
	c.receive(bytes.NewReader(reply))
	for _, q := range []*request{read, status} {
		select {
		case <-q.done:
		default:
			t.Error("a request is left waiting")
		}
	}
	c.Close()
	return read, status, c.err
}

func TestReplies(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte{7}, testReadLength)
	reply := wire(
		chunkOf(chunkDone, chunkStatus, 2, testContext, uint32(512), uint32(3), uint32(4096), uint32(0)),
		chunkOf(0, chunkData, 1, uint64(128), data[:10]),
		chunkOf(0, chunkHole, 1, uint64(138), uint32(4)),
		chunkOf(0, chunkData, 1, uint64(142), data[14:]),
		chunkOf(chunkDone, chunkNone, 1),
	)
	clear(data[10:14])
	read, status, err := pendingClient(t, reply)
	if !errors.Is(err, io.EOF) || read.err != nil || status.err != nil {
		t.Fatalf("%v, %v, %v", err, read.err, status.err)
	}
	if !bytes.Equal(read.buf, data) {
		t.Errorf("read %x", read.buf)
	}
	want := []Extent{{512, StateHole | StateZero}, {testStatusLength - 512, 0}}
	if len(status.extents) != 2 || status.extents[0] != want[0] || status.extents[1] != want[1] {
		t.Errorf("extents %v, want %v", status.extents, want)
	}
}

func TestErrorReplies(t *testing.T) {
	t.Parallel()
	read, status, err := pendingClient(t, wire(
		chunkOf(chunkDone, chunkErrorOffset, 1, uint32(5), uint16(3), "bad", uint64(128)),
		chunkOf(chunkDone, chunkError, 2, uint32(1), uint16(0)),
	))
	if !errors.Is(err, io.EOF) || !errors.Is(read.err, syscall.EIO) || !errors.Is(status.err, syscall.EPERM) {
		t.Errorf("%v, %v, %v", err, read.err, status.err)
	}
}

func TestBadReplies(t *testing.T) {
	t.Parallel()
	data := make([]byte, testReadLength)
	for name, reply := range map[string][]byte{
		"no reply":        wire(uint32(1), uint32(0), uint64(1), data),
		"simple reply":    wire(uint32(magicSimple), uint32(0), uint64(1), data),
		"no such request": chunkOf(chunkDone, chunkData, 9, uint64(128), data),
		"answered twice":  bytes.Repeat(chunkOf(chunkDone, chunkData, 1, uint64(128), data), 2),
		"too much":        chunkOf(chunkDone, chunkData, 1, uint64(128), data, byte(0)),
		"too little":      chunkOf(chunkDone, chunkData, 1, uint64(128), data[1:]),
		"no data":         chunkOf(0, chunkData, 1, uint64(128)),
		"other place":     chunkOf(chunkDone, chunkData, 1, uint64(0), data),
		"overlap": wire(chunkOf(0, chunkData, 1, uint64(128), data[:8]),
			chunkOf(0, chunkData, 1, uint64(130), data[:8])),
		"wraps around":       chunkOf(0, chunkHole, 1, uint64(1<<64-1), uint32(8)),
		"large hole":         chunkOf(0, chunkHole, 1, uint64(128), uint32(1<<32-1)),
		"empty hole":         chunkOf(0, chunkHole, 1, uint64(128), uint32(0)),
		"none, not done":     chunkOf(0, chunkNone, 1),
		"none too early":     chunkOf(chunkDone, chunkNone, 1),
		"unknown type":       chunkOf(chunkDone, 77, 1, data),
		"unknown error":      chunkOf(chunkDone, 1<<15+9, 1, uint32(5), uint16(0)),
		"state of a read":    chunkOf(chunkDone, chunkStatus, 1, testContext, uint32(512), uint32(0)),
		"data for the state": chunkOf(chunkDone, chunkData, 2, uint64(0), data),
		"no extents":         chunkOf(chunkDone, chunkStatus, 2, testContext),
		"odd extents":        chunkOf(chunkDone, chunkStatus, 2, testContext, uint32(512), uint32(0), uint32(1)),
		"empty extent":       chunkOf(chunkDone, chunkStatus, 2, testContext, uint32(0), uint32(0)),
		"extent after the end": chunkOf(chunkDone, chunkStatus, 2, testContext, uint32(1000), uint32(0),
			uint32(1), uint32(0)),
		"other context":    chunkOf(chunkDone, chunkStatus, 2, testContext+1, uint32(512), uint32(0)),
		"too many extents": wire(uint32(magicChunk), uint16(1), uint16(chunkStatus), uint64(2), uint32(1<<32-4)),
		"no error":         chunkOf(chunkDone, chunkError, 1, uint32(0), uint16(0)),
		"long message":     chunkOf(chunkDone, chunkError, 1, uint32(5), uint16(9), "short"),
		"huge message":     wire(uint32(magicChunk), uint16(1), uint16(chunkError), uint64(1), uint32(1<<32-1)),
		"two errors":       bytes.Repeat(chunkOf(0, chunkError, 1, uint32(5), uint16(0)), 2),
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

// FuzzReplies finds nothing that makes the receiver panic, hang, or take an incomplete answer.
func FuzzReplies(f *testing.F) {
	data := make([]byte, testReadLength)
	f.Add(chunkOf(chunkDone, chunkData, 1, uint64(128), data))
	f.Add(wire(chunkOf(0, chunkData, 1, uint64(128), data[:9]),
		chunkOf(chunkDone, chunkHole, 1, uint64(137), uint32(testReadLength-9))))
	f.Add(chunkOf(chunkDone, chunkStatus, 2, testContext, uint32(512), uint32(3), uint32(4096), uint32(0)))
	f.Add(chunkOf(chunkDone, chunkErrorOffset, 1, uint32(5), uint16(3), "bad", uint64(128)))
	f.Add(chunkOf(0, chunkError, 2, uint32(1), uint16(0)))
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
			if e.Length <= 0 {
				t.Errorf("extent of %d bytes", e.Length)
			}
			total += e.Length
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
	return wire(uint64(magicOptionReply), option, kind, uint32(len(p)), p)
}

// Answers of a server that does all that is needed.
var (
	testGreeting   = wire(magicGreeting, magicOption, uint16(3))
	testStructured = optionReply(optionStructuredReply, replyAck)
	testMeta       = wire(
		optionReply(optionSetMetaContext, replyMetaContext, testContext, Allocation),
		optionReply(optionSetMetaContext, replyAck))
	testExport = optionReply(optionGo, replyInfo, uint16(infoExport), uint64(4096), uint16(exportHasFlags|exportDF))
	testBlocks = optionReply(optionGo, replyInfo, uint16(infoBlockSize), uint32(1), uint32(4096), uint32(32<<20))
	testGo     = optionReply(optionGo, replyAck)
)

func TestNegotiation(t *testing.T) {
	t.Parallel()
	other := optionReply(optionGo, replyInfo, uint16(1), "name")
	export, err := negotiate(
		deaf{bytes.NewReader(wire(testGreeting, testStructured, testMeta, testExport, other, testBlocks, testGo))},
		"", Allocation)
	if err != nil || export.size != 4096 || !export.has(exportDF) || export.context != testContext {
		t.Errorf("%+v, %v", export, err)
	}
}

func TestBadNegotiation(t *testing.T) {
	t.Parallel()
	refused := func(option uint32) []byte { return optionReply(option, replyError+1, "no") }
	ready := wire(testGreeting, testStructured, testMeta)
	for name, server := range map[string][]byte{
		"other greeting": []byte("HTTP/1.1 400 Bad Request\r\n"),
		"oldstyle":       wire(magicGreeting, uint64(0x00420281861253), uint16(0)),
		"not fixed":      wire(magicGreeting, magicOption, uint16(0)),
		"no structured":  wire(testGreeting, refused(optionStructuredReply)),
		"no contexts":    wire(testGreeting, testStructured, refused(optionSetMetaContext)),
		"no context": wire(testGreeting, testStructured, optionReply(optionSetMetaContext, replyAck),
			testExport, testGo),
		"other context": wire(testGreeting, testStructured,
			optionReply(optionSetMetaContext, replyMetaContext, testContext, "x:y")),
		"no export":     wire(ready, refused(optionGo)),
		"no size":       wire(ready, testGo),
		"two sizes":     wire(ready, testExport, testExport),
		"negative size": wire(ready, optionReply(optionGo, replyInfo, uint16(infoExport), uint64(1<<63), uint16(1))),
		"short size":    wire(ready, optionReply(optionGo, replyInfo, uint16(infoExport), uint64(1))),
		"large blocks": wire(ready, optionReply(optionGo, replyInfo, uint16(infoBlockSize), uint32(1<<20),
			uint32(1<<20), uint32(32<<20))),
		"small reads": wire(ready, optionReply(optionGo, replyInfo, uint16(infoBlockSize), uint32(1), uint32(1),
			uint32(1<<20))),
		"empty information": wire(ready, optionReply(optionGo, replyInfo)),
		"other option":      wire(testGreeting, testGo),
		"huge answer": wire(testGreeting, uint64(magicOptionReply), uint32(optionStructuredReply), uint32(1),
			uint32(1<<32-1)),
		"ack with payload": wire(testGreeting, optionReply(optionStructuredReply, replyAck, "x")),
		"endless":          wire(ready, bytes.Repeat(optionReply(optionGo, replyInfo, uint16(1), "name"), 1000)),
		"unexpected context": wire(testGreeting,
			optionReply(optionStructuredReply, replyMetaContext, testContext, Allocation)),
	} {
		if export, err := negotiate(deaf{bytes.NewReader(server)}, "", Allocation); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %+v, %v, want ErrProtocol", name, export, err)
		}
	}
	whole := wire(ready, testExport, testBlocks, testGo)
	for n := range whole {
		if _, err := negotiate(deaf{bytes.NewReader(whole[:n])}, "", Allocation); !errors.Is(err, io.EOF) &&
			!errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
}

// FuzzNegotiation finds nothing that makes the negotiation panic, hang, or end well without a size.
func FuzzNegotiation(f *testing.F) {
	f.Add(wire(testGreeting, testStructured, testMeta, testExport, testBlocks, testGo))
	f.Add(wire(testGreeting, optionReply(optionStructuredReply, replyError+1, "no")))
	f.Fuzz(func(t *testing.T, server []byte) {
		export, err := negotiate(deaf{bytes.NewReader(server)}, "", Allocation)
		if err == nil && export.size < 0 {
			t.Errorf("%+v", export)
		}
	})
}

// TestServerGoes has many readers when the server closes the connection, and when the context ends.
func TestServerGoes(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(cancel context.CancelFunc, peer net.Conn) error{
		"server closes": func(_ context.CancelFunc, peer net.Conn) error { return peer.Close() },
		"context ends":  func(cancel context.CancelFunc, _ net.Conn) error { cancel(); return nil },
	} {
		conn, peer := net.Pipe()
		c := newClient(conn, export{size: 1 << 20})
		go c.receive(conn)
		ctx, cancel := context.WithCancel(t.Context())
		stop := c.Bind(ctx)
		var readers sync.WaitGroup
		for i := range 8 {
			readers.Go(func() {
				if err := c.ReadAt(make([]byte, 512), int64(i)*512); err == nil {
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
		c.Close()
		if err := c.ReadAt(make([]byte, 512), 0); err == nil {
			t.Errorf("%s: a read after the end", name)
		}
		stop()
		cancel()
		_ = peer.Close()
	}
}
