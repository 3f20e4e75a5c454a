package enginetest_test

import (
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/engine"
	"github.com/kvmbackup/kvmbackup/internal/lab"
)

// TestConfigLimits: what is no length has a name, and no other negative number is taken for one.
func TestConfigLimits(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		cfg  engine.Config
		fine bool
	}{
		"left out":           {engine.Config{}, true},
		"LeaseTTL":           {engine.Config{LeaseTTL: -1}, false},
		"LeaseWait":          {engine.Config{LeaseWait: -1}, false},
		"LeaseWait of -1 s":  {engine.Config{LeaseWait: -time.Second}, false},
		"NoWait":             {engine.Config{LeaseWait: engine.NoWait}, true},
		"WaitForever":        {engine.Config{LeaseWait: engine.WaitForever}, true},
		"NoWait for another": {engine.Config{StallAbort: engine.NoWait}, false},
		"StallWarn":          {engine.Config{StallWarn: -1}, false},
		"StallAbort":         {engine.Config{StallAbort: -1}, false},
		"Never":              {engine.Config{StallWarn: engine.Never, StallAbort: engine.Never}, true},
		"ReserveBytes":       {engine.Config{ReserveBytes: -1}, false},
		"NoReserve":          {engine.Config{ReserveBytes: engine.NoReserve}, true},
		"FreezeLimit":        {engine.Config{FreezeLimit: -1}, false},
		"CleanupLimit":       {engine.Config{CleanupLimit: -1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.Store, c.cfg.Repository = w.store, w.repo
			_, err := engine.New(c.cfg)
			if c.fine {
				lab.OK(t, err)
				return
			}
			lab.Fails(t, err, kvmbackup.ErrInvalid)
		})
	}
}
