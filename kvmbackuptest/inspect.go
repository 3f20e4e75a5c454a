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
		st = kvmbackup.DomainStatus{Name: ref.Name, UUID: ref.UUID, State: kvmbackup.DomainStopped,
			Job: kvmbackup.JobNone, CanCompare: true}
		if m.known {
			m.domain.inspect(&st)
		}
		for _, k := range m.disks {
			d := k.inspect(m)
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
	st.CanPull, st.NoPull = d.running() && d.pull.Refused == "", d.pull.Refused
	switch {
	case d.foreign != nil:
		st.Job, st.JobDetail = d.foreign.state, d.foreign.detail
	case d.job != nil:
		st.Job, st.JobDetail = kvmbackup.JobBackup, "backup to "+d.job.spec.Dir
	}
	for _, name := range sortedKeys(d.checkpoints) {
		cp := d.checkpoints[name]
		st.Checkpoints = append(st.Checkpoints, kvmbackup.CheckpointStatus{Name: name,
			Devices: slices.Clone(cp.devices), CreatedAt: cp.created})
	}
}

func (k *disk) inspect(m *machine) kvmbackup.DiskStatus {
	st := kvmbackup.DiskStatus{Device: k.device, Serial: k.serial, Skip: k.skip, Shareable: k.shareable}
	if k.image == nil {
		return st
	}
	st.Source, st.Path, st.Format = k.image.path, k.image.path, k.image.format
	if st.Encryption = k.encryption; k.skip != "" {
		return st
	}
	if k.remote {
		st.Path = ""
	}
	if !m.running() && k.encryption != "" {
		st.Unreadable, st.BitmapsUnknown = "it is encrypted ("+k.encryption+")", "the image is encrypted"
		return st
	}
	if !m.running() {
		k.readable(m, &st)
		if st.Unreadable != "" {
			st.BitmapsUnknown = "the image can't be read"
			return st
		}
	}
	if !m.running() {
		st.Snapshots = slices.Clone(k.image.snapshots)
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
		if b := k.image.top().bitmaps.find(k.jobBitmap()); m.running() && b != nil && !b.transient {
			st.NameTaken = b.name
		}
	}
	return st
}

// readable fills in why the image of a stopped domain can't be read, if it can't. Who has it open is known for domains
// of this host; of a domain that libvirt doesn't know it may be any, under another name.
func (k *disk) readable(m *machine, st *kvmbackup.DiskStatus) {
	if k.remote {
		st.Unreadable = "it has no local path, so it can be read only while the domain runs"
		return
	}
	user, _ := k.image.user.(*domain)
	if len(k.image.sharers) > 0 {
		user = k.image.sharers[0]
	}
	switch {
	case user != nil:
		st.Unreadable, st.InUse = fmt.Sprintf("%v: %s", kvmbackup.ErrImageLocked, k.image.path), true
		if m.known && m.host.domains[user.name] == user {
			st.UsedBy = "domain " + user.name
		}
	case k.image.user == nil:
		if err := k.image.load(); err != nil {
			st.Unreadable = err.Error()
		}
	}
}

// jobBitmap is the name of the bitmap that libvirt makes on a disk for the length of an incremental job.
func (k *disk) jobBitmap() string { return "backup-" + k.device }

// Definition implements kvmbackup.Executor.
func (e *executor) Definition(
	ctx context.Context, ref kvmbackup.DomainRef, opts kvmbackup.DefinitionOptions,
) (def kvmbackup.Definition, err error) {
	err = e.do(ctx, "Definition", ref, func(m *machine) error {
		if m.known {
			def = kvmbackup.Definition{XML: m.xml(opts.Secrets), NVRAM: slices.Clone(m.nvram), TPM: slices.Clone(m.tpm)}
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
		fmt.Fprintf(&s, "    <disk type='file' device='disk'><driver name='qemu' type='%s'/>%s<target dev='%s' "+
			"bus='virtio'/></disk>\n",
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
