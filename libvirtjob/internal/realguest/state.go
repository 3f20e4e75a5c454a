//go:build cgo

package realguest

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"path/filepath"
	"slices"
)

// Checkpoints returns the names that libvirt lists, sorted; none for a transient guest that is stopped.
func (g *Guest) Checkpoints() []string {
	g.tb.Helper()
	dom, err := g.Host.Conn.LookupDomainByName(g.Name)
	if err != nil {
		return nil
	}
	defer func() { _ = dom.Free() }()
	list, err := dom.ListAllCheckpoints(0)
	g.must("list checkpoints", err)
	var names []string
	for i := range list {
		name, err := list[i].GetName()
		g.must("list checkpoints", err)
		names = append(names, name)
		_ = list[i].Free()
	}
	slices.Sort(names)
	return names
}

// Bitmaps returns the names of the disk's bitmaps over all layers, sorted; "!" is put behind an inconsistent one.
// A running guest's QEMU is asked, a stopped one's images.
func (g *Guest) Bitmaps(device string) []string {
	g.tb.Helper()
	var names []string
	if g.Running() {
		names = g.liveBitmaps(device)
	} else {
		names = g.imageBitmaps(device)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

type liveNode struct {
	Name    string `json:"node-name"`
	Bitmaps []struct {
		Name         string
		Inconsistent bool
	} `json:"dirty-bitmaps"`
}

func (g *Guest) liveBitmaps(device string) []string {
	g.tb.Helper()
	var nodes []liveNode
	g.QMP("query-named-block-nodes", map[string]any{"flat": true}, &nodes)
	var names []string
	for _, index := range g.layers(device) {
		for _, n := range nodes {
			if n.Name != fmt.Sprintf("libvirt-%d-format", index) {
				continue
			}
			for _, b := range n.Bitmaps {
				names = append(names, flagged(b.Name, b.Inconsistent))
			}
		}
	}
	return names
}

type layerXML struct {
	Source struct {
		Index int `xml:"index,attr"`
	} `xml:"source"`
	Index   int       `xml:"index,attr"`
	Backing *layerXML `xml:"backingStore"`
}

// layers returns libvirt's numbers of the disk's layers, which its node names carry.
func (g *Guest) layers(device string) []int {
	g.tb.Helper()
	var dom struct {
		Disks []struct {
			Target struct {
				Dev string `xml:"dev,attr"`
			} `xml:"target"`
			layerXML
		} `xml:"devices>disk"`
	}
	g.must("parse XML", xml.Unmarshal([]byte(g.XML()), &dom))
	var indexes []int
	for _, d := range dom.Disks {
		if d.Target.Dev != device {
			continue
		}
		indexes = append(indexes, d.Source.Index)
		for l := d.Backing; l != nil; l = l.Backing {
			indexes = append(indexes, l.Index)
		}
	}
	return indexes
}

// TopNode returns the name of the block node that the running guest writes to.
func (g *Guest) TopNode(device string) string {
	g.tb.Helper()
	return fmt.Sprintf("libvirt-%d-format", g.layers(device)[0])
}

func (g *Guest) imageBitmaps(device string) []string {
	g.tb.Helper()
	var names []string
	for _, image := range chainInfo(g, g.Image(device)) {
		for _, b := range image.Specific.Data.Bitmaps {
			names = append(names, flagged(b.Name, slices.Contains(b.Flags, "in-use")))
		}
	}
	return names
}

type imageInfo struct {
	Size     int64  `json:"virtual-size"`
	Backing  string `json:"full-backing-filename"`
	Specific struct {
		Data struct {
			Bitmaps []struct {
				Name  string
				Flags []string
			}
		}
	} `json:"format-specific"`
}

func chainInfo(g *Guest, path string) []imageInfo {
	g.tb.Helper()
	var infos []imageInfo
	g.must("image info", json.Unmarshal(qemuImg(g.tb, "info", "--backing-chain", "--output=json", path), &infos))
	return infos
}

func flagged(name string, inconsistent bool) string {
	if inconsistent {
		return name + "!"
	}
	return name
}

// Files returns the names in a folder, sorted, for comparing what a test leaves there.
func Files(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, "*"))
	for i := range paths {
		paths[i] = filepath.Base(paths[i])
	}
	return paths
}
