// Package storetest checks that an implementation of [kvmbackup.Store] keeps the contract.
//
// Every sentence of the contract is a named [Rule] with an explanation, run against a store of its own:
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t testing.TB) storetest.Harness {
//			dir := t.TempDir()
//			st, err := Open(dir)
//			if err != nil {
//				t.Fatal(err)
//			}
//			// The suite uses a second instance for its races, as another process would.
//			open := func() (kvmbackup.Store, error) { return Open(dir) }
//			return storetest.Harness{Store: st, Open: open}
//		}, storetest.Parallel())
//	}
//
// A single rule is run with go test -run 'TestStore/remove/children'. [Rules] lists them.
//
// The package imports the standard library and the root package alone.
package storetest
