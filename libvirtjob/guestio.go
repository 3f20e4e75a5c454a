package libvirtjob

import (
	"context"
	"time"

	"libvirt.org/go/libvirt"

	"github.com/kvmbackup/kvmbackup"
)

// guestMeter reads how the guest's requests to the disks of a job fare, from libvirt's block statistics. They count
// what the guest's devices ask for, and not the job. It is for one goroutine.
type guestMeter struct {
	dom     *domain
	volumes []kvmbackup.JobVolume
	before  *guestIO // at the first look
	last    guestIO
}

// guestIO is what kvmbackup.JobProgress says of a guest's requests.
type guestIO struct {
	requests int64
	time     time.Duration
}

func (g guestIO) in(p *kvmbackup.JobProgress) { p.GuestRequests, p.GuestTime = g.requests, g.time }

// look returns what has been since the first look. Where there is no answer it is what the look before has seen.
func (m *guestMeter) look(ctx context.Context) guestIO {
	var now guestIO
	for _, v := range m.volumes {
		s, err := call(ctx, m.dom, func(dom *libvirt.Domain) (*libvirt.DomainBlockStats, error) {
			return dom.BlockStatsFlags(v.Device, 0)
		})
		if err != nil {
			return m.last
		}
		now.requests += s.RdReq + s.WrReq + s.FlushReq
		now.time += time.Duration(s.RdTotalTimes + s.WrTotalTimes + s.FlushTotalTimes) // nanoseconds
	}
	if m.before == nil {
		m.before = &now
	}
	m.last = guestIO{requests: now.requests - m.before.requests, time: now.time - m.before.time}
	return m.last
}
