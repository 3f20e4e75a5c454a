package qcow2

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"
)

// qmp is a client of QEMU's machine protocol: one JSON object per line. Commands
// go one at a time; all methods are safe for concurrent use.
type qmp struct {
	out      *os.File // to the daemon
	greeting chan struct{}
	events   chan struct{} // holds one token when something has happened
	closed   chan struct{} // closed when the daemon's side is; readErr says why
	readErr  error

	turn   chan struct{} // holds one token, which a command takes
	nextID int           // guarded by turn

	mu      sync.Mutex
	waiting map[string]chan qmpMessage
}

// qmpMessage is anything that the daemon sends.
type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	ID       string          `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// newQMP starts a client that reads from in until it ends, at most maxLine bytes a
// line.
func newQMP(in io.Reader, out *os.File, maxLine int64) *qmp {
	q := &qmp{
		out:      out,
		greeting: make(chan struct{}),
		events:   make(chan struct{}, 1),
		closed:   make(chan struct{}),
		turn:     make(chan struct{}, 1),
		waiting:  map[string]chan qmpMessage{},
	}
	q.turn <- struct{}{}
	go func() {
		defer close(q.closed)
		q.readErr = q.read(in, maxLine)
	}()
	return q
}

// read hands out messages until the daemon ends or says something strange.
func (q *qmp) read(in io.Reader, maxLine int64) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 0, 64<<10), int(min(maxLine, 1<<30)))
	greeted := false
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		var m qmpMessage
		if err := json.Unmarshal(line, &m); err != nil {
			return fmt.Errorf("%w: %.80q: %w", ErrProtocol, line, err)
		}
		switch {
		case m.Greeting != nil && !greeted:
			greeted = true
			close(q.greeting)
		case m.Event != "":
			q.wake()
		case m.Return != nil || m.Error != nil:
			if err := q.answer(m); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: %.80q", ErrProtocol, line)
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return ErrOutputTooLarge
	}
	return lines.Err()
}

// wake leaves a token in events, unless there is one.
func (q *qmp) wake() {
	select {
	case q.events <- struct{}{}:
	default:
	}
}

// answer hands an answer to the caller that waits for it. A caller whose context has ended is gone; answer drops its
// late answer.
func (q *qmp) answer(m qmpMessage) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	reply, known := q.waiting[m.ID]
	if !known {
		return fmt.Errorf("%w: answer to unknown command %q", ErrProtocol, m.ID)
	}
	delete(q.waiting, m.ID)
	reply <- m
	return nil
}

// errClosed is returned for commands after the daemon has closed its side.
var errClosed = errors.New("storage daemon closed the connection")

// handshake waits for the greeting and leaves negotiation.
func (q *qmp) handshake(ctx context.Context) error {
	select {
	case <-q.greeting:
	case <-q.closed:
		return errors.Join(errClosed, q.readErr)
	case <-ctx.Done():
		return contextError(ctx)
	}
	return q.execute(ctx, "qmp_capabilities", nil, nil)
}

// execute runs one command and decodes its answer into result, unless that is nil.
// A refusal is a QMPError.
func (q *qmp) execute(ctx context.Context, name string, arguments, result any) error {
	select {
	case <-q.turn:
		defer func() { q.turn <- struct{}{} }()
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", name, contextError(ctx))
	}
	q.nextID++
	id := strconv.Itoa(q.nextID)
	reply := make(chan qmpMessage, 1)
	q.mu.Lock()
	q.waiting[id] = reply
	q.mu.Unlock()
	if err := q.send(ctx, id, name, arguments); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	select {
	case m := <-reply:
		return m.decode(name, result)
	case <-q.closed:
		select {
		case m := <-reply: // the last words
			return m.decode(name, result)
		default:
			return fmt.Errorf("%s: %w", name, errors.Join(errClosed, q.readErr))
		}
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", name, contextError(ctx))
	}
}

// send writes a command, giving up when ctx ends.
func (q *qmp) send(ctx context.Context, id, name string, arguments any) error {
	message := map[string]any{"execute": name, "id": id}
	if arguments != nil {
		message["arguments"] = arguments
	}
	data, err := json.Marshal(message)
	if err != nil {
		return err
	}
	n, err := q.write(ctx, append(data, '\n'))
	switch {
	case err == nil:
		return nil
	case n == 0 && ctx.Err() != nil:
		return contextError(ctx)
	}
	return errors.Join(errClosed, err) // half a command also makes the connection useless
}

// write writes data with ctx as its deadline, and leaves no deadline behind.
func (q *qmp) write(ctx context.Context, data []byte) (int, error) {
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(expired)
		_ = q.out.SetWriteDeadline(time.Unix(1, 0)) // fails only when closed, which ends the write too
	})
	n, err := q.out.Write(data)
	if !stop() {
		<-expired
		err = errors.Join(err, q.out.SetWriteDeadline(time.Time{}))
	}
	return n, err
}

// decode turns an answer into a result or an error.
func (m qmpMessage) decode(name string, result any) error {
	if m.Error != nil {
		return &QMPError{Command: name, Class: m.Error.Class, Desc: m.Error.Desc, Err: classify(m.Error.Desc, nil)}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("%w to %s: %w", ErrProtocol, name, err)
	}
	return nil
}
