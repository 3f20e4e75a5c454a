package bench_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process runs a command and measures it, with the CPU time that it costs the guest's QEMU and libvirtd. Its output
// is returned.
func (g *guest) process(env []string, name string, args ...string) (cost, []byte) {
	g.lab.Helper()
	cmd := exec.CommandContext(g.lab.Context(), name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &output
	servers := g.servers()
	before := cpuTime(servers)
	began := time.Now()
	g.lab.must(cmd.Start())
	peak := make(chan int64)
	done := make(chan struct{})
	go func() { peak <- watchPeak(cmd.Process.Pid, done) }()
	err := cmd.Wait()
	c := cost{wall: time.Since(began)}
	close(done)
	c.peak = <-peak
	if err != nil {
		g.lab.Fatalf("%s %q: %v: %s%s", name, args, err, stdout.Bytes(), output.Bytes())
	}
	c.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() + cpuTime(servers) - before
	return c, stdout.Bytes()
}

// watchPeak reads the process's peak memory until it has ended. The rusage of a child wouldn't do: it begins with the
// memory of the process that started it.
func watchPeak(pid int, done <-chan struct{}) (peak int64) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return peak
		case <-tick.C:
			peak = max(peak, peakMemory(strconv.Itoa(pid)))
		}
	}
}

// peakMemory is VmHWM of a process in bytes; 0: it can't be read.
func peakMemory(pid string) int64 {
	text, _ := os.ReadFile("/proc/" + pid + "/status")
	for line := range strings.Lines(string(text)) {
		var kibs int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kibs); n == 1 {
			return kibs * kib
		}
	}
	return 0
}

// cpuTime is what running processes have used so far, in ticks of 10 ms.
func cpuTime(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 13 {
			continue
		}
		for _, field := range fields[11:13] {
			ticks, _ := strconv.ParseInt(field, 10, 64)
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return sum
}

// storedBytes is what the files of a folder take on the disk.
func storedBytes(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		sum += allocated(info)
		return nil
	})
	return sum, err
}

func allocated(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// stored is storedBytes or the end of the benchmark.
func (l *lab) stored(dir string) int64 {
	l.Helper()
	n, err := storedBytes(dir)
	l.must(err)
	return n
}
