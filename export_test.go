package kvmbackup

// FilesOf is the repository as a Deleter needs it.
func FilesOf(r Repository) Files { return files{r} }
