// Package needcgo doesn't compile without cgo, and says what to do, in one line. Package libvirtjob imports it for
// that: of itself the compiler would list every name of libvirt's that isn't there.
package needcgo
