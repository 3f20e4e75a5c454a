package libvirtjob

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
)

func goodSpec() kvmbackup.JobSpec {
	return kvmbackup.JobSpec{
		Checkpoint: "c2", Base: "c1", Dir: "/b & <c>",
		Volumes: []kvmbackup.JobVolume{
			{Device: "vda", Kind: kvmbackup.KindIncremental, File: "a'.qcow2", Tracked: true},
			{Device: "vdb", Kind: kvmbackup.KindFull, File: "b.qcow2"},
		},
	}
}

func TestBackupXML(t *testing.T) {
	t.Parallel()
	disks := []disk{{device: "vda"}, {device: "vdb"}, {device: "vdc"}, {device: "sda", empty: true}}
	text, err := backupXML(goodSpec(), disks)
	if err != nil {
		t.Fatal(err)
	}
	want := `<domainbackup mode="push">
  <disks>
    <disk type="file" name="vda" backup="yes" backupmode="incremental" incremental="c1">
      <driver type="qcow2"></driver>
      <target file="/b &amp; &lt;c&gt;/a&#39;.qcow2"></target>
    </disk>
    <disk type="file" name="vdb" backup="yes" backupmode="full">
      <driver type="qcow2"></driver>
      <target file="/b &amp; &lt;c&gt;/b.qcow2"></target>
    </disk>
    <disk name="vdc" backup="no"></disk>
  </disks>
</domainbackup>`
	if text != want {
		t.Errorf("backup XML is\n%s", text)
	}
	shared := []disk{{device: "vda"}, {device: "vdb", shareable: true}}
	text, err = backupXML(goodSpec(), shared)
	if err != nil || strings.Index(text, `name="vdb"`) > strings.Index(text, `name="vda"`) {
		t.Errorf("a shareable disk doesn't come first (%v):\n%s", err, text)
	}
	text, err = checkpointXML("c2", time.Unix(1700000000, 0), disks, []string{"vda"})
	if err != nil {
		t.Fatal(err)
	}
	want = `<domaincheckpoint>
  <name>c2</name>
  <creationTime>1700000000</creationTime>
  <disks>
    <disk name="vda" checkpoint="bitmap"></disk>
    <disk name="vdb" checkpoint="no"></disk>
    <disk name="vdc" checkpoint="no"></disk>
  </disks>
</domaincheckpoint>`
	if text != want {
		t.Errorf("checkpoint XML is\n%s", text)
	}
}

func TestCheckSpec(t *testing.T) {
	t.Parallel()
	if err := checkSpec(goodSpec()); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*kvmbackup.JobSpec){
		"checkpoint's name": func(s *kvmbackup.JobSpec) { s.Checkpoint = "a/b" },
		"leading dot":       func(s *kvmbackup.JobSpec) { s.Checkpoint = ".a" },
		"base's name":       func(s *kvmbackup.JobSpec) { s.Base = "" },
		"relative folder":   func(s *kvmbackup.JobSpec) { s.Dir = "b" },
		"path as file":      func(s *kvmbackup.JobSpec) { s.Volumes[0].File = "../a" },
		"no file":           func(s *kvmbackup.JobSpec) { s.Volumes[0].File = "" },
		"dots":              func(s *kvmbackup.JobSpec) { s.Volumes[0].File = ".." },
		"control character": func(s *kvmbackup.JobSpec) { s.Volumes[0].File = "a\x01" },
		"broken UTF-8":      func(s *kvmbackup.JobSpec) { s.Dir = "/\xff" },
		"no kind":           func(s *kvmbackup.JobSpec) { s.Volumes[0].Kind = 0 },
		"tracked in vain":   func(s *kvmbackup.JobSpec) { s.Checkpoint = "" },
	} {
		spec := goodSpec()
		spoil(&spec)
		if err := checkSpec(spec); !errors.Is(err, kvmbackup.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkSpec(kvmbackup.JobSpec{Dir: "/b"}); !errors.Is(err, kvmbackup.ErrNothingToBackUp) {
		t.Errorf("no volumes: %v", err)
	}
}

// TestUsable has chains of layers, top first, as the bitmaps on them: + recording, - disabled, ! inconsistent, . none.
func TestUsable(t *testing.T) {
	t.Parallel()
	for chain, want := range map[string]bool{
		"": false, "+": true, "-": false, "!": false, ".": false,
		"++": true, "+.": true, ".+": false, "+!": false, "!+": false, "+-": false,
		"+.+": false, "++.": true, "+..": true, "++!": false,
	} {
		var nodes []node
		for _, c := range strings.Split(chain, "") {
			n := node{Bitmaps: []nodeBitmap{{Name: "other", Recording: true}}}
			if c != "." {
				n.Bitmaps = append(n.Bitmaps, nodeBitmap{Name: "c", Recording: c == "+", Inconsistent: c == "!"})
			}
			nodes = append(nodes, n)
		}
		if got := usable(nodes, "c"); got != want {
			t.Errorf("%q: %v", chain, got)
		}
	}
}

// TestActive has the disks of a paused guest, as their nodes: + active, - not, ? a QEMU that doesn't say, . no node,
// and r a read-only disk.
func TestActive(t *testing.T) {
	t.Parallel()
	for nodes, want := range map[string]string{
		"": "unknown", "?": "unknown", "??": "unknown", ".": "unknown", "+.": "unknown", "r": "unknown",
		"+": "active", "++": "active", "+r": "active", "-": "inactive", "+-": "inactive", "-+": "inactive", "r-": "inactive",
	} {
		var disks []disk
		g := graph{}
		for i, c := range nodes {
			d, n := disk{layers: []uint{uint(i)}}, node{}
			switch c {
			case '+', '-':
				active := c == '+'
				n.Active = &active
			case 'r':
				d.skip = "read-only"
			}
			if c != '.' {
				g[fmt.Sprintf("libvirt-%d-format", i)] = n
			}
			disks = append(disks, d)
		}
		got := "unknown"
		if active, told := g.active(disks); told && active {
			got = "active"
		} else if told {
			got = "inactive"
		}
		if got != want {
			t.Errorf("%q is %s, want %s", nodes, got, want)
		}
	}
}
