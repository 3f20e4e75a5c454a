//go:build cgo

package realguest

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os/exec"
	"strings"

	"libvirt.org/go/libvirt"
)

// Write fills a range of the disk with one byte, through the guest's device while it runs and with qemu-io while it
// is stopped.
func (g *Guest) Write(device string, pattern byte, offset, length int64) {
	g.tb.Helper()
	command := fmt.Sprintf("write -P %#x %d %d", pattern, offset, length)
	g.io(device, command)
	g.models[device].fill(pattern, offset, length)
}

// WriteZeroes has a range read as zeroes, without writing them. A backup job has to work through it all the same, at
// some 60 GiB/s: over a disk of that size it is the cheap way to a job that doesn't end before its bandwidth is
// limited.
func (g *Guest) WriteZeroes(device string, offset, length int64) {
	g.tb.Helper()
	const most = 1 << 30 // of one command
	for done := int64(0); done < length; done += most {
		g.io(device, fmt.Sprintf("write -z %d %d", offset+done, min(most, length-done)))
	}
	g.models[device].punch(offset, length)
}

// Flush has QEMU put what was written to the disk into its image, with its tables, so that a kill doesn't lose it.
func (g *Guest) Flush(device string) {
	g.tb.Helper()
	command := fmt.Sprintf("qemu-io %s flush", g.TopNode(device))
	if out := g.hmp(command); strings.TrimSpace(out) != "" {
		g.tb.Fatalf("%s: %s", command, out)
	}
}

// StartWrite is Write on a running guest that doesn't wait for the end. The model knows nothing of it.
func (g *Guest) StartWrite(device string, pattern byte, offset, length int64) {
	g.tb.Helper()
	g.io(device, fmt.Sprintf("aio_write -q -P %#x %d %d", pattern, offset, length))
}

func (g *Guest) io(device, command string) {
	g.tb.Helper()
	d := g.disk(device)
	if !g.Running() {
		out, err := exec.CommandContext(g.tb.Context(), "qemu-io", "-f", d.Format, "-c", command, d.path).CombinedOutput()
		if err != nil || strings.Contains(string(out), "failed") {
			g.tb.Fatalf("qemu-io %s on %s: %v: %s", command, d.path, err, out)
		}
		return
	}
	out := g.hmp(fmt.Sprintf(`qemu-io -d %s %q`, g.qdev(device), command))
	if strings.Contains(out, "rror") || strings.Contains(out, "failed") {
		g.tb.Fatalf("qemu-io %s on %s: %s", command, device, out)
	}
}

// hmp sends a line to QEMU's monitor for people.
func (g *Guest) hmp(line string) string {
	g.tb.Helper()
	out, err := g.Domain().QemuMonitorCommand(line, libvirt.DOMAIN_QEMU_MONITOR_COMMAND_HMP)
	g.must(line, err)
	return out
}

// qdev is the path of the disk's device in QEMU's object tree.
func (g *Guest) qdev(device string) string {
	g.tb.Helper()
	var dom struct {
		Disks []struct {
			Target struct {
				Dev string `xml:"dev,attr"`
				Bus string `xml:"bus,attr"`
			} `xml:"target"`
			Alias struct {
				Name string `xml:"name,attr"`
			} `xml:"alias"`
		} `xml:"devices>disk"`
	}
	g.must("parse XML", xml.Unmarshal([]byte(g.XML()), &dom))
	for _, d := range dom.Disks {
		switch {
		case d.Target.Dev != device:
		case d.Target.Bus == "virtio":
			return "/machine/peripheral/" + d.Alias.Name + "/virtio-backend"
		default:
			return "/machine/peripheral/" + d.Alias.Name
		}
	}
	g.tb.Fatalf("guest %s has no disk %s", g.Name, device)
	return ""
}

// QMP sends a command to QEMU and decodes its answer into result, which may be nil.
func (g *Guest) QMP(command string, arguments any, result any) {
	g.tb.Helper()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	text, err := json.Marshal(request)
	g.must(command, err)
	answer, err := g.Domain().QemuMonitorCommand(string(text), libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
	g.must(command, err)
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  json.RawMessage `json:"error"`
	}
	g.must(command, json.Unmarshal([]byte(answer), &reply))
	if reply.Error != nil {
		g.tb.Fatalf("guest %s: %s: %s", g.Name, text, reply.Error)
	}
	if result != nil {
		g.must(command, json.Unmarshal(reply.Return, result))
	}
}
