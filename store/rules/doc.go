// Package rules holds the semantics of [kvmbackup.Store] once, so that every store shares them.
//
// A store that keeps all of a VM as one JSON document, a [State], needs a lock, a load and a save: [NewStateStore]
// makes a whole Store of them. Any other needs three things:
//
//   - a [Tx]: what the rules see and change of one VM inside one atomic transaction.
//   - an [Update] that runs a function in such a transaction. [NewWriter] makes all writing methods of
//     the Store from it.
//   - the reading methods and AckRemoval, as suits its database.
//
// examples/customstore is a whole store in under 150 lines. What a store does of its own is checked by running
// store/storetest against it.
package rules
