// Package rules holds the semantics of [kvmbackup.Store] once, so that every store shares them.
//
// A store of a host's own needs three things:
//
//   - a [Tx]: what the rules see and change of one VM inside one atomic transaction. [State] is a
//     ready-made one for stores that load and save all that they keep of a VM as one JSON document.
//   - an [Update] that runs a function in such a transaction. [NewWriter] makes all writing methods of
//     the Store from it.
//   - the reading methods. For stores on [State] they are one call each.
//
// Package store/memstore is the smallest example, examples/customstore one that keeps files. Whatever a
// store does of its own is to be checked by running store/storetest against it.
package rules
