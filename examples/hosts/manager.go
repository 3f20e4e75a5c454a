package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/examples/hosts/remote"
)

// managerName is the host that the manager's own records say.
const managerName = "manager"

// manage does one thing, and prints what came of it.
func (s *site) manage(ctx context.Context, out io.Writer, words []string) error {
	words = append(words, "", "", "")
	verb, a, b := words[0], words[1], words[2]
	m, err := s.engine(nil, managerName)
	if err != nil {
		return err
	}
	var result any
	switch verb {
	case "list":
		result, err = m.List(ctx, kvmbackup.Query{})
	case "verify":
		result, err = m.Verify(ctx, kvmbackup.BackupID(a), engine.VerifyOptions{Content: true})
	case "restore":
		result, err = m.Restore(ctx, engine.RestoreRequest{Backup: kvmbackup.BackupID(a), Dir: b})
	case "delete":
		result, err = m.Delete(ctx, kvmbackup.BackupID(a), kvmbackup.DeleteOptions{})
	case "retain":
		last, bad := strconv.Atoi(b)
		if bad != nil {
			return bad
		}
		result, err = m.Retain(ctx, kvmbackup.VMID(a), kvmbackup.RetentionPolicy{Last: last})
	case "require-full":
		err = m.RequireFull(ctx, engine.Target{VM: kvmbackup.VMID(a)})
	case "plan":
		result, err = planFor(ctx, m, a, kvmbackup.VMID(b))
	case "backup":
		var taken kvmbackup.Backup
		err = askAgent(ctx, a, "backup", kvmbackup.VMID(b), &taken)
		result = taken
	case "central":
		result, err = s.central(ctx, a, kvmbackup.VMID(b))
	default:
		return fmt.Errorf("%w verb %q", kvmbackup.ErrInvalid, verb)
	}
	if err == nil && result != nil {
		show := json.NewEncoder(out) // results have names of their own in JSON
		show.SetIndent("", "  ")
		err = show.Encode(result)
	}
	return err
}

// planFor plans without a hypervisor, from what the VM's host says of it.
func planFor(ctx context.Context, m *engine.Engine, agent string, vm kvmbackup.VMID) (engine.Plan, error) {
	var st kvmbackup.DomainStatus
	if err := askAgent(ctx, agent, "domain", vm, &st); err != nil {
		return engine.Plan{}, err
	}
	return m.PlanWith(ctx, engine.BackupRequest{VM: vm}, st)
}

// askAgent has the VM's own host do it. An error matches the sentinel that it matched there.
func askAgent(ctx context.Context, agent, door string, vm kvmbackup.VMID, result any) error {
	return remote.Ask(ctx, http.DefaultClient, agent+"/"+door+"/"+string(vm), nil, result)
}

// central takes the backup with an engine of the manager's, which reaches the hypervisor over the wire. One engine per
// host, kept; it settles what the manager has left of that host's VMs.
func (s *site) central(ctx context.Context, agent string, vm kvmbackup.VMID) (kvmbackup.Backup, error) {
	eng, err := s.engine(remote.New(agent, s.repo.Root(), nil), managerName+" for "+agent)
	if err != nil {
		return kvmbackup.Backup{}, err
	}
	return eng.Backup(ctx, engine.BackupRequest{VM: vm})
}
