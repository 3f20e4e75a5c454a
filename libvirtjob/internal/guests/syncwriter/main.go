//go:build linux

// Command syncwriter runs in a guest of the tests, and measures how long a disk takes for a write.
//
//	syncwriter DEVICE BYTES RESULT
//
// It makes RESULT when it is ready. From then on it writes 4 KiB after 4 KiB, synchronously, to random places of the
// device's first so many bytes. SIGUSR1 begins a measurement: what was measured before is forgotten, and RESULT goes.
// SIGUSR2 ends it: RESULT has it, as one line of JSON.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"
)

const block = 4096

// Result is what the guest has seen. The times are of single writes.
type Result struct {
	Writes, Errors int
	P50, P99, Max  time.Duration
	Error          string // the last one
}

func main() {
	err := run(os.Args[1], os.Args[2], os.Args[3])
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// run returns when it can't go on.
func run(device, bytes, result string) error {
	size, err := strconv.ParseInt(bytes, 10, 64)
	if err != nil {
		return err
	}
	disk, err := os.OpenFile(device, os.O_WRONLY|os.O_SYNC|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	// aligned.
	data, err := syscall.Mmap(-1, 0, block, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return err
	}
	marks := make(chan os.Signal, 8)
	signal.Notify(marks, syscall.SIGUSR1, syscall.SIGUSR2)
	if err := os.WriteFile(result, nil, 0o600); err != nil {
		return err
	}
	var seen measurement
	for {
		select {
		case mark := <-marks:
			if err := seen.mark(mark, result); err != nil {
				return err
			}
			seen = measurement{}
		default:
		}
		data[0]++
		began := time.Now()
		_, err := disk.WriteAt(data, rand.Int64N(size/block)*block)
		seen.note(time.Since(began), err)
	}
}

type measurement struct {
	took   []time.Duration
	failed int
	last   error
}

func (m *measurement) note(took time.Duration, err error) {
	m.took = append(m.took, took)
	if err != nil {
		m.failed, m.last = m.failed+1, err
	}
}

func (m *measurement) mark(mark os.Signal, result string) error {
	if mark == syscall.SIGUSR1 {
		return os.RemoveAll(result)
	}
	return m.write(result)
}

// write writes the result aside first, so that a reader finds all of it.
func (m *measurement) write(path string) error {
	r := Result{Writes: len(m.took), Errors: m.failed}
	if m.last != nil {
		r.Error = m.last.Error()
	}
	if slices.Sort(m.took); len(m.took) > 0 {
		r.P50, r.P99, r.Max = m.took[len(m.took)/2], m.took[len(m.took)*99/100], m.took[len(m.took)-1]
	}
	text, err := json.Marshal(r)
	return errors.Join(err, os.WriteFile(path+".new", append(text, '\n'), 0o600), os.Rename(path+".new", path))
}
