package libvirtjob

import "os"

// ownProgram is this program's file, also when another one has taken its name since it was started.
func ownProgram() string { return "/proc/self/exe" }

// leaveControlGroup moves this process into the root of the control groups, so that it isn't killed with a service or a
// session. It is refused without the right to it.
func leaveControlGroup() {
	f, err := os.OpenFile("/sys/fs/cgroup/cgroup.procs", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	_, _ = f.WriteString("0")
	_ = f.Close()
}
