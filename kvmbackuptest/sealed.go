package kvmbackuptest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/kvmbackup/kvmbackup/qcow2"
)

// A sealed image of the simulator is a whole qcow2 file under AES-256-GCM. It is no LUKS container: QEMU's tools don't
// read it, and the simulator doesn't read theirs.
const sealMark = "kvmbackuptest sealed image\n"

// sealer makes the cipher of a secret.
func sealer(secret *qcow2.Secret) (cipher.AEAD, error) {
	key := sha256.Sum256([]byte(secret.Reveal()))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// memory is a file in memory.
type memory []byte

func (m memory) WriteAt(b []byte, offset int64) (int, error) { return copy(m[offset:], b), nil }

// writeSealed is writeImage for a sealed image.
func writeSealed(path string, im image, secret *qcow2.Secret, exclusive bool) error {
	if secret == nil {
		return writeImage(path, im, exclusive)
	}
	l := newLayout(im)
	plain := make(memory, l.total*ClusterBytes)
	if err := writeContent(plain, im, l); err != nil {
		return err
	}
	aead, err := sealer(secret)
	if err != nil {
		return err
	}
	f, err := openToWrite(path, exclusive)
	if err != nil {
		return err
	}
	_, err = f.Write(aead.Seal([]byte(sealMark), nil, plain, nil))
	return errors.Join(err, f.Close())
}

// imageFile is an open image, unsealed.
type imageFile interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

type plainFile struct {
	*os.File
	size int64
}

func (f plainFile) Size() int64 { return f.size }

type unsealedFile struct{ *bytes.Reader }

func (unsealedFile) Close() error { return nil }

// openImage opens a file, which a secret unseals. A plain file where a sealed one is expected, and the other way about,
// is a qcow2.ErrFormat, and so is one that the secret doesn't open.
func openImage(path string, secret *qcow2.Secret) (imageFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, openError(err)
	}
	info, err := f.Stat()
	if err != nil || secret == nil {
		return plainFile{f, size(info)}, err
	}
	sealed, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	aead, err := sealer(secret)
	if err != nil {
		return nil, err
	}
	cut, ok := bytes.CutPrefix(sealed, []byte(sealMark))
	plain, err := aead.Open(nil, nil, cut, nil)
	if !ok || err != nil {
		return nil, fmt.Errorf("%w: %q isn't sealed under this secret", qcow2.ErrFormat, qcow2.FileName(path))
	}
	return unsealedFile{bytes.NewReader(plain)}, nil
}

func size(info os.FileInfo) int64 {
	if info == nil {
		return 0
	}
	return info.Size()
}
