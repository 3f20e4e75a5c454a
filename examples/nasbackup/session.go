package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/libvirtjob"
	"github.com/kvmbackup/kvmbackup/qcow2"
	"github.com/kvmbackup/kvmbackup/repository"
)

// need says what a command can't do without. Most need neither libvirt nor qemu-img.
type need int

const (
	needRecords    need = iota // repository and store
	wantHypervisor             // and libvirt where it answers; else the next command that reaches it does the rest
	needImages                 // and qemu-img
	needHypervisor             // and both
)

// session is what a command works with.
type session struct {
	*engine.Engine
	repo     *repository.Repository
	executor *libvirtjob.Executor // nil: not needed, or not reached
	closers  []func() error
}

// with opens a session, calls do and closes the session.
func (a *app) with(ctx context.Context, n need, do func(*session) error) (err error) {
	s := &session{}
	defer func() {
		for i := len(s.closers) - 1; i >= 0; i-- {
			err = errors.Join(err, s.closers[i]())
		}
	}()
	if err := a.open(ctx, n, s); err != nil {
		return err
	}
	return do(s)
}

func (a *app) open(ctx context.Context, n need, s *session) (err error) {
	if a.repo == "" {
		return usage("no repository: name it with --repo or NASBACKUP_REPO")
	}
	s.repo, err = repository.Open(ctx, a.repo, repository.Options{Logger: a.logger()})
	if errors.Is(err, repository.ErrNotRepository) {
		return fmt.Errorf("%w (\"nasbackup init\" makes a folder one)", err)
	}
	if err != nil {
		return err
	}
	store, err := a.openStore(ctx, s)
	if err != nil {
		return err
	}
	cfg := engine.Config{
		Store: store, Repository: s.repo, LeaseWait: a.wait, Scratch: a.scratch,
		OnEvent: a.screen.event, Logger: a.logger(), IndexKey: a.indexKey,
	}
	if a.keys != nil {
		cfg.Keys = a.keys
	}
	if a.wait == 0 {
		cfg.LeaseWait = engine.NoWait
	}
	images, err := qcow2.New(qcow2.Config{Logger: a.logger()})
	if err == nil {
		cfg.Images = images
	} else if n >= needImages {
		return err
	}
	if n == needHypervisor || n == wantHypervisor && images != nil {
		s.executor, err = a.reach(ctx, images, n)
		if err != nil {
			return err
		}
		if s.executor != nil {
			cfg.Executor = s.executor
			s.closers = append(s.closers, s.executor.Close)
		}
	}
	s.Engine, err = engine.New(cfg)
	return err
}

// reach connects to the hypervisor, if it answers or the command can't do without.
func (a *app) reach(ctx context.Context, images *qcow2.Tool, n need) (*libvirtjob.Executor, error) {
	e, err := libvirtjob.Open(ctx, a.connect, libvirtjob.Config{Images: images, Logger: a.logger()})
	if err != nil && n == wantHypervisor && ctx.Err() == nil {
		a.logger().Warn("the hypervisor can't be reached; its checkpoints are looked after next time", "uri", a.connect,
			"error", err)
		return nil, nil
	}
	return e, err
}
