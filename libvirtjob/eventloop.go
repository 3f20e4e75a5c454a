package libvirtjob

import (
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

// RunEventLoop registers libvirt's default event loop for this process and runs it in a goroutine for as long as the
// process lives. Only the first call does something; all return its result. It must come before the first connection.
//
// Open calls it. A host that runs an event loop of its own uses New instead and never calls this.
func RunEventLoop() error { return runEventLoop() }

var runEventLoop = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return translate(err)
	}
	go func() {
		for {
			// An error here is one of poll(2); there is nobody to tell, and jobs are followed by polling as well.
			if libvirt.EventRunDefaultImpl() != nil {
				<-time.After(10 * time.Millisecond)
			}
		}
	}()
	return nil
})
