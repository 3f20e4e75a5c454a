package bench_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/libvirtjob/internal/realguest"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

func TestMain(m *testing.M) {
	if order := os.Getenv(orderEnv); order != "" {
		os.Exit(obey(order))
	}
	flag.Parse()
	benchmarks := flag.Lookup("test.bench").Value.String() != ""
	if benchmarks {
		describeMachine(os.Stdout)
	}
	code := realguest.Main(m)
	if benchmarks {
		describeLoad(os.Stdout, "load-after")
	}
	os.Exit(code)
}

// lab is a libvirtd with the guests of a benchmark, each used by one contestant.
type lab struct {
	*testing.B
	host *realguest.Host
	dir  string
}

func newLab(b *testing.B) *lab {
	b.Helper()
	return &lab{B: b, host: realguest.Daemon(b), dir: b.TempDir()}
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// folder makes a new folder in the lab's.
func (l *lab) folder(name string) string {
	l.Helper()
	dir := filepath.Join(l.dir, name)
	l.must(os.MkdirAll(dir, 0o755))
	return dir
}

func (l *lab) run(name string, args ...string) {
	l.Helper()
	if out, err := exec.CommandContext(l.Context(), name, args...).CombinedOutput(); err != nil {
		l.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// image makes a qcow2 image of which the first bytes are random, and the rest isn't allocated.
func (l *lab) image(name string, sizeBytes, dataBytes int64) string {
	l.Helper()
	raw, image := filepath.Join(l.dir, name+".raw"), filepath.Join(l.dir, name+".qcow2")
	f, err := os.Create(raw)
	l.must(err)
	random, block := rand.NewChaCha8([32]byte{1}), make([]byte, mib)
	for range dataBytes / mib {
		_, _ = random.Read(block) // it never fails
		_, err = f.Write(block)
		l.must(err)
	}
	l.must(f.Truncate(sizeBytes))
	l.must(f.Close())
	l.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
	l.must(os.Remove(raw))
	return image
}

// guest is one paused guest.
type guest struct {
	*realguest.Guest
	lab     *lab
	dom     *libvirt.Domain
	devices []string
	serial  int // of its bare checkpoints
	base    string
	files   map[string]string // device: newest file of a bare backup
}

// guest starts a guest whose disks are copies of the images.
func (l *lab) guest(name string, images ...string) *guest {
	l.Helper()
	dir := l.folder("images-" + name)
	g := &guest{lab: l, files: map[string]string{}}
	cfg := realguest.Config{Name: fmt.Sprintf("%s-%d", name, os.Getpid()), Persistent: true, Host: l.host}
	for i, image := range images {
		device := "vd" + string(rune('a'+i))
		path := filepath.Join(dir, device+".qcow2")
		l.run("cp", "--reflink=auto", "--sparse=always", image, path)
		cfg.Disks = append(cfg.Disks, realguest.Disk{Device: device, Path: path})
		g.devices = append(g.devices, device)
	}
	g.Guest = realguest.Start(l.B, cfg)
	g.dom = g.Domain()
	return g
}

func (g *guest) vm() kvmbackup.VMID { return kvmbackup.VMID(g.Name) }

// scatter writes the number of bytes in pieces of 64 KiB, evenly over the first bytes of the first disk; each round to
// other places.
func (g *guest) scatter(round int, bytes, over int64) {
	g.lab.Helper()
	const piece = 64 * kib
	step := over / (bytes / piece)
	shift := int64(round) * piece % step
	for at := shift; at < over; at += step {
		g.write(g.devices[0], byte(round+1), at, piece)
	}
}

// write is what a guest's write is to QEMU.
func (g *guest) write(device string, pattern byte, offset, length int64) {
	g.lab.Helper()
	command := fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "write -P %#x %d %d"`,
		device[2]-'a', pattern, offset, length)
	out, err := g.dom.QemuMonitorCommand(command, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_HMP)
	g.lab.must(err)
	if strings.Contains(out, "rror") || strings.Contains(out, "failed") {
		g.lab.Fatalf("%s: %s", command, out)
	}
}

// servers returns the processes that work for every contestant: QEMU, while it runs, and libvirtd.
func (g *guest) servers() []int {
	var pids []int
	if g.Running() {
		pids = append(pids, g.PID())
	}
	text, err := os.ReadFile(filepath.Join(g.Host.Root, "run", "libvirtd.pid"))
	if err != nil {
		return pids
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
		pids = append(pids, pid)
	}
	return pids
}

// holds compares a restored image with what the guest's disk holds.
func (g *guest) holds(device, image string) {
	g.lab.Helper()
	g.lab.run("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", g.Image(device), image)
}
