package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/golang/mock/gomock"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/mocks"
	"github.com/kvmbackup/kvmbackup/repository"
	"github.com/kvmbackup/kvmbackup/store/memstore"
)

// The tests in this file ask what this program makes of a failure, and need neither database nor hypervisor. They are
// meant to be copied: a mock fails at one call, and any call that is not expected fails the test.

// TestBusyIsNoFailure: the store says that another process has the VM. The VM is put off, and its guest is not touched.
func TestBusyIsNoFailure(t *testing.T) {
	ctrl := gomock.NewController(t)
	store, guest := mocks.NewMockStore(ctrl), mocks.NewMockExecutor(ctrl)
	store.EXPECT().AcquireLease(gomock.Any(), kvmbackup.VMID("web"), gomock.Any(), gomock.Any()).
		Return(kvmbackup.Lease{}, kvmbackup.ErrBusy)

	got := backUpOnce(t, engine.Config{Store: store, Executor: guest, LeaseWait: engine.NoWait})

	if got.failures != 0 || got.again != time.Minute || got.succeeded {
		t.Errorf("%+v", got)
	}
}

// TestFullShare: the hypervisor can't make the job's targets. The VM is tried again, and the failure is on record.
func TestFullShare(t *testing.T) {
	store, guest := memstore.New(), mocks.NewMockExecutor(gomock.NewController(t)) // a fake for state, a mock for calls
	guest.EXPECT().Inspect(gomock.Any(), gomock.Any()).AnyTimes().Return(kvmbackup.DomainStatus{
		Name: "web", Defined: true, State: kvmbackup.DomainRunning, Job: kvmbackup.JobNone,
		Disks: []kvmbackup.DiskStatus{{Device: "vda", Source: "/vda.qcow2", Format: "qcow2", VirtualSize: 1 << 30}},
	}, nil)
	guest.EXPECT().PrepareJob(gomock.Any(), gomock.Any(), gomock.Any()).
		Return(nil, fmt.Errorf("create vda.qcow2: %w", kvmbackup.ErrNoSpace))
	guest.EXPECT().DropCheckpoint(gomock.Any(), gomock.Any(), gomock.Any()).Return(nil) // the engine leaves nothing behind

	got := backUpOnce(t, engine.Config{Store: store, Executor: guest})

	if got.failures != 1 || got.again != 5*time.Minute || got.err == "" {
		t.Errorf("%+v", got)
	}
	records, err := store.List(t.Context(), kvmbackup.Query{VM: "web"})
	if err != nil || len(records) != 1 || records[0].Status != kvmbackup.StatusFailed {
		t.Errorf("%+v, %v", records, err)
	}
}

// verdict is what the program decides about the VM.
type verdict struct {
	outcome
	again time.Duration
}

// backUpOnce takes a backup as a worker does.
func backUpOnce(t *testing.T, cfg engine.Config) verdict {
	t.Helper()
	repo, err := repository.Init(t.Context(), t.TempDir(), repository.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Repository, cfg.Images = repo, mocks.NewMockImages(gomock.NewController(t))
	eng, err := engine.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	o := &orchestrator{engine: eng, cfg: Config{LeaseTTL: time.Minute, Retry: 5 * time.Minute}}
	now := time.Now()
	job := task{vm: "web", timing: timing{every: time.Hour}, due: now, claimed: now, since: now}
	_, err = o.engine.Backup(t.Context(), engine.BackupRequest{VM: job.vm})
	v := verdict{outcome: o.judge(job, err)}
	v.again = v.next.Sub(now).Round(time.Minute)
	return v
}
