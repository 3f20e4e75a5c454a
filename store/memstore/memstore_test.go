package memstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kvmbackup/kvmbackup"
	"github.com/kvmbackup/kvmbackup/store/memstore"
	"github.com/kvmbackup/kvmbackup/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(testing.TB) storetest.Harness {
		return storetest.Harness{Store: memstore.New(), ShortTTL: 5 * time.Millisecond}
	}, storetest.Parallel())
}

// A test that is master of time lets a lease run out without waiting.
func ExampleWithClock() {
	ctx := context.Background()
	now := time.Date(2026, 11, 23, 7, 0, 0, 0, time.UTC)
	st := memstore.New(memstore.WithClock(func() time.Time { return now }))

	first, _ := st.AcquireLease(ctx, "vm1", "agent-1", time.Minute)
	_, err := st.AcquireLease(ctx, "vm1", "agent-2", time.Minute)
	fmt.Println(err)

	now = now.Add(2 * time.Minute)
	second, _ := st.AcquireLease(ctx, "vm1", "agent-2", time.Minute)
	fmt.Println(first.Token, second.Token)
	fmt.Println(errors.Is(st.SetActive(ctx, first, ""), kvmbackup.ErrLeaseLost))
	// Output:
	// acquire the lease of "vm1": "vm1" is busy: held by agent-1; wait for it, or try again later
	// 1 2
	// true
}
