package seal_test

import (
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/seal"
)

var _ engine.Keys = (*seal.Keys)(nil)
