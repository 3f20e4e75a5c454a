package libvirtjob_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	tool, err := qcow2.New(qcow2.Config{})
	b.must(err)
	var log strings.Builder
	b.exec, err = libvirtjob.Open(b.ctx, b.guest.Host.URI, libvirtjob.Config{
		Images: tool, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	b.must(err)
	b.backup("c1", "", full("vda"))
	b.must(b.exec.Close())
	b.must(b.exec.Close())
	_, err = b.exec.Inspect(b.ctx, b.ref)
	b.wantErr(err, kvmbackup.ErrInvalid)
	if log.Len() > 0 {
		t.Errorf("log: %s", log.String())
	}
	_, err = libvirtjob.Open(b.ctx, "qemu:///embed?root=/nowhere", libvirtjob.Config{Images: tool})
	if err == nil {
		t.Error("a second root was opened")
	}
	for _, cfg := range []libvirtjob.Config{{}, {Images: tool, PollInterval: -1},
		{Images: tool, ProgressInterval: -time.Second}} {
		_, err := libvirtjob.New(b.guest.Host.Conn, cfg)
		b.wantErr(err, kvmbackup.ErrInvalid)
	}
	_, err = libvirtjob.New(nil, libvirtjob.Config{Images: tool})
	b.wantErr(err, kvmbackup.ErrInvalid)
}

func TestWithoutEvents(t *testing.T) {
	t.Parallel()
	b := newBench(t, realguest.Config{Disks: disks("vda")})
	b.exec.PollOnly()
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("c1", "", full("vda"))
	b.guest.Write("vda", 0x22, 0, 1<<20)
	b.backup("c2", "c1", incr("vda"))
	b.backup("c3", "c2", incr("vda"))
}

// Domains come and go while others are backed up.
func TestManyDomains(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	for i := range 3 {
		t.Run(string(rune('a'+i)), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, realguest.Config{Disks: disks("vda")})
			base := ""
			for j := range 5 {
				name := "c" + string(rune('0'+j))
				b.guest.Write("vda", byte(j+1), int64(j)<<20, 2<<20)
				volume := incr("vda")
				if base == "" {
					volume = full("vda")
				}
				b.backup(name, base, volume)
				if base != "" {
					b.drop(base)
				}
				base = name
			}
			b.wantCheckpoints(base)
		})
	}
}
