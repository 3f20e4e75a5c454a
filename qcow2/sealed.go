package qcow2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A sealed image is a qcow2 image in a LUKS container. QEMU's tools open one alone by its description. A chain they
// don't: where a header names a backing file, QEMU 7.2 refuses a description of a container below ("Can't specify
// 'file' and 'filename' options at the same time"). So a storage daemon opens a chain with a sealed layer one by one,
// and the tools read what it exports.

// luksNode describes the container over its file.
func luksNode(file any, secret string) node {
	return node{"driver": "luks", "file": file, "key-secret": secret}
}

// single is one sealed image that qemu-img opens: its arguments, and the pipe with the secret, to be inherited first.
type single struct {
	args   []string
	name   string
	secret *os.File
}

// openSingle describes the image without what is below. The caller closes the secret.
func (t *Tool) openSingle(ctx context.Context, path string, format Format, secret *Secret) (single, error) {
	if format.orDefault() != FormatQcow2 {
		return single{}, fmt.Errorf("%w: format %q of a sealed image", ErrInvalidOption, string(format))
	}
	if err := t.checkLUKS(ctx, path); err != nil {
		return single{}, err
	}
	file, err := t.protocolNode(ctx, path)
	if err != nil {
		return single{}, err
	}
	encoded, err := json.Marshal(node{"driver": string(FormatQcow2), "file": luksNode(file, "s0"), "backing": nil})
	if err != nil {
		return single{}, err
	}
	pipe, err := secret.pipe()
	if err != nil {
		return single{}, err
	}
	args := []string{"--object", "secret,id=s0,file=" + inheritedFile(0)}
	return single{args, "json:" + string(encoded), pipe}, nil
}

// inspectSealed runs a subcommand of qemu-img that prints JSON on one sealed image alone.
func (t *Tool) inspectSealed(
	ctx context.Context, subcommand, path string, format Format, secret *Secret, limit time.Duration,
) ([]byte, error) {
	image, err := t.openSingle(ctx, path, format, secret)
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.secret.Close() }() // it was only read
	return t.run(ctx, command{
		program: t.img, args: append(append([]string{subcommand, "--output=json"}, image.args...), "--", image.name),
		names:  []string{path, image.name},
		images: 1, files: []*os.File{image.secret}, room: roomFor(path, []Layer{}, false),
		timeout: orDefault(limit, t.cfg.InspectTimeout),
	})
}

// withSource calls f with the arguments and the name by which a tool reads the image, and the names that may occur in
// messages. Where a layer is sealed it is read with exactly the layers given.
func (t *Tool) withSource(
	ctx context.Context, option, path string, format Format, secret *Secret, backing []Layer,
	f func(args []string, name string, names []string) error,
) error {
	if !anySealed(secret, backing) {
		args, name, err := t.source(ctx, option, path, format, backing)
		if err != nil {
			return err
		}
		return f(args, name, []string{name, path})
	}
	if backing == nil {
		return fmt.Errorf("%w: a sealed image is read with exactly the layers given", ErrInvalidOption)
	}
	return t.sealedChain(ctx, layersOf(path, format, secret, backing), func(name string, names []string) error {
		return f(nil, name, append(names, name, path))
	})
}

// checkLUKS refuses a container by its header, before any tool derives a key for it.
func (t *Tool) checkLUKS(ctx context.Context, path string) error {
	return t.detached(ctx, path, func() error {
		file, size, err := openRegular(path)
		if err != nil {
			return err
		}
		_, err = ReadLUKSHeader(file, size)
		return errors.Join(err, file.Close())
	}, nil)
}

// anySealed says whether any of the layers is.
func anySealed(top *Secret, below []Layer) bool {
	return slices.ContainsFunc(secretsOf(top, below), func(s *Secret) bool { return s != nil })
}

// chainServer is a storage daemon over one chain, which it exports read-only.
type chainServer struct {
	*blockServer
	names []string // of the files, for messages
}

const chainTop = "layer0"

// serveChain opens exactly the layers, the top first, of which some are sealed. The daemon listens on the socket, or
// for "" on one of its own, for so many clients at a time; 0: any.
func (t *Tool) serveChain(
	ctx context.Context, layers []Layer, socket, export string, clients int,
) (*chainServer, error) {
	ctx, cancel := withTimeout(ctx, t.cfg.InspectTimeout)
	defer cancel()
	s := &chainServer{}
	for _, l := range layers {
		if l.Format.orDefault() != FormatQcow2 {
			return nil, fmt.Errorf("%w: format %q in a chain with sealed layers", ErrInvalidOption, string(l.Format))
		}
		s.names = append(s.names, FileName(l.Path))
	}
	files, err := t.openLayers(ctx, layers, acceptable)
	defer func() { closeAll(files) }() // the daemon has its own
	if err != nil {
		return nil, err
	}
	room := roomOf(files, true)
	if socket != "" {
		room.sockets = []string{filepath.Dir(socket)}
	}
	d, err := t.startConfinedDaemon(ctx, len(files), room, files...)
	if err != nil {
		return nil, err
	}
	if err := d.openChain(ctx, chainTop, 0, layers); err != nil {
		return nil, errors.Join(err, d.close())
	}
	if s.blockServer, err = listenAt(ctx, d, socket, clients); err != nil {
		return nil, errors.Join(err, d.close())
	}
	options := node{"type": "nbd", "id": chainTop, "node-name": chainTop, "name": export, "writable": false}
	if err := d.execute(ctx, "block-export-add", options, nil); err != nil {
		return nil, errors.Join(err, s.Close(t.cfg.KillGrace))
	}
	return s, nil
}

// acceptable refuses a container by its header.
func acceptable(l Layer, file io.ReaderAt, size int64) error {
	if l.Secret == nil {
		return nil
	}
	_, err := ReadLUKSHeader(file, size)
	return err
}

// addSecret tells the daemon a secret over its monitor, which is a pipe.
func (d *storageDaemon) addSecret(ctx context.Context, id string, s *Secret) error {
	if s.text == "" || len(s.text) > maxSecret {
		return fmt.Errorf("%w: a secret of %d bytes", ErrInvalidOption, len(s.text))
	}
	return d.execute(ctx, "object-add", node{"qom-type": "secret", "id": id, "data": s.text}, nil)
}

// nbdName is how tools name the export.
func (s *chainServer) nbdName() (string, error) {
	encoded, err := json.Marshal(node{
		"driver": "nbd", "server": node{"type": "unix", "path": s.socket}, "export": chainTop, "read-only": true,
	})
	return "json:" + string(encoded), err
}

// sealedChain serves the chain and calls f with the name by which tools read it. What the daemon said is joined to f's
// error.
func (t *Tool) sealedChain(ctx context.Context, layers []Layer, f func(name string, names []string) error) error {
	s, err := t.serveChain(ctx, layers, "", chainTop, 0)
	if err != nil {
		return err
	}
	name, err := s.nbdName()
	if err == nil {
		err = f(name, s.names)
	}
	return errors.Join(s.Explain(err), s.Close(t.cfg.KillGrace))
}

// layersOf are the top and what is below.
func layersOf(path string, format Format, secret *Secret, below []Layer) []Layer {
	return append([]Layer{{Path: path, Format: format, Secret: secret}}, below...)
}

// serveSealedNBD is ServeNBD of a chain with a sealed layer.
func (t *Tool) serveSealedNBD(ctx context.Context, o NBDOptions, socket string) (*NBDServer, error) {
	if !o.ReadOnly || o.Backing == nil {
		return nil, fmt.Errorf("%w: a sealed image is served read-only, with exactly the layers given", ErrUnsupported)
	}
	s, err := t.serveChain(ctx, layersOf(o.Path, o.Format, o.Secret, o.Backing), socket, o.ExportName,
		orDefault(o.Shared, 1))
	if err != nil {
		return nil, err
	}
	return &NBDServer{server: sealedServer{s}, socket: socket}, nil
}

// sealedServer is a chainServer that lives until somebody ends it.
type sealedServer struct{ *chainServer }

func (s sealedServer) wait(ctx context.Context) error { return s.daemon.process.wait(ctx) }

func (s sealedServer) terminate() error {
	return errors.Join(s.daemon.process.terminate(), s.Close(s.daemon.process.tool.cfg.KillGrace))
}
