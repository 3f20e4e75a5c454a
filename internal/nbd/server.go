package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"syscall"
)

// Numbers that only the server's side uses.
const (
	optionExportName = 1
	optionAbort      = 2
	optionInfo       = 6

	replyUnsupported = replyError + 1
	replyInvalid     = replyError + 3
	replyUnknown     = replyError + 6

	// maxOption bounds what a client may send with one option.
	maxOption = 2 * maxString
	// maxServed is the most bytes that one read may ask for; clients that aren't told a limit go by this.
	maxServed = 32 << 20
)

// Server answers clients of one export, which nobody can write. It has no more than simple replies: it is there for
// tests of hosts, and fast enough for them. Its methods are safe for concurrent use.
type Server struct {
	listener net.Listener
	name     string
	size     int64
	data     io.ReaderAt
	clients  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil: the server has ended
}

// Serve begins to answer those who connect. The server closes the listener when it is closed.
func Serve(l net.Listener, export string, size int64, data io.ReaderAt) *Server {
	s := &Server{listener: l, name: export, size: size, data: data, conns: map[net.Conn]bool{}}
	s.clients.Go(s.accept)
	return s
}

// Close ends all connections and returns when nothing of the server runs any more. It may be called more than once.
func (s *Server) Close() error {
	err := s.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.mu.Lock()
	for conn := range s.conns {
		_ = conn.Close() // nobody waits for an answer any more
	}
	s.conns = nil
	s.mu.Unlock()
	s.clients.Wait()
	return err
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return // it was closed
		}
		if !s.add(conn) {
			return
		}
		s.clients.Go(func() {
			defer s.remove(conn)
			if s.negotiate(conn) == nil {
				_ = s.transmit(conn) // the client sees its connection end
			}
		})
	}
}

func (s *Server) add(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		_ = conn.Close() // as all others were
		return false
	}
	s.conns[conn] = true
	return true
}

func (s *Server) remove(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	_ = conn.Close() // all that was asked is answered
}

// errGone ends a connection whose client has said that it ends it.
var errGone = errors.New("the client has gone")

// negotiate returns when the client has chosen the export.
func (s *Server) negotiate(rw io.ReadWriter) error {
	greeting := binary.BigEndian.AppendUint16([]byte(magicGreeting+magicOption), flagFixedNewstyle|flagNoZeroes)
	if _, err := rw.Write(greeting); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(rw, flags[:]); err != nil {
		return err
	}
	noZeroes := binary.BigEndian.Uint32(flags[:])&flagNoZeroes != 0
	for {
		option, data, err := readOption(rw)
		if err != nil {
			return err
		}
		switch option {
		case optionExportName:
			return s.exportName(rw, string(data), noZeroes)
		case optionAbort:
			return errors.Join(answerOption(rw, option, replyAck, nil), errGone)
		case optionInfo, optionGo:
			kind, err := s.info(rw, option, data)
			if err != nil || kind == replyAck && option == optionGo {
				return err
			}
		default:
			if err := answerOption(rw, option, replyUnsupported, nil); err != nil {
				return err
			}
		}
	}
}

func readOption(r io.Reader) (option uint32, data []byte, err error) {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[12:])
	if string(head[:8]) != magicOption || length > maxOption {
		return 0, nil, fmt.Errorf("%w: an option begins with %x", ErrProtocol, head)
	}
	data = make([]byte, length)
	_, err = io.ReadFull(r, data)
	return binary.BigEndian.Uint32(head[8:]), data, err
}

func answerOption(w io.Writer, option, kind uint32, payload []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicOptionReply)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	_, err := w.Write(append(b, payload...))
	return err
}

// described is the export's size and flags.
func (s *Server) described() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(s.size))
	return binary.BigEndian.AppendUint16(b, exportHasFlags|exportReadOnly|exportMultiConn)
}

// exportName answers the oldest option, in which nothing can be refused.
func (s *Server) exportName(w io.Writer, name string, noZeroes bool) error {
	if name != s.name {
		return fmt.Errorf("%w: there is no export %q", ErrProtocol, name)
	}
	b := s.described()
	if !noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	_, err := w.Write(b)
	return err
}

// info describes the export, and returns its final answer to the option.
func (s *Server) info(w io.Writer, option uint32, data []byte) (kind uint32, err error) {
	kind = replyInvalid
	if len(data) >= 6 {
		length := binary.BigEndian.Uint32(data)
		if uint64(length)+6 <= uint64(len(data)) {
			kind = replyUnknown
			if string(data[4:4+length]) == s.name {
				kind = replyAck
			}
		}
	}
	if kind == replyAck {
		info := append(binary.BigEndian.AppendUint16(nil, infoExport), s.described()...)
		if err := answerOption(w, option, replyInfo, info); err != nil {
			return kind, err
		}
	}
	return kind, answerOption(w, option, kind, nil)
}

// transmit answers requests until the client goes.
func (s *Server) transmit(rw io.ReadWriter) error {
	for {
		var head [28]byte
		if _, err := io.ReadFull(rw, head[:]); err != nil {
			return err
		}
		command, cookie := binary.BigEndian.Uint16(head[6:]), binary.BigEndian.Uint64(head[8:])
		offset, length := binary.BigEndian.Uint64(head[16:]), binary.BigEndian.Uint32(head[24:])
		if binary.BigEndian.Uint32(head[:]) != magicRequest {
			return fmt.Errorf("%w: a request begins with %x", ErrProtocol, head)
		}
		var data []byte
		var refused syscall.Errno
		switch command {
		case commandRead:
			data, refused = s.read(offset, length)
		case commandWrite:
			refused = syscall.EPERM
			if _, err := io.CopyN(io.Discard, rw, int64(length)); err != nil {
				return err
			}
		case commandDisconnect:
			return errGone
		case commandTrim, commandZero:
			refused = syscall.EPERM
		default:
			refused = syscall.EINVAL
		}
		reply := binary.BigEndian.AppendUint32(nil, magicSimple)
		reply = binary.BigEndian.AppendUint32(reply, uint32(refused))
		reply = binary.BigEndian.AppendUint64(reply, cookie)
		if _, err := rw.Write(append(reply, data...)); err != nil {
			return err
		}
	}
}

func (s *Server) read(offset uint64, length uint32) ([]byte, syscall.Errno) {
	if length > maxServed || offset > math.MaxInt64-maxServed || int64(offset)+int64(length) > s.size {
		return nil, syscall.EINVAL
	}
	data := make([]byte, length)
	if _, err := s.data.ReadAt(data, int64(offset)); err != nil && !errors.Is(err, io.EOF) {
		return nil, syscall.EIO
	}
	return data, 0
}
