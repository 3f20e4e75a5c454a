package libvirtjob

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// guardArg is the only argument of a guard, which is the host's own program.
const guardArg = "kvmbackup-guard"

// A process that dies while libvirt is beginning its job hasn't told its guard of the begin. So the guard looks for it
// that long.
const guardBeginLimit = 2 * time.Minute

// What a program tells its guard after the order.
const (
	guardBegan = "began"
	guardDone  = "done"
)

// guardInstalled says that this program's main calls Guard.
var guardInstalled atomic.Bool

// Guard has pull jobs end with the program that reads them. Call it in the first line of main, before flags are looked
// at.
//
// For each pull job an Executor then starts the program once more, as a process that waits for the program's end. In
// that process Guard doesn't return. It aborts the job when the program is gone, however it went, and ends when the job
// is over. It needs libvirt alone, ends no job but that one, and lives on when the program's terminal or session ends.
// As root it also leaves the program's control group, where that is possible.
//
// A pull job that was left lasts until the next operation on the VM in a program that doesn't call Guard, and with
// libvirt's embedded driver, which one process at a time can use. A guest's write fails when its scratch is full.
func Guard() {
	if len(os.Args) != 2 || os.Args[1] != guardArg {
		guardInstalled.Store(true)
		return
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	leaveControlGroup()
	if err := beGuard(os.Stdin, os.Stdout); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// guardOrder is what a guard needs to know of its job.
type guardOrder struct {
	URI    string `json:"uri"`
	UUID   string `json:"uuid"`   // of the domain
	Socket string `json:"socket"` // of the job's exports, which no other job has
}

// beGuard waits until the program says that its job is over, or is gone.
func beGuard(in io.Reader, out io.WriteCloser) error {
	from := bufio.NewScanner(in)
	var order guardOrder
	if !from.Scan() {
		return errors.Join(from.Err(), io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(from.Bytes(), &order); err != nil {
		return err
	}
	if _, err := io.WriteString(out, "ready\n"); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	began := false
	for from.Scan() {
		switch from.Text() {
		case guardDone:
			return nil
		case guardBegan:
			began = true
		}
	}
	return order.end(began)
}

// end aborts the job. It goes on until libvirt says that the job isn't there, and longer where it may not have begun
// yet.
func (o guardOrder) end(began bool) error {
	if err := RunEventLoop(); err != nil { // the embedded driver needs it
		return err
	}
	looking := time.Now()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		there, err := o.look()
		if err == nil && !there && (began || time.Since(looking) > guardBeginLimit) {
			return nil
		}
		began = began || there
		<-time.After(pause)
	}
}

// look aborts the job if it is there, and says so.
func (o guardOrder) look() (there bool, err error) {
	conn, err := libvirt.NewConnect(o.URI)
	if err != nil {
		return false, err
	}
	defer func() { _, _ = conn.Close() }()
	dom, err := conn.LookupDomainByUUIDString(o.UUID)
	if isCode(err, libvirt.ERR_NO_DOMAIN) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = dom.Free() }()
	text, err := dom.BackupGetXMLDesc(0)
	if isCode(err, libvirt.ERR_NO_DOMAIN_BACKUP) || isCode(err, libvirt.ERR_OPERATION_INVALID) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if socket, err := exportSocket(text); err != nil || socket != o.Socket {
		return false, err
	}
	return true, dom.AbortJob()
}

// exportSocket is the path of the socket of a pull job's exports; empty for another job.
func exportSocket(text string) (string, error) {
	var def libvirtxml.DomainBackup
	if err := def.Unmarshal(text); err != nil {
		return "", err
	}
	if def.Pull == nil || def.Pull.Server == nil || def.Pull.Server.UNIX == nil {
		return "", nil
	}
	return def.Pull.Server.UNIX.Socket, nil
}
