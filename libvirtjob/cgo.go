package libvirtjob

import _ "github.com/kvmbackup/kvmbackup/libvirtjob/internal/needcgo" // tells who builds without cgo
