package libvirtjob

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// node is one block node of a live QEMU.
type node struct {
	Name  string `json:"node-name"`
	Drv   string `json:"drv"`
	File  string `json:"file"`
	Image struct {
		VirtualSize int64 `json:"virtual-size"`
		ActualSize  int64 `json:"actual-size"`
		Encrypted   bool  `json:"encrypted"`
		Specific    struct {
			Data struct {
				Compat   string `json:"compat"`
				DataFile string `json:"data-file"`
			} `json:"data"`
		} `json:"format-specific"`
	} `json:"image"`
	Bitmaps []nodeBitmap `json:"dirty-bitmaps"`
	// Active says that QEMU works on the image; nil: a QEMU before 10.0, which doesn't say.
	Active  *bool  `json:"active"`
	storage string // driver of the node that has the file or device
}

// allocated is what the layer holds, of which QEMU knows nothing for block devices and most of what is in a network:
// they count as full.
func (n node) allocated() int64 {
	if n.Image.ActualSize > 0 || n.storage == "file" {
		return n.Image.ActualSize
	}
	return n.Image.VirtualSize
}

// nodeBitmap is one bitmap of a node.
type nodeBitmap struct {
	Name         string `json:"name"`
	Count        int64  `json:"count"`       // bytes
	Granularity  int64  `json:"granularity"` // bytes that one bit stands for
	Recording    bool   `json:"recording"`
	Persistent   bool   `json:"persistent"`
	Inconsistent bool   `json:"inconsistent"`
}

func (n node) bitmap(name string) (nodeBitmap, bool) {
	for _, b := range n.Bitmaps {
		if b.Name == name {
			return b, true
		}
	}
	return nodeBitmap{}, false
}

// qmpError is what QEMU says against a command, always in English.
type qmpError struct{ command, desc string }

func (e *qmpError) Error() string { return e.command + ": QEMU says: " + e.desc }

// qmp runs a QMP command on a running domain and decodes what it returns into result, which may be nil.
func qmp(ctx context.Context, d *domain, command string, arguments map[string]any, result any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	text, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	answer, err := call(ctx, d, func(dom *libvirt.Domain) (string, error) {
		return dom.QemuMonitorCommand(string(text), libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	var reply struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(answer), &reply); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if reply.Error != nil {
		return &qmpError{command, reply.Error.Desc}
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(reply.Return, result)
}

// graph is the block nodes of a live QEMU by their names.
type graph map[string]node

func queryGraph(ctx context.Context, d *domain) (graph, error) {
	var nodes []node
	if err := qmp(ctx, d, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return nil, err
	}
	g := graph{}
	for _, n := range nodes {
		g[n.Name] = n
	}
	return g, nil
}

// chain returns the nodes of a disk's layers, top first, by the names that libvirt makes from its numbers. The list
// ends early where a node has another name.
func (g graph) chain(d disk) []node {
	var nodes []node
	for _, index := range d.layers {
		storage, stored := g[fmt.Sprintf("libvirt-%d-storage", index)]
		n, ok := g[fmt.Sprintf("libvirt-%d-format", index)]
		if !ok { // newer libvirt, 11.3 for one, gives a raw layer none above its slice or its file
			n, ok = g[fmt.Sprintf("libvirt-%d-slice-sto", index)]
		}
		switch {
		case !ok && !stored:
			return nodes
		case !ok:
			n = storage
		case stored: // the node above may say json:{...} instead
			n.File = storage.File
		}
		n.storage = storage.Drv
		nodes = append(nodes, n)
	}
	return nodes
}

// bitmapStatuses lists the bitmaps on a chain of layers as far as they tell what changed on the disk. That takes a
// bitmap on the top layer that records, and no gap or break on the way down to where it began: libvirt joins the parts
// and would join those of a broken chain too.
func bitmapStatuses(chain []node) []kvmbackup.BitmapStatus {
	var out []kvmbackup.BitmapStatus
	seen := map[string]bool{}
	for _, n := range chain {
		for _, b := range n.Bitmaps {
			if b.Name == "" || seen[b.Name] {
				continue
			}
			seen[b.Name] = true
			out = append(out, kvmbackup.BitmapStatus{
				Name: b.Name, Persistent: b.Persistent, Inconsistent: !usable(chain, b.Name), Layers: having(chain, b.Name),
			})
		}
	}
	return out
}

// having returns the files of the nodes that have the bitmap.
func having(chain []node, name string) []string {
	return files(slices.DeleteFunc(slices.Clone(chain), func(n node) bool {
		_, ok := n.bitmap(name)
		return !ok
	}))
}

func files(chain []node) []string {
	var out []string
	for _, n := range chain {
		out = append(out, n.File)
	}
	return out
}

// usable says whether the bitmap of that name tells everything that changed on the disk since it began. Parts of
// different sizes, as when a disk has grown after a snapshot, are of no use: QEMU can't merge them.
func usable(chain []node, name string) bool {
	ended := false
	for i, n := range chain {
		b, ok := n.bitmap(name)
		switch {
		case !ok && i == 0:
			return false
		case !ok:
			ended = true
		case ended, b.Inconsistent, !b.Recording, n.Image.VirtualSize != chain[0].Image.VirtualSize:
			return false
		}
	}
	return len(chain) > 0
}

// dirtyBytes sums up what the bitmap of that name marks over the layers.
func dirtyBytes(chain []node, name string) int64 {
	var sum int64
	for _, n := range chain {
		b, _ := n.bitmap(name)
		sum += b.Count
	}
	return min(sum, chain[0].Image.VirtualSize)
}

// DirtyBytes implements kvmbackup.Executor. A running domain's QEMU is asked; a bitmap that goes on over several layers
// counts a cluster once per layer.
func (e *Executor) DirtyBytes(
	ctx context.Context, ref kvmbackup.DomainRef, name kvmbackup.CheckpointName,
) (map[string]int64, error) {
	t, err := e.open(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer t.close()
	if !t.active {
		return e.offline.DirtyBytes(ctx, t.images, name)
	}
	g, err := queryGraph(ctx, t.domain)
	if err != nil {
		return nil, fmt.Errorf("read bitmaps of %q: %w", ref.Name, err)
	}
	return g.dirtyBytes(t.disks, name), nil
}

// dirtyBytes returns per device what the bitmap of that name marks, where it is usable.
func (g graph) dirtyBytes(disks []disk, name kvmbackup.CheckpointName) map[string]int64 {
	sizes := map[string]int64{}
	for _, d := range disks {
		if chain := g.chain(d); d.skip == "" && usable(chain, string(name)) {
			sizes[d.device] = dirtyBytes(chain, string(name))
		}
	}
	return sizes
}
