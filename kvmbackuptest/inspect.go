package kvmbackuptest

import (
	"context"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"github.com/kvmbackup/kvmbackup"
)

// Inspect implements kvmbackup.Executor.
func (e *executor) Inspect(ctx context.Context, ref kvmbackup.DomainRef) (st kvmbackup.DomainStatus, err error) {
	err = e.do(ctx, "Inspect", ref, func(m *machine) error {
		st = kvmbackup.DomainStatus{Name: ref.Name, UUID: ref.UUID, State: kvmbackup.DomainStopped, Job: kvmbackup.JobNone}
		if m.known {
			m.domain.inspect(&st)
		}
		for _, k := range m.disks {
			d := k.inspect(m.running())
			if !m.running() && m.known && m.persistent && k.image != nil && len(k.image.layers) > 1 {
				d.StackedOn = k.image.layers[1].path
			}
			st.Disks = append(st.Disks, d)
		}
		return nil
	})
	return st, err
}

// inspect fills in all but the disks.
func (d *domain) inspect(st *kvmbackup.DomainStatus) {
	st.Defined, st.UUID, st.Persistent = true, d.uuid, d.persistent
	st.State, st.PausedByError, st.CleanShutdown, st.ManagedSave = d.state, d.pausedByError, d.clean, d.saved
	switch {
	case d.foreign != nil:
		st.Job, st.JobDetail = d.foreign.state, d.foreign.detail
	case d.job != nil:
		st.Job, st.JobDetail = kvmbackup.JobBackup, "backup to "+d.job.spec.Dir
	}
	for _, name := range sortedKeys(d.checkpoints) {
		cp := d.checkpoints[name]
		st.Checkpoints = append(st.Checkpoints, kvmbackup.CheckpointStatus{Name: name, Devices: slices.Clone(cp.devices), CreatedAt: cp.created})
	}
}

func (k *disk) inspect(running bool) kvmbackup.DiskStatus {
	st := kvmbackup.DiskStatus{Device: k.device, Serial: k.serial, Skip: k.skip}
	if k.image == nil {
		return st
	}
	st.Source, st.Format = k.image.path, k.image.format
	if k.skip != "" {
		return st
	}
	if !running && k.image.user == nil {
		if err := k.image.load(); err != nil {
			st.Unreadable = err.Error()
			return st
		}
	}
	st.VirtualSize, st.Untrackable = k.image.size(), k.image.untrackable()
	for _, l := range k.image.layers {
		st.AllocatedBytes += int64(len(l.clusters)) * ClusterBytes
	}
	if k.image.compressed {
		st.AllocatedBytes /= 64
	}
	st.AllocatedBytes = min(st.AllocatedBytes, st.VirtualSize)
	if st.Untrackable == "" {
		st.Layers, st.Bitmaps = k.image.paths(func(*layer) bool { return true }), k.image.bitmapStatuses()
	}
	return st
}

// Definition implements kvmbackup.Executor.
func (e *executor) Definition(ctx context.Context, ref kvmbackup.DomainRef, secrets bool) (def kvmbackup.Definition, err error) {
	err = e.do(ctx, "Definition", ref, func(m *machine) error {
		if m.known {
			def = kvmbackup.Definition{XML: m.xml(secrets), NVRAM: slices.Clone(m.nvram)}
		}
		return nil
	})
	return def, err
}

// xml is as much of a domain's XML as tests may want to find again.
func (d *domain) xml(secrets bool) []byte {
	var s strings.Builder
	fmt.Fprintf(&s, "<domain type='kvm'>\n  <name>%s</name>\n  <uuid>%s</uuid>\n  <devices>\n", escape(d.name), d.uuid)
	for _, k := range d.disks {
		source, format := "", "raw"
		if k.image != nil {
			source, format = fmt.Sprintf("<source file='%s'/>", escape(k.image.path)), k.image.format
		}
		fmt.Fprintf(&s, "    <disk type='file' device='disk'><driver name='qemu' type='%s'/>%s<target dev='%s' bus='virtio'/></disk>\n",
			format, source, escape(k.device))
	}
	password := ""
	if secrets {
		password = " passwd='secret'"
	}
	fmt.Fprintf(&s, "    <graphics type='vnc'%s/>\n  </devices>\n</domain>\n", password)
	return []byte(s.String())
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder never fails
	return b.String()
}
