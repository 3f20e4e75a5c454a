package mocks_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"github.com/golang/mock/gomock"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/mocks"
	"github.com/kvmbackup/kvmbackup/repository"
)

var (
	_ kvmbackup.Store      = (*mocks.MockStore)(nil)
	_ kvmbackup.Executor   = (*mocks.MockExecutor)(nil)
	_ kvmbackup.ImageUsers = (*mocks.MockImageUsers)(nil)
	_ kvmbackup.Job        = (*mocks.MockJob)(nil)
	_ engine.Images        = (*mocks.MockImages)(nil)
	_ engine.Keys          = (*mocks.MockKeys)(nil)
	_ engine.Decider       = (*mocks.MockDecider)(nil)
	_ kvmbackup.Files      = (*mocks.MockFiles)(nil)
	_ engine.JobControl    = (*mocks.MockJobControl)(nil)
)

// Every interface of the root package has a mock.
func TestComplete(t *testing.T) {
	interfaces, mocked := declared(t, ".."), declared(t, ".")
	require.Contains(t, interfaces, "Store")
	for name, isInterface := range interfaces {
		if isInterface {
			assert.Contains(t, mocked, "Mock"+name)
		}
	}
}

// declared returns the exported types of a package, and whether each is an interface.
func declared(t *testing.T, dir string) map[string]bool {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	types := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		ast.Inspect(parsed, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok && spec.Name.IsExported() {
				_, types[spec.Name.Name] = spec.Type.(*ast.InterfaceType)
			}
			return true
		})
	}
	return types
}

// host is what a test needs of an embedding program: an engine over mocks.
type host struct {
	store    *mocks.MockStore
	executor *mocks.MockExecutor
	decider  *mocks.MockDecider
	engine   *engine.Engine
}

func newHost(t *testing.T) host {
	c := gomock.NewController(t)
	repo, err := repository.Init(t.Context(), t.TempDir(), repository.Options{NoSync: true})
	require.NoError(t, err)
	h := host{
		store:    mocks.NewMockStore(c),
		executor: mocks.NewMockExecutor(c), decider: mocks.NewMockDecider(c),
	}
	h.engine, err = engine.New(engine.Config{
		Store: h.store, Repository: repo, Executor: h.executor, Images: mocks.NewMockImages(c), Decider: h.decider,
	})
	require.NoError(t, err)
	return h
}

// The host's own decider is asked with what was found, and its answer is what the plan shows.
func TestPlanAsksTheDecider(t *testing.T) {
	h := newHost(t)
	h.executor.EXPECT().Inspect(gomock.Any(), kvmbackup.DomainRef{Name: "vm1"}).Return(kvmbackup.DomainStatus{
		Name: "vm1", Defined: true, State: kvmbackup.DomainRunning, Job: kvmbackup.JobNone,
		Disks: []kvmbackup.DiskStatus{
			{Device: "vda", Source: "/vda.qcow2", Format: "qcow2", VirtualSize: 1 << 30, AllocatedBytes: 5 << 20},
		},
	}, nil)
	h.store.EXPECT().VM(gomock.Any(), kvmbackup.VMID("vm1")).Return(kvmbackup.VMRecord{VM: "vm1"}, nil)
	h.store.EXPECT().Newest(gomock.Any(), kvmbackup.VMID("vm1")).Return(kvmbackup.Backup{}, kvmbackup.ErrNotFound)
	h.store.EXPECT().List(gomock.Any(), gomock.Any()).Return(nil, nil).AnyTimes()
	h.executor.EXPECT().HeldBytes(gomock.Any(), kvmbackup.DomainRef{Name: "vm1"}, []string{"vda"}).
		Return(map[string]int64{"vda": 5 << 20}, nil)
	h.decider.EXPECT().Decide(gomock.Any()).DoAndReturn(func(in kvmbackup.DecideInput) (kvmbackup.Decision, error) {
		assert.Nil(t, in.Newest)
		assert.Equal(t, kvmbackup.DomainRunning, in.State)
		return kvmbackup.ChainDecider{}.Decide(in)
	})

	p, err := h.engine.Plan(t.Context(), engine.BackupRequest{VM: "vm1"})

	require.NoError(t, err)
	assert.Equal(t, kvmbackup.KindFull, p.Decision.Kind)
	assert.Positive(t, p.EstimateBytes)
}

// A store that is away ends a backup before anything is touched: no other mock expects a call.
func TestBackupWithoutAStore(t *testing.T) {
	h := newHost(t)
	away := errors.New("connection refused")
	h.store.EXPECT().AcquireLease(gomock.Any(), kvmbackup.VMID("vm1"), gomock.Any(), gomock.Any()).
		Return(kvmbackup.Lease{}, away)

	_, err := h.engine.Backup(t.Context(), engine.BackupRequest{VM: "vm1"})

	require.ErrorIs(t, err, away)
	var op *kvmbackup.OpError
	require.ErrorAs(t, err, &op)
	assert.Equal(t, kvmbackup.VMID("vm1"), op.VM)
}
