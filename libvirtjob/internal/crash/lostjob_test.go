package crash_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestCrashOfLibvirtAtTheEndOfAJob has libvirt die after it has told QEMU to forget a job that is done, and before it
// noted that. The next libvirt lists the job for ever.
func TestCrashOfLibvirtAtTheEndOfAJob(t *testing.T) {
	lab.Further(t)
	t.Parallel()
	needHost(t)
	s := newSequence(t, caseNamed("first full"))
	s.KillAt = "before Job.Wait"
	for _, recover := range []bool{true, false} {
		died, _, out := s.run(t)
		if !died {
			t.Fatal(out)
		}
		dismissJobs(t, s.Root)
		if s.Died && s.report(t, out).Failed {
			t.Error(out)
		}
		s.Died, s.Recover = true, recover
	}
	s.killAt(t, nil)
}

// dismissJobs has the guest's QEMU end and forget all jobs, over its monitor, which no libvirt is connected to.
func dismissJobs(t *testing.T, root string) {
	t.Helper()
	sockets, err := filepath.Glob(filepath.Join(root, "lib", "qemu", "domain-*", "monitor.sock"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("monitors are %q: %v", sockets, err)
	}
	conn, err := net.Dial("unix", sockets[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	m := monitor{t, conn, bufio.NewScanner(conn)}
	m.ask("qmp_capabilities", "")
	for {
		jobs := m.ask("query-jobs", "")
		if len(jobs) == 0 {
			return
		}
		for _, j := range jobs {
			if j.Status == "concluded" {
				m.ask("job-dismiss", j.ID)
			}
		}
	}
}

type monitor struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Scanner
}

type qemuJob struct{ ID, Status string }

// ask sends a command, passes over events, and returns the jobs that the answer lists.
func (m monitor) ask(command, id string) (jobs []qemuJob) {
	m.t.Helper()
	arguments := ""
	if id != "" {
		arguments = fmt.Sprintf(`,"arguments":{"id":%q}`, id)
	}
	if _, err := fmt.Fprintf(m.conn, "{\"execute\":%q%s}\n", command, arguments); err != nil {
		m.t.Fatal(err)
	}
	for m.lines.Scan() {
		var answer struct {
			Return json.RawMessage
			Error  json.RawMessage
		}
		if err := json.Unmarshal(m.lines.Bytes(), &answer); err != nil || answer.Error != nil {
			m.t.Fatalf("%s %s: %s", command, id, m.lines.Text())
		}
		if answer.Return != nil {
			_ = json.Unmarshal(answer.Return, &jobs)
			return jobs
		}
	}
	m.t.Fatalf("%s: %v", command, m.lines.Err())
	return nil
}
