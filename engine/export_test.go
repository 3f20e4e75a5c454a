package engine

import "github.com/kvmbackup/kvmbackup"

// FilesOf is the repository as a Deleter needs it.
func FilesOf(r Repository) kvmbackup.Files { return files{r} }

// Translate is what every error of an operation goes through.
var Translate = translate
