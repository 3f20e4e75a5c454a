package libvirtjob_test

import (
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/lab"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

// foreign are messages of libvirt and what becomes of them where the host's language isn't English.
var foreign = map[string]string{
	"domain is not running":                          "Domain läuft nicht",
	"QEMU guest agent is not configured":             "QEMU Gast-Agent ist nicht konfiguriert",
	"cannot perform disk backup for inactive domain": "Sicherung einer inaktiven Domain nicht möglich",
	"Requested operation is not valid: %s":           "Angeforderte Operation ist nicht gültig: %s",
	"Operation not supported: %s":                    "Operation ist nicht unterstützt: %s",
	"argument unsupported: %s":                       "Argument wird nicht unterstützt: %s",
}

// TestOtherLanguage: what libvirt refuses is understood also where its daemon speaks the language of its host.
func TestOtherLanguage(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	host := realguest.Translated(t, foreign)
	b := newBench(t, realguest.Config{Host: host, Disks: bigDisks("vda"), Persistent: true, Running: true})
	b.exec = openExecutor(t, host)
	defer func() { b.must(b.exec.Close()) }()

	// No agent to ask.
	_, err := b.exec.Freeze(b.ctx, b.ref)
	b.wantErr(err, kvmbackup.ErrNoAgent)
	if err == nil || !strings.Contains(err.Error(), foreign["QEMU guest agent is not configured"]) {
		t.Fatalf("the daemon speaks English; doesn't the C library translate in C.UTF-8 here? %v", err)
	}
	b.wantErr(b.exec.Thaw(b.ctx, b.ref), kvmbackup.ErrNoAgent)
	b.guest.Suspend()
	_, err = b.exec.Freeze(b.ctx, b.ref)
	b.wantErr(err, kvmbackup.ErrDomainStopped)
	b.wantErr(b.exec.Thaw(b.ctx, b.ref), kvmbackup.ErrDomainStopped)

	// Jobs that end when the guest does, and before they begin.
	b.guest.Write("vda", 0x11, 0, 1<<20)
	b.backup("c1", "", full("vda"))
	b.spread("vda", 0x12)
	job, _ := b.slow("c2", "c1", incr("vda"))
	late, err := b.exec.PrepareJob(b.ctx, b.ref, b.spec("c3", "", full("vda")))
	b.must(err)
	b.guest.Destroy()
	_, err = job.Wait(b.ctx, nil)
	b.wantErr(err, kvmbackup.ErrJobFailed, kvmbackup.ErrDomainStopped)
	b.must(job.SetBandwidth(b.ctx, 0))
	b.must(job.Abort(b.ctx))
	b.must(job.Close(b.ctx))
	b.wantErr(late.Begin(b.ctx), kvmbackup.ErrDomainStopped)
	b.must(late.Close(b.ctx))
	b.must(b.exec.Thaw(b.ctx, b.ref))
	b.drop("c2")
	b.wantCheckpoints("c1")
}
