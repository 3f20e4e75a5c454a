// Package libvirtjob runs backup jobs on libvirt and QEMU: it has the Executor that package kvmbackup's engine needs.
// It is the only package of the module that uses cgo.
//
// # Connections and the event loop
//
// An embedding program needs one call:
//
//	exec, err := libvirtjob.Open(ctx, "qemu:///system", libvirtjob.Config{Images: images})
//	defer func() { err = errors.Join(err, exec.Close()) }()
//
// Open runs libvirt's default event loop, once per process, and connects again when the connection was lost, as it
// is when libvirtd restarts. A program that has a connection and perhaps an event loop already uses New; without any
// event loop everything works by polling alone.
//
// # Calls that can't be cancelled
//
// libvirt's calls take no context, and some of them can hang for as long as QEMU hangs: on a dead NFS server, for
// example. Where a context ends first, the method returns with its cause and leaves a goroutine with the call behind,
// which ends with it. One that would have started a backup job aborts it then.
//
// # Building
//
// The package links with libvirt's libraries. With the build tag libvirt_dlopen it opens them when the program runs
// and needs neither headers nor pkg-config to build. It needs cgo either way: without it the compiler's one error says
// so.
package libvirtjob
