// Package rules holds the semantics of [kvmbackup.Store] once, so that every store shares them.
//
// A store of a host's own needs three things:
//
//   - a [Tx]: what the rules see and change of one VM inside one atomic transaction. [State] is a
//     ready-made one for stores that load and save all that they keep of a VM as one JSON document.
//   - an [Update] that runs a function in such a transaction. [NewWriter] makes all writing methods of
//     the Store from it.
//   - the reading methods. [NewReader] makes them for stores on [State], all but AckRemoval.
//
// examples/customstore is a whole store in under 150 lines. Whatever a
// store does of its own is to be checked by running store/storetest against it.
package rules
