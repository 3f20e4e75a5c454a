-- What is kept per VM: the active checkpoint, the counters and the lease.
CREATE TABLE {{table "vms"}} (
	vm_id TEXT{{bytewise}} NOT NULL PRIMARY KEY,
	active_checkpoint TEXT NOT NULL,
	last_sequence BIGINT NOT NULL,
	last_stamp TEXT NOT NULL,
	lease_token BIGINT NOT NULL,
	lease_holder TEXT NOT NULL,
	lease_expires_us BIGINT NOT NULL -- microseconds since 1970 UTC on the database's clock; 0: released
);
-- One row per backup. The columns beside record are for finding it and repeat what record says.
CREATE TABLE {{table "backups"}} (
	backup_id TEXT NOT NULL PRIMARY KEY,
	vm_id TEXT{{bytewise}} NOT NULL,
	sequence BIGINT NOT NULL,
	status TEXT NOT NULL, -- running, completed, failed or delete-pending
	chain_id TEXT NOT NULL,
	parent_id TEXT, -- null: none
	record TEXT NOT NULL -- the kvmbackup.Backup as JSON
);
-- Removals that the host has not acknowledged.
CREATE TABLE {{table "removals"}} (
	removal_id {{counter}},
	backup_id TEXT NOT NULL,
	vm_id TEXT NOT NULL,
	stored_bytes BIGINT NOT NULL,
	removed_us BIGINT NOT NULL -- microseconds since 1970 UTC on the database's clock
);
