package main

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/examples/hosts/remote"
)

// serve is an agent: it settles what a crash left on its host, then does what it is asked until ctx ends.
func (s *site) serve(ctx context.Context, l net.Listener, hypervisor kvmbackup.Executor, host string) error {
	eng, err := s.engine(hypervisor, host)
	if err != nil {
		return err
	}
	recovered, err := eng.RecoverAll(ctx)
	if err != nil {
		return err
	}
	for _, r := range recovered {
		log.Print(r)
	}
	server := &http.Server{Handler: agentHandler(eng, hypervisor, s.repo.Root()), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	<-ctx.Done()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute) // for the backups under way
	defer cancel()
	err = server.Shutdown(stop)
	if serve := <-ended; !errors.Is(serve, http.ErrServerClosed) {
		err = errors.Join(err, serve)
	}
	return err
}

// agentHandler serves an agent's three doors: backups by its own engine, the inventory of its host, and its hypervisor
// for an engine that runs elsewhere.
func agentHandler(eng *engine.Engine, hypervisor kvmbackup.Executor, root string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /backup/{vm}", func(w http.ResponseWriter, r *http.Request) {
		b, err := eng.Backup(context.WithoutCancel(r.Context()), engine.BackupRequest{VM: kvmbackup.VMID(r.PathValue("vm"))})
		remote.Answer(w, b, err)
	})
	mux.HandleFunc("POST /domain/{vm}", func(w http.ResponseWriter, r *http.Request) {
		st, err := hypervisor.Inspect(r.Context(), kvmbackup.DomainRef{Name: r.PathValue("vm")})
		remote.Answer(w, st, err)
	})
	mux.Handle("/executor/", (&remote.Server{Executor: hypervisor, Root: root}).Handler())
	return mux
}
