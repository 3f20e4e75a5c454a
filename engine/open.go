package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/qcow2"
)

// OpenRequest says how to open a restore point without copying it.
type OpenRequest struct {
	Backup kvmbackup.BackupID
	// Volumes chooses volumes. Empty: all.
	Volumes []kvmbackup.VolumeID
	// Dir takes one writable overlay per volume, named DEVICE.VOLUMEID.overlay.qcow2; it must exist and be on storage that
	// the guest may write. The overlays stand on the repository's files: a guest can run from them while they are copied elsewhere.
	Dir string
	// Purpose is recorded with the hold and shown when it stands in the way of a deletion.
	Purpose string
}

// Opened is an open restore point. The hold in the store keeps its chain from being removed until Close, also across restarts of the
// host: after one, Engine.CloseRestorePoint with the HoldID does the same.
type Opened struct {
	Backup  kvmbackup.Backup
	HoldID  string
	Volumes []RestoredVolume
	held    held
}

// Close releases the hold as Engine.CloseRestorePoint does. The overlays stay. Once it has succeeded, calling it again does nothing.
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

// Open verifies the chain as Restore does, holds it, and makes a writable overlay per volume. After an error nothing is left.
// Backups of the VM may go on meanwhile.
//
// What is verified is the chain as it is now. QEMU follows the overlay's backing link and those below it whenever the guest starts,
// and a header that was rewritten meanwhile can lead it to any file it may read. So as long as a guest runs from overlays, the
// repository must be trusted as much as the guest's own storage. Restore and Browse tell QEMU which files to open.
func (e *Engine) Open(ctx context.Context, req OpenRequest) (*Opened, error) {
	if req.Dir == "" && req.Backup != "" {
		return nil, (&op{name: "open", backup: req.Backup, at: "check request"}).wrap(ctx, fmt.Errorf("%w request: no folder for the overlays", kvmbackup.ErrInvalid))
	}
	out := &Opened{}
	err := e.hold(ctx, "open", req, func(ctx context.Context, jobs []copyJob) error {
		for _, j := range jobs {
			name := fmt.Sprintf("%s.%s.overlay.qcow2", j.out.Device, j.out.VolumeID)
			err := kvmbackup.ValidFileName(name)
			if err == nil {
				j.out.Format, j.out.Path = qcow2.FormatQcow2, filepath.Join(req.Dir, name)
				err = e.overlay(ctx, j)
			}
			if err != nil {
				return errors.Join(fmt.Errorf("overlay of volume %q: %w", j.out.VolumeID, err), e.removeOverlays(ctx, out.Volumes))
			}
			out.Volumes = append(out.Volumes, j.out)
		}
		return nil
	}, out)
	if err != nil {
		return nil, err
	}
	out.held.end = func(ctx context.Context) error { return e.CloseRestorePoint(ctx, req.Backup, out.HoldID) }
	return out, nil
}

func (e *Engine) overlay(ctx context.Context, j copyJob) error {
	file, err := filepath.Abs(j.layers[0].file)
	if err != nil {
		return err
	}
	return e.cfg.Images.Create(ctx, j.out.Path, qcow2.CreateOptions{
		SizeBytes: j.out.VirtualSize, BackingFile: file, BackingFormat: qcow2.FormatQcow2,
	})
}

func (e *Engine) removeOverlays(ctx context.Context, overlays []RestoredVolume) error {
	var errs []error
	for _, v := range overlays {
		errs = append(errs, e.changing(ctx, []string{v.Path}, func(w *fileWork) error { return w.removeFile(v.Path) }))
	}
	return errors.Join(errs...)
}

// Browsed is a read-only NBD export of one volume for browsing its files. The hold stays until Close, or, after a crash of
// the process, until CloseRestorePoint with the HoldID.
type Browsed struct {
	HoldID string
	Socket string
	held   held
}

// Browse verifies the chain as Restore does, holds it, and serves one volume read-only over NBD on a unix socket, by qemu-nbd,
// until Close. The verified files are served, and backing links in their headers are not followed.
func (e *Engine) Browse(ctx context.Context, id kvmbackup.BackupID, volume kvmbackup.VolumeID, socket string) (*Browsed, error) {
	for _, field := range []struct{ what, value string }{{"volume ID", string(volume)}, {"path of the socket", socket}} {
		if field.value == "" && id != "" {
			return nil, (&op{name: "browse", backup: id, at: "check request"}).wrap(ctx, fmt.Errorf("%w: the %s is empty", kvmbackup.ErrInvalid, field.what))
		}
	}
	var server *qcow2.NBDServer
	var out Opened
	req := OpenRequest{Backup: id, Volumes: []kvmbackup.VolumeID{volume}, Purpose: "browse over NBD on " + socket}
	err := e.hold(ctx, "browse", req, func(ctx context.Context, jobs []copyJob) (err error) {
		layers := jobs[0].layers
		server, err = e.cfg.Images.ServeNBD(ctx, qcow2.NBDOptions{
			Path: layers[0].file, Backing: backing(layers), Socket: socket, ReadOnly: true, Shared: 8,
		})
		return err
	}, &out)
	if err != nil {
		return nil, err
	}
	return &Browsed{HoldID: out.HoldID, Socket: socket, held: held{end: func(ctx context.Context) error {
		o := &op{name: "close", backup: id, at: "end export"}
		return o.joined(ctx, []error{o.wrap(ctx, server.Close()), e.CloseRestorePoint(ctx, id, out.HoldID)})
	}}}, nil
}

// Close ends the export and releases the hold. Once it has succeeded, calling it again does nothing.
func (b *Browsed) Close(ctx context.Context) error { return b.held.close(ctx) }

// hold prepares the volumes as a restore does, records the hold and then calls open; if that fails the hold is released again.
func (e *Engine) hold(ctx context.Context, name string, req OpenRequest, open func(context.Context, []copyJob) error, out *Opened) error {
	o, b, err := e.find(ctx, name, req.Backup)
	if err != nil {
		return err
	}
	if e.cfg.Images == nil {
		return o.fail(ctx, fmt.Errorf("%w config: %s needs Images", kvmbackup.ErrInvalid, name))
	}
	return o.fail(ctx, o.withLease(ctx, func(ctx context.Context, h *heldLease) error {
		r := RestoreRequest{Backup: req.Backup}
		for _, v := range req.Volumes {
			r.Volumes = append(r.Volumes, RestoreVolume{ID: v})
		}
		var jobs []copyJob
		if out.Backup, jobs, err = e.prepareRestore(ctx, o, r); err != nil {
			return err
		}
		o.step("hold")
		out.HoldID = uuid.NewString()
		hold := kvmbackup.Hold{ID: out.HoldID, Purpose: req.Purpose, Since: e.now().Truncate(time.Microsecond)}
		if err := e.cfg.Store.Annotate(ctx, h.lease(), b.ID, kvmbackup.Annotation{AddHold: &hold}); err != nil {
			return err
		}
		o.step("open")
		if err := open(ctx, jobs); err != nil {
			c, cancel := e.cleanup(ctx)
			defer cancel()
			return errors.Join(err, e.cfg.Store.Annotate(c, h.lease(), b.ID, kvmbackup.Annotation{RemoveHold: hold.ID}))
		}
		return nil
	}))
}

// CloseRestorePoint releases a hold, and then removes what had become delete-pending and waited for it. The overlays are the
// caller's to remove, after whatever used them has ended. An unknown hold is no error.
func (e *Engine) CloseRestorePoint(ctx context.Context, id kvmbackup.BackupID, holdID string) error {
	o, _, err := e.find(ctx, "close", id)
	if err != nil {
		return err
	}
	return o.fail(ctx, o.withLease(ctx, func(ctx context.Context, h *heldLease) error {
		o.step("release hold")
		if err := e.cfg.Store.Annotate(ctx, h.lease(), id, kvmbackup.Annotation{RemoveHold: holdID}); err != nil {
			return err
		}
		o.step("finish deletions")
		_, err := e.settleDeletes(ctx, o, h)
		return err
	}))
}
