package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/repository"
)

// Server serves an Executor. Set the fields before it serves; it is safe for concurrent use.
type Server struct {
	Executor kvmbackup.Executor
	// IdleLimit is how long a job's handle is kept that nobody uses. Defaults to a minute.
	IdleLimit time.Duration
	// Root is where the repository is mounted here. A job's targets are below it.
	Root string
	// Scratch are the folders here that are for the scratches of pull jobs; no other is touched. They are also the
	// Config.Scratch of the engines that use the server.
	Scratch []string

	mu   sync.Mutex
	jobs map[string]*held
}

// held is a job under its handle.
type held struct {
	kvmbackup.Job
	users   int
	idle    *time.Timer
	waiting *waiting // nil until somebody waits
}

// ServeHTTP serves one call. It returns when the call has ended, or its client has gone.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var req request
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var err error
	if req.Spec, err = mapped(req.Spec, s.below); err == nil {
		err = s.mayUse(req)
	}
	if err != nil {
		Answer(w, nil, err)
		return
	}
	switch method := r.PathValue("method"); {
	case method == "Wait":
		s.wait(w, r, req)
	case methods[method] == nil:
		http.NotFound(w, r)
	default:
		result, err := methods[method](r.Context(), s, req)
		Answer(w, result, err)
	}
}

// below is where what the wire names is here.
func (s *Server) below(path string) (string, error) {
	if !filepath.IsLocal(path) {
		return "", fmt.Errorf("%q is not below the repository", path)
	}
	return filepath.Join(s.Root, path), nil
}

// mayUse refuses what isn't in one of the folders for scratches.
func (s *Server) mayUse(req request) error {
	folder := req.Folder
	if req.Spec.Scratch != "" {
		folder = filepath.Dir(req.Spec.Scratch)
	}
	if folder != "" && !slices.Contains(s.Scratch, folder) {
		return fmt.Errorf("%w: %q is no folder for scratches on this host", kvmbackup.ErrScratch, folder)
	}
	if name := req.Name; name != "" && (name == "." || !filepath.IsLocal(name) || filepath.Base(name) != name) {
		return fmt.Errorf("%w: %q is no name in a folder for scratches", kvmbackup.ErrInvalid, name)
	}
	return nil
}

// Answer sends a result, or an error by its code, to Ask.
func Answer(w http.ResponseWriter, result any, err error) {
	_ = json.NewEncoder(w).Encode(reply[any]{Result: result, Error: toWire(err)}) // who isn't there any more asks again
}

// Handler serves POST /executor/METHOD.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /executor/{method}", s)
	return mux
}

var methods = map[string]func(context.Context, *Server, request) (any, error){
	"Inspect": func(ctx context.Context, s *Server, r request) (any, error) { return s.Executor.Inspect(ctx, r.Domain) },
	"RegisterCheckpoint": func(ctx context.Context, s *Server, r request) (any, error) {
		return nil, s.Executor.RegisterCheckpoint(ctx, r.Domain, r.Checkpoint)
	},
	"DropCheckpoint": func(ctx context.Context, s *Server, r request) (any, error) {
		return nil, s.Executor.DropCheckpoint(ctx, r.Domain, r.Checkpoint.Name)
	},
	"DirtyBytes": func(ctx context.Context, s *Server, r request) (any, error) {
		return s.Executor.DirtyBytes(ctx, r.Domain, r.Checkpoint.Name)
	},
	"HeldBytes": func(ctx context.Context, s *Server, r request) (any, error) {
		return s.Executor.HeldBytes(ctx, r.Domain, r.Devices)
	},
	"Freeze": func(ctx context.Context, s *Server, r request) (any, error) { return s.Executor.Freeze(ctx, r.Domain) },
	"Thaw": func(ctx context.Context, s *Server, r request) (any, error) {
		return nil, s.Executor.Thaw(ctx, r.Domain)
	},
	"Resume": func(ctx context.Context, s *Server, r request) (any, error) {
		return nil, s.Executor.Resume(ctx, r.Domain)
	},
	"Definition": func(ctx context.Context, s *Server, r request) (any, error) {
		return s.Executor.Definition(ctx, r.Domain, r.Options)
	},
	"ImageUsers": func(ctx context.Context, s *Server, r request) (any, error) {
		if knows, ok := s.Executor.(kvmbackup.ImageUsers); ok {
			return knows.ImageUsers(ctx, r.Domain)
		}
		return map[string]string{}, nil
	},

	"ScratchSpace": func(ctx context.Context, s *Server, r request) (any, error) {
		repo, err := repository.SpaceAt(s.Root)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", kvmbackup.ErrUnavailable, err)
		}
		fileSystem, free, err := engine.LocalScratch{RepositoryDevice: repo.Device}.ScratchSpace(ctx, r.Folder)
		return scratchSpace{fileSystem, free}, err
	},
	"ScratchEntries": func(ctx context.Context, _ *Server, r request) (any, error) {
		return engine.LocalScratch{}.ScratchEntries(ctx, r.Folder)
	},
	"RemoveScratch": func(ctx context.Context, _ *Server, r request) (any, error) {
		if r.Folder == "" || r.Name == "" {
			return nil, fmt.Errorf("%w: nothing is named to be removed", kvmbackup.ErrInvalid)
		}
		return nil, engine.LocalScratch{}.RemoveScratch(ctx, r.Folder, r.Name)
	},

	"PrepareJob": func(ctx context.Context, s *Server, r request) (any, error) {
		j, err := s.Executor.PrepareJob(ctx, r.Domain, r.Spec)
		return s.keep(j, err)
	},
	"AdoptJob": func(ctx context.Context, s *Server, r request) (any, error) {
		j, err := s.Executor.AdoptJob(ctx, r.Domain, r.Spec)
		return s.keep(j, err)
	},
	"Begin": onJob(func(ctx context.Context, j kvmbackup.Job, _ request) error { return j.Begin(ctx) }),
	"Abort": onJob(func(ctx context.Context, j kvmbackup.Job, _ request) error { return j.Abort(ctx) }),
	"SetBandwidth": onJob(func(ctx context.Context, j kvmbackup.Job, r request) error {
		return j.SetBandwidth(ctx, r.Bandwidth)
	}),
	"Close": func(ctx context.Context, s *Server, r request) (any, error) {
		if j, done := s.use(r.Job); j != nil {
			defer done()
			if err := j.Close(ctx); err != nil {
				return nil, err
			}
			s.forget(r.Job)
		}
		return nil, nil
	},
}

func onJob(f func(context.Context, kvmbackup.Job, request) error) func(context.Context, *Server, request) (any, error) {
	return func(ctx context.Context, s *Server, r request) (any, error) {
		j, done := s.use(r.Job)
		if j == nil {
			return nil, errNoHandle
		}
		defer done()
		return nil, f(ctx, j, r)
	}
}

// wait sends a line for each progress, and one with the outcome. When the client goes, the job stays, and is waited
// for: a pull job ends with who waits for it.
func (s *Server) wait(w http.ResponseWriter, r *http.Request, req request) {
	out, flush := json.NewEncoder(w), http.NewResponseController(w)
	j, done := s.use(req.Job)
	if j == nil {
		_ = out.Encode(reply[any]{Error: errNoHandle})
		return
	}
	defer done()
	waiting := s.waitFor(j)
	for over := false; r.Context().Err() == nil; {
		progress, next := waiting.look()
		if progress != nil {
			_ = out.Encode(reply[any]{Progress: progress}) // a client that is gone ends the request's context
			_ = flush.Flush()
		}
		if over {
			_ = out.Encode(reply[kvmbackup.JobResult]{Result: waiting.result, Error: toWire(waiting.err)})
			return
		}
		select {
		case <-next:
		case <-waiting.done:
			over = true
		case <-r.Context().Done():
		}
	}
}

// waitFor begins to wait for a job, once.
func (s *Server) waitFor(j *held) *waiting {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.waiting == nil {
		j.waiting = follow(j.Job)
	}
	return j.waiting
}

// keep gives a job its handle.
func (s *Server) keep(j kvmbackup.Job, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	id := uuid.NewString()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jobs == nil {
		s.jobs = map[string]*held{}
	}
	s.jobs[id] = &held{Job: j, idle: time.AfterFunc(s.limit(), func() { s.abandon(id) })}
	return id, nil
}

// use returns the job, which is not idle until done is called; nil when the handle isn't known.
func (s *Server) use(id string) (j *held, done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j = s.jobs[id]; j == nil {
		return nil, nil
	}
	j.users++
	return j, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		j.users--
		if s.jobs[id] != nil {
			j.idle.Reset(s.limit())
		}
	}
}

func (s *Server) limit() time.Duration {
	if s.IdleLimit == 0 {
		return time.Minute
	}
	return s.IdleLimit
}

// forget drops a handle whose job is closed.
func (s *Server) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobs[id]; j != nil {
		j.idle.Stop()
		j.waiting.stop()
		delete(s.jobs, id)
	}
}

// abandon closes a job that nobody uses any more.
func (s *Server) abandon(id string) {
	s.mu.Lock()
	j := s.jobs[id]
	idle := j != nil && j.users == 0
	if idle {
		delete(s.jobs, id)
	}
	s.mu.Unlock()
	if idle {
		ctx, cancel := context.WithTimeout(context.Background(), s.limit())
		defer cancel()
		_ = j.Close(ctx) // nobody is there to be told
		j.waiting.stop()
	}
}
