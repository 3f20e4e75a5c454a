package qcow2

import "github.com/kvmbackup/kvmbackup/internal/nbd"

// allocationDepth is QEMU's metadata context that tells which layer has a range; 0: none.
const allocationDepth = "qemu:allocation-depth"

// How much of a piece an image has itself.
const (
	ownsNone = byte(iota)
	ownsPart
	ownsAll
)

// ownPieces says of each piece how much of it an image has that is served alone. The client asks for allocationDepth.
func ownPieces(client *nbd.Client) ([]byte, error) {
	size := client.SizeBytes()
	own := make([]byte, pieces(size)) // it owns none so far
	has := int64(0)                   // of the piece that is looked at
	for at := int64(0); at < size; {
		extents, err := client.Extents(at, min(maxDigestStatus, size-at))
		if err != nil {
			return nil, NBDError(err)
		}
		for _, e := range extents {
			for end := at + e.Length; at < end; {
				piece := at / digestPiece
				stop := min(end, (piece+1)*digestPiece)
				if e.State != 0 {
					has += stop - at
				}
				if at = stop; at%digestPiece != 0 && at != size {
					continue
				}
				switch length := min(digestPiece, size-piece*digestPiece); {
				case has == length:
					own[piece] = ownsAll
				case has > 0:
					own[piece] = ownsPart
				}
				has = 0
			}
		}
	}
	return own, nil
}
