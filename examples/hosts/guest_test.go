package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// guest is a guest of QEMU without a system: it stays paused, and its writes come from outside.
type guest struct {
	dir  string
	conn *libvirt.Connect
	dom  *libvirt.Domain
}

// qemuConf lets QEMU run as the user of this test, without what only a system's libvirt is set up for.
func qemuConf() string {
	conf := "security_driver = \"none\"\nremember_owner = 0\nnamespaces = []\ncgroup_controllers = []\nstdio_handler = " +
		"\"file\"\n"
	if os.Geteuid() == 0 {
		conf += "user = \"+0\"\ngroup = \"+0\"\n"
	}
	return conf
}

// startGuest opens this process's libvirt and starts a guest on it.
func startGuest(ctx context.Context, name string) (g *guest, err error) {
	g = &guest{}
	if g.dir, err = os.MkdirTemp("", "hosts-"); err != nil { // short: the paths of sockets below it are limited
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	etc := filepath.Join(g.dir, "libvirt", "etc")
	images, err := qcow2.New(qcow2.Config{})
	if err != nil {
		return g, err
	}
	disk := filepath.Join(g.dir, "vda.qcow2")
	err = errors.Join(os.Chmod(g.dir, 0o755), os.MkdirAll(etc, 0o755),
		os.WriteFile(filepath.Join(etc, "qemu.conf"), []byte(qemuConf()), 0o644),
		os.Setenv("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null"),
		images.Create(ctx, disk, qcow2.CreateOptions{SizeBytes: 1 << 30}), libvirtjob.RunEventLoop())
	if err != nil {
		return g, err
	}
	if g.conn, err = libvirt.NewConnect("qemu:///embed?root=" + filepath.Join(g.dir, "libvirt")); err != nil {
		return g, err
	}
	kind := "qemu"
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		kind = "kvm"
		_ = f.Close()
	}
	g.dom, err = g.conn.DomainDefineXML(fmt.Sprintf(`<domain type='%s'><name>%s</name>
<memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/><apic/></features>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='%s'/><target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/><video><model type='none'/></video></devices></domain>`,
		kind, name, disk))
	if err != nil {
		return g, err
	}
	return g, g.dom.CreateWithFlags(libvirt.DOMAIN_START_PAUSED)
}

// write is the guest's.
func (g *guest) write(cluster, pattern string) error {
	command := fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P %s %sk 64k"`,
		pattern, cluster)
	answer, err := g.dom.QemuMonitorCommand(command, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_HMP)
	if err == nil && answer != "" {
		err = fmt.Errorf("%s: %s", command, answer)
	}
	return err
}

func (g *guest) close() (err error) {
	if g.dom != nil {
		err = errors.Join(g.dom.Destroy(), g.dom.Free())
	}
	if g.conn != nil {
		_, closed := g.conn.Close()
		err = errors.Join(err, closed)
	}
	return errors.Join(err, os.RemoveAll(g.dir))
}

// runAgent is the process of a host: it starts a guest and the agent, says where, and ends both at SIGTERM.
func runAgent(told string) (err error) {
	words := strings.Split(told, "\n")
	host, database, repo := words[0], words[1], words[2]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	g, err := startGuest(ctx, host+"-vm")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	s, err := open(ctx, database, repo)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.db.Close()) }()
	hypervisor, err := libvirtjob.New(g.conn, libvirtjob.Config{Images: s.images})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hypervisor.Close()) }()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	writes := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := g.write(r.FormValue("at"), r.FormValue("pattern")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
	defer writes.Close()
	fmt.Printf("http://%s %s %s\n", l.Addr(), writes.URL, host+"-vm")
	return s.serve(ctx, l, hypervisor, host)
}
