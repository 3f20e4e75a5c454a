// Command nasbackup keeps incremental backups of libvirt domains in a folder, usually a NAS mount. It is a complete
// program on kvmbackup's public API alone, to be used as it is or copied from.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/kvmbackup/kvmbackup/libvirtjob"
)

//go:generate go test -count=1 -run ^TestPicture$ . -update

func main() {
	libvirtjob.Guard() // backups by pull end with this program, however it ends
	// The first Ctrl-C cancels what is under way; more of them don't disturb the clean-up.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program, with its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	stdout, stderr = plain{stdout}, plain{stderr}
	a := newApp(stdout, stderr)
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	defer context.AfterFunc(ctx, a.screen.cancelling)()
	cmd, err := root.ExecuteContextC(ctx)
	a.screen.end()
	if err == nil {
		return exitDone
	}
	f := classify(ctx, err, a.began)
	f.report(stderr, a.json || wantsJSON(args), cmd)
	return f.Exit
}
