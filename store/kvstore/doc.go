// Package kvstore is a [kvmbackup.Store] over a table of details that the host has: names and values on a virtual
// machine and on a backup, as CloudStack-like managers keep them. It adds no column and no table.
//
// The host implements [KV]; examples/detailstore does it over SQL in some eighty lines.
//
// # What is kept where
//
// One value per VM, [KeyHead] on the VM object, is the commit point: it holds the lease, the active checkpoint, the
// counters and the name of the current index, and it changes by compare-and-set only. The index is a tree over the VM's
// backups, by their sequences, over who has which children, and over the removals that the host has not acknowledged.
// Its pages are of one value each. A write changes the pages from the root to what it changes: they and the records are
// written under names that were never used before, then the head is exchanged, then what it no longer names is removed.
// So whatever is interrupted, readers see all of a write or nothing of it.
//
// The details that the field knows, such as nas.chain_id on the backup and nas.active_checkpoint_id on the VM, are
// copies for the host's own eyes, as kvmbackup.Backup.Details writes them. They are brought up to date after each
// write; the head says when they are not, and the next reader or writer finishes that first. The
// store never reads them back. Details that others keep on the same objects are left alone, and so are backups
// that have no details of this store, as an earlier full-only feature left them.
//
// # Limits
//
// Values are at most Config.MaxValueBytes long; longer things are split. What a backup reads and writes grows with the
// depth of the index alone, which is four pages for a thousand backups. Hosts with an SQL database and the right to add
// tables are better served by store/sqlstore all the same.
package kvstore
