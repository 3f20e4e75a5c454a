package engine

// What every image of the library has: clusters of 64 KiB, and tables of one cluster. A second-level table covers 512
// MiB of the disk, a table of reference counts 2 GiB of the file.
const (
	imageCluster     = 64 << 10
	imageTableCovers = 512 << 20
	imageCountCovers = 2 << 30
)

// imageSize is the size of a qcow2 file with that many bytes of a disk in it: its data, the second-level tables that
// refer to it, the first-level table, the reference counts of all of that, and the header. Scattered data has a table
// for each of its clusters, at most.
func imageSize(virtualSize, data int64) int64 {
	return imageSizeWith(virtualSize, data, min(tablesOf(virtualSize), data/imageCluster+1))
}

// fullImageSize is the size of the file that a full writes. QEMU's backup job writes a zero cluster for each hole, so
// that the file has all tables: an 8192nd of the disk's size, whatever it holds.
func fullImageSize(virtualSize, data int64) int64 {
	return imageSizeWith(virtualSize, data, tablesOf(virtualSize))
}

// tablesOf is how many second-level tables cover a disk.
func tablesOf(virtualSize int64) int64 { return virtualSize/imageTableCovers + 1 }

func imageSizeWith(virtualSize, data, tables int64) int64 {
	first := tablesOf(virtualSize)*8/imageCluster + 1
	size := data + (tables+first)*imageCluster
	return size + (size/imageCountCovers+3)*imageCluster // the counts, their table and the header
}
