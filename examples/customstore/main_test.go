package main

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t testing.TB) storetest.Harness {
		dir := t.TempDir()
		st, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		// The suite uses a second instance for its races, as another process would.
		open := func() (kvmbackup.Store, error) { return Open(dir) }
		return storetest.Harness{Store: st, Open: open}
	}, storetest.Parallel())
}
