// Package seal keeps the keys of sealed backups with age (https://age-encryption.org/v1): X25519 recipients and
// identities, and passphrases. A host with keys of its own implements engine.Keys itself and embeds [Files].
//
// A host that only takes backups has recipients alone:
//
//	keys := seal.New()
//	err = keys.AddRecipient(public)
//
// Who restores adds the identities. Nothing of them is kept anywhere, or printed.
//
// What a recipient gets is an age file with three lines, which is itself an identity file for the backup's side files,
// so that age and QEMU's tools are enough to restore by hand:
//
//	# kvmbackup data key: 64 hexadecimal digits
//	# secret of the images: 64 hexadecimal digits
//	AGE-SECRET-KEY-1...
package seal
