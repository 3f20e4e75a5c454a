package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/internal/swap"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// OpenRequest says how to open a restore point without copying it.
type OpenRequest struct {
	Backup kvmbackup.BackupID
	// Volumes chooses volumes. Empty: all.
	Volumes []kvmbackup.VolumeID
	// Dir takes one writable overlay per volume, named DEVICE.VOLUMEID.overlay.qcow2; it must exist and be on storage that
	// the guest may write. The overlays stand on the repository's files: a guest can run from them while they are
	// copied elsewhere.
	Dir string
	// Purpose is recorded with the hold and shown when it stands in the way of a deletion.
	Purpose string
}

// Opened is an open restore point. The hold in the store keeps its chain from being removed until Close, also across
// restarts of the host: after one, Engine.CloseRestorePoint with the HoldID does the same.
type Opened struct {
	Backup  kvmbackup.Backup
	HoldID  string
	Volumes []RestoredVolume
	held    held
}

// Close releases the hold as Engine.CloseRestorePoint does. The overlays stay. Once it has succeeded, calling it again
// does nothing.
func (o *Opened) Close(ctx context.Context) error { return o.held.close(ctx) }

// held is what is open until it is closed. It is safe for concurrent use.
type held struct {
	mu     sync.Mutex
	closed bool
	end    func(context.Context) error
}

// close can be called again after an error, and does nothing after a success.
func (h *held) close(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	err := h.end(ctx)
	h.closed = err == nil
	return err
}

// Open verifies the chain as Restore does, holds it, and makes a writable overlay per volume. After an error nothing is
// left. Backups of the VM may go on meanwhile.
//
// What is verified is the chain as it is now. QEMU follows the overlay's backing link and those below it whenever the
// guest starts, and a header that was rewritten meanwhile can lead it to any file it may read. So as long as a guest
// runs from overlays, the repository must be trusted as much as the guest's own storage. Restore and Browse tell QEMU
// which files to open.
//
// A guest can't open sealed files. An overlay on a volume that has one stands on an export of the chain, which this
// process serves on a socket beside it, DEVICE.VOLUMEID.socket, until Close. It ends with this process, also by a
// crash, and the guest's disk with it. QEMU's user has to be able to connect to it.
//
// Returns ErrUnsupported if a volume's overlay and the files below it are more than the hypervisor starts a domain on:
// about 25 with libvirt 10.8 to 11.10, 200 with others.
func (e *Engine) Open(ctx context.Context, req OpenRequest) (*Opened, error) {
	if req.Dir == "" && req.Backup != "" {
		return nil, e.refused(ctx, "open", req.Backup, fmt.Errorf("%w request: no folder for the overlays",
			kvmbackup.ErrInvalid))
	}
	out := &Opened{}
	var served exports
	err := e.hold(ctx, "open", req, func(ctx context.Context, jobs []copyJob) error {
		if err := e.startable(ctx, jobs); err != nil {
			return err
		}
		for _, j := range jobs {
			name := fmt.Sprintf("%s.%s.overlay.qcow2", j.out.Device, j.out.VolumeID)
			err := kvmbackup.ValidFileName(name)
			if err == nil {
				j.out.Format, j.out.Path = qcow2.FormatQcow2, filepath.Join(req.Dir, name)
				err = e.overlay(ctx, j, &served)
			}
			if err != nil {
				return errors.Join(fmt.Errorf("overlay of volume %q: %w", j.out.VolumeID, err), e.removeOverlays(ctx, out.Volumes))
			}
			out.Volumes = append(out.Volumes, j.out)
		}
		return nil
	}, out)
	if err != nil {
		if left := served.close(); left != nil {
			err = errors.Join(err, left)
		}
		return nil, err
	}
	out.held.end = func(ctx context.Context) error { return e.closeServed(ctx, req.Backup, out.HoldID, served.close) }
	return out, nil
}

// exports are what an open restore point serves.
type exports struct{ servers []*qcow2.NBDServer }

func (s *exports) close() error {
	var errs []error
	for _, server := range s.servers {
		errs = append(errs, server.Close())
	}
	return errors.Join(errs...)
}

// closeServed ends what is served, and releases the hold.
func (e *Engine) closeServed(ctx context.Context, id kvmbackup.BackupID, holdID string, end func() error) error {
	o := e.query("close", "", "end export")
	o.backup = id
	return o.joined(ctx, []error{o.wrap(ctx, end()), e.CloseRestorePoint(ctx, id, holdID)})
}

// startable refuses overlays on which the hypervisor, where it knows of a limit, starts no domain.
func (e *Engine) startable(ctx context.Context, jobs []copyJob) error {
	hypervisor, ok := e.cfg.Executor.(kvmbackup.LayerLimiter)
	if !ok {
		return nil
	}
	limit, err := hypervisor.LayerLimit(ctx)
	if err != nil {
		return nil //nolint:nilerr // the domain may start elsewhere, and overlays need no hypervisor
	}
	for _, j := range jobs {
		if anySealed(j.layers) { // all that the guest sees below the overlay is an export
			continue
		}
		if files := len(j.layers) + 1; files > limit {
			return fmt.Errorf("%w: volume %q would be a chain of %d files, and this hypervisor starts no domain on "+
				"more than %d; restore it instead",
				kvmbackup.ErrUnsupported, j.out.VolumeID, files, limit)
		}
	}
	return nil
}

// guestClients is how many connections a guest's QEMU, and tools beside it, may have to an export.
const guestClients = 16

// overlay stands on the newest layer's file, or on an export of the chain where a layer is sealed.
func (e *Engine) overlay(ctx context.Context, j copyJob, served *exports) error {
	if anySealed(j.layers) {
		return e.overlayOnExport(ctx, j, served)
	}
	file, err := filepath.Abs(j.layers[0].file)
	if err != nil {
		return err
	}
	return e.cfg.Images.Create(ctx, j.out.Path, qcow2.CreateOptions{
		SizeBytes: j.out.VirtualSize, BackingFile: file, BackingFormat: qcow2.FormatQcow2,
	})
}

func (e *Engine) overlayOnExport(ctx context.Context, j copyJob, served *exports) error {
	socket, err := filepath.Abs(strings.TrimSuffix(j.out.Path, ".overlay.qcow2") + ".socket")
	if err != nil {
		return err
	}
	server, err := e.cfg.Images.ServeNBD(ctx, qcow2.NBDOptions{
		Path: j.layers[0].path(), Secret: j.layers[0].secret, Backing: backing(j.layers), Socket: socket, ReadOnly: true,
		Shared: guestClients, ExportName: j.out.Device,
	})
	if err != nil {
		return err
	}
	served.servers = append(served.servers, server)
	return e.cfg.Images.Create(ctx, j.out.Path, qcow2.CreateOptions{
		SizeBytes: j.out.VirtualSize, BackingSocket: socket, BackingExport: j.out.Device,
	})
}

func (e *Engine) removeOverlays(ctx context.Context, overlays []RestoredVolume) error {
	var errs []error
	for _, v := range overlays {
		errs = append(errs, e.changing(ctx, []string{v.Path}, func(w *swap.Work) error { return w.Remove(v.Path) }))
	}
	return errors.Join(errs...)
}

// Browsed is a read-only NBD export of one volume for browsing its files. The hold stays until Close, or, after a crash
// of the process, until CloseRestorePoint with the HoldID.
type Browsed struct {
	HoldID string
	Socket string
	held   held
}

// Browse verifies the chain as Restore does, holds it, and serves one volume read-only over NBD on a unix socket, by
// qemu-nbd, until Close. The verified files are served, and backing links in their headers are not followed.
func (e *Engine) Browse(
	ctx context.Context, id kvmbackup.BackupID, volume kvmbackup.VolumeID, socket string,
) (*Browsed, error) {
	for _, field := range []struct{ what, value string }{{"volume ID", string(volume)}, {"path of the socket", socket}} {
		if field.value == "" && id != "" {
			return nil, e.refused(ctx, "browse", id, fmt.Errorf("%w: the %s is empty", kvmbackup.ErrInvalid, field.what))
		}
	}
	var server *qcow2.NBDServer
	var out Opened
	req := OpenRequest{Backup: id, Volumes: []kvmbackup.VolumeID{volume}, Purpose: "browse over NBD on " + socket}
	err := e.hold(ctx, "browse", req, func(ctx context.Context, jobs []copyJob) (err error) {
		layers := jobs[0].layers
		server, err = e.cfg.Images.ServeNBD(ctx, qcow2.NBDOptions{
			Path: layers[0].path(), Secret: layers[0].secret, Backing: backing(layers), Socket: socket, ReadOnly: true,
			Shared: 8,
		})
		return err
	}, &out)
	if err != nil {
		return nil, err
	}
	return &Browsed{HoldID: out.HoldID, Socket: socket, held: held{end: func(ctx context.Context) error {
		return e.closeServed(ctx, id, out.HoldID, server.Close)
	}}}, nil
}

// Close ends the export and releases the hold. Once it has succeeded, calling it again does nothing.
func (b *Browsed) Close(ctx context.Context) error { return b.held.close(ctx) }

// hold prepares the volumes as a restore does, records the hold and then calls open; if that fails the hold is released
// again.
func (e *Engine) hold(
	ctx context.Context, name string, req OpenRequest, open func(context.Context, []copyJob) error, out *Opened,
) error {
	o, b, err := e.find(ctx, name, req.Backup)
	if err != nil {
		return err
	}
	r := RestoreRequest{Backup: req.Backup}
	for _, v := range req.Volumes {
		r.Volumes = append(r.Volumes, RestoreVolume{ID: v})
	}
	return o.do(ctx, e.needImages(name), func(ctx context.Context) (err error) {
		var jobs []copyJob
		out.Backup, jobs, err = o.prepareRestore(ctx, r, true)
		defer func() { closeJobs(jobs) }()
		if err != nil {
			return err
		}
		o.step("hold")
		out.HoldID = uuid.NewString()
		hold := kvmbackup.Hold{ID: out.HoldID, Purpose: kvmbackup.Printable(req.Purpose),
			Since: e.now().Truncate(time.Microsecond)}
		if err := e.cfg.Store.Annotate(ctx, o.lease(), b.ID, kvmbackup.Annotation{AddHold: &hold}); err != nil {
			return err
		}
		o.step("open")
		if err := open(ctx, jobs); err != nil {
			c, cancel := e.cleanup(ctx)
			defer cancel()
			return errors.Join(err, e.cfg.Store.Annotate(c, o.lease(), b.ID, kvmbackup.Annotation{RemoveHold: hold.ID}))
		}
		return nil
	})
}

// refused is the error of a request that names no backup to begin with.
func (e *Engine) refused(ctx context.Context, name string, id kvmbackup.BackupID, err error) error {
	o := e.query(name, "", "check request")
	o.backup = id
	return o.wrap(ctx, err)
}

// CloseRestorePoint releases a hold, and then removes what had become delete-pending and waited for it. The overlays
// are the caller's to remove, after whatever used them has ended. An unknown hold is no error.
func (e *Engine) CloseRestorePoint(ctx context.Context, id kvmbackup.BackupID, holdID string) error {
	o, _, err := e.find(ctx, "close", id)
	if err != nil {
		return err
	}
	return o.do(ctx, nil, func(ctx context.Context) error {
		o.step("release hold")
		if err := e.cfg.Store.Annotate(ctx, o.lease(), id, kvmbackup.Annotation{RemoveHold: holdID}); err != nil {
			return err
		}
		o.step("finish deletions")
		_, err := o.settleDeletes(ctx)
		return err
	})
}
