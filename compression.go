package kvmbackup

import "fmt"

// Compression is how the clusters of a backup's images are compressed. The zero value is not at all.
type Compression string

// CompressionZstd is qcow2's zstd, which QEMU's tools read from 5.1 on.
const CompressionZstd Compression = "zstd"

// Validate is an ErrInvalid for a compression that this version doesn't know.
func (c Compression) Validate() error {
	if c != "" && c != CompressionZstd {
		return fmt.Errorf("%w compression %q: %q or none expected", ErrInvalid, string(c), string(CompressionZstd))
	}
	return nil
}
