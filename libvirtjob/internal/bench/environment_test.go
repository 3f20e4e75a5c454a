package bench_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// describeMachine prints what the figures depend on, in the form that Go's benchmark output has for it.
func describeMachine(w io.Writer) {
	fmt.Fprintf(w, "date: %s\n", time.Now().UTC().Format(time.DateOnly))
	fmt.Fprintf(w, "rounds: %d\n", *rounds)
	describeLoad(w, "load-before")
	fmt.Fprintf(w, "cores: %d\n", runtime.NumCPU())
	fmt.Fprintf(w, "go: %s\n", strings.TrimPrefix(runtime.Version(), "go"))
	for _, fact := range []struct{ name, pattern, command string }{
		{"memory", `MemTotal:\s+(\d+ kB)`, "cat /proc/meminfo"},
		{"kernel", `(\S+)`, "uname -r"},
		{"libvirt", `(\d+\.\d+\.\d+)`, "libvirtd --version"},
		{"qemu", `version (\d+\.\d+\.\d+)`, "qemu-system-x86_64 --version"},
		{"virtnbdbackup", `(\d+\.\d+\S*)`, "virtnbdbackup --version"},
		{"file-system", `\n(\S+)`, "df --output=fstype " + os.TempDir()},
	} {
		command := strings.Fields(fact.command)
		out, _ := exec.Command(command[0], command[1:]...).Output()
		value := "unknown"
		if m := regexp.MustCompile(fact.pattern).FindSubmatch(out); m != nil {
			value = string(m[1])
		}
		fmt.Fprintf(w, "%s: %s\n", fact.name, value)
	}
}

// describeLoad prints the load average of the last minute.
func describeLoad(w io.Writer, name string) {
	text, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(text), " ")
	fmt.Fprintf(w, "%s: %s\n", name, load)
}
