//go:build !cgo

package needcgo

var _ int = "package libvirtjob needs cgo: CGO_ENABLED=1, a C compiler, and libvirt's headers or the build tag " +
	"libvirt_dlopen"
