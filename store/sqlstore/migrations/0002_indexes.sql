-- Lists of one VM and of all; no sequence is given twice.
CREATE UNIQUE INDEX {{index "backups_sequence"}} ON {{table "backups"}} (vm_id, sequence);
-- The newest record, the running one, and lists by status.
CREATE INDEX {{index "backups_status"}} ON {{table "backups"}} (status, vm_id, sequence);
-- Children.
CREATE INDEX {{index "backups_parent"}} ON {{table "backups"}} (parent_id, sequence);
-- Lists of one chain.
CREATE INDEX {{index "backups_chain"}} ON {{table "backups"}} (chain_id, vm_id, sequence);
-- Never two running records of a VM, whoever writes.
CREATE UNIQUE INDEX {{index "backups_running"}} ON {{table "backups"}} (vm_id) WHERE status = 'running';
-- Acknowledgements.
CREATE INDEX {{index "removals_backup"}} ON {{table "removals"}} (backup_id);
