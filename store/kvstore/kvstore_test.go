package kvstore_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/kvstore"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

// store opens an instance over the table or what a process sees of it.
func store(t testing.TB, tab *table, kv kvstore.KV) *kvstore.Store {
	t.Helper()
	st, err := kvstore.New(kv, kvstore.Config{MaxValueBytes: tab.max, Now: tab.clock})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestMemory(t *testing.T) {
	for _, size := range []int{512, 1000, 4096} {
		storetest.Run(t, func(t testing.TB) storetest.Harness {
			tab := newTable()
			tab.max = size
			legacy(tab)
			return storetest.Harness{Store: store(t, tab, tab), Advance: tab.Advance, Close: tab.Close,
				Open: func() (kvmbackup.Store, error) {
					return store(t, tab, tab), nil
				}}
		}, storetest.Parallel())
	}
}

// legacy is what an earlier full-only feature left: a backup without chain data, on a VM with details of its own.
func legacy(tab *table) {
	tab.set(kvstore.Object{Kind: kvstore.ObjectBackup, ID: "7"}, "nas.type", "full")
	tab.set(kvstore.Object{Kind: kvstore.ObjectBackup, ID: "7"}, "size", "4711")
	tab.set(kvstore.Object{Kind: kvstore.ObjectVM, ID: "vm-a"}, "rootDiskController", "virtio")
	tab.set(kvstore.Object{Kind: kvstore.ObjectVM, ID: "vm-z"}, "nas.backup.size", "4711")
}
