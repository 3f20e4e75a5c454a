package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// served is an export of random bytes.
func served(t *testing.T, name string) (socket string, data []byte, s *Server) {
	t.Helper()
	data = make([]byte, 1<<20+512)
	source := rand.NewChaCha8([32]byte{1})
	_, err := source.Read(data)
	lab.OK(t, err)
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	lab.OK(t, err)
	s = Serve(l, name, int64(len(data)), bytes.NewReader(data))
	t.Cleanup(func() { lab.OK(t, s.Close()) })
	return socket, data, s
}

// TestServerAndQEMU: QEMU's client reads what is served.
func TestServerAndQEMU(t *testing.T) {
	lab.Need(t, "qemu-img")
	for _, name := range []string{"", "disk"} {
		socket, data, _ := served(t, name)
		file := filepath.Join(t.TempDir(), "raw")
		lab.OK(t, os.WriteFile(file, data, 0o600))
		out, err := exec.CommandContext(t.Context(), "qemu-img", "compare", "-f", "raw", "-F", "raw",
			"nbd+unix:///"+name+"?socket="+socket, file).CombinedOutput()
		if err != nil {
			t.Errorf("export %q: %v: %s", name, err, out)
		}
		other := exec.CommandContext(t.Context(), "qemu-img", "info", "nbd+unix:///other?socket="+socket)
		if out, err := other.CombinedOutput(); err == nil {
			t.Errorf("export %q: another name is served: %s", name, out)
		}
	}
}

// TestServerRefuses asks what the server can't do or must not.
func TestServerRefuses(t *testing.T) {
	socket, data, s := served(t, "disk")
	conn, err := net.Dial("unix", socket)
	lab.OK(t, err)
	defer conn.Close()
	lab.OK(t, greet(conn))
	_, err = conn.Write(wire(magicOption, uint32(optionStructuredReply), uint32(0)))
	lab.OK(t, err)
	answers(t, conn, optionReply(optionStructuredReply, replyUnsupported))
	_, err = conn.Write(wire(magicOption, uint32(optionGo), uint32(3), "bad"))
	lab.OK(t, err)
	answers(t, conn, optionReply(optionGo, replyInvalid))
	_, err = conn.Write(wire(magicOption, uint32(optionExportName), uint32(4), "disk"))
	lab.OK(t, err)
	described := make([]byte, 10)
	_, err = io.ReadFull(conn, described)
	lab.OK(t, err)
	lab.Equal(t, "size", binary.BigEndian.Uint64(described), uint64(len(data)))

	size := uint64(len(data))
	for i, ask := range []struct {
		command uint16
		offset  uint64
		length  uint32
		want    syscall.Errno
	}{
		{commandRead, size - 512, 512, 0},
		{commandRead, size - 511, 512, syscall.EINVAL},
		{commandRead, 1<<64 - 1, 2, syscall.EINVAL},
		{commandRead, 0, 1<<32 - 1, syscall.EINVAL},
		{commandWrite, 0, 3, syscall.EPERM},
		{commandTrim, 0, 512, syscall.EPERM},
		{commandZero, 0, 512, syscall.EPERM},
		{77, 0, 0, syscall.EINVAL},
		{commandRead, 0, 1, 0},
	} {
		request := wire(uint32(magicRequest), uint16(0), ask.command, uint64(i), ask.offset, ask.length)
		if ask.command == commandWrite {
			request = append(request, make([]byte, ask.length)...)
		}
		_, err = conn.Write(request)
		lab.OK(t, err)
		answers(t, conn, wire(uint32(magicSimple), uint32(ask.want), uint64(i)))
		if ask.want == 0 {
			answers(t, conn, data[ask.offset:][:ask.length])
		}
	}
	lab.OK(t, s.Close()) // while the client is there
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlives the server")
	}
}

func answers(t *testing.T, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(r, got)
	lab.OK(t, err)
	if !bytes.Equal(got, want) {
		t.Fatalf("got %x, want %x", got, want)
	}
}
