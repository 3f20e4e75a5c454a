package crash_test

import (
	"context"

	"github.com/kvmbackup/kvmbackup/repository"
)

// repositoryCalls are the names of the repository's calls, by what it calls them.
var repositoryCalls = map[string]string{
	"probe": "Probe", "create partial": "CreatePartial", "write file": "WriteFile", "open targets": "OpenTargets",
	"publish": "Publish", "published": "Published", "read partial manifest": "PartialManifest", "settle": "Settle",
	"remove partial": "RemovePartial", "remove": "Remove", "read manifest": "ReadManifest",
	"rewrite manifest": "RewriteManifest", "read file": "ReadSideFile", "stat": "Stat", "list files": "Files",
	"list": "List",
}

// aroundCall passes the calls on the folder; their steps pass by themselves, through repository.Options.BeforeStep.
func (g *gate) aroundCall(_ context.Context, op string, call func() error) error {
	if name, ok := repositoryCalls[op]; ok {
		return do(g, "Repository."+name, call)
	}
	return call()
}

// roomy makes room for the zeroes of big disks, which an estimate counts and a backup doesn't store. The repository is
// on another file system than the scratch.
func roomy(s repository.Space) repository.Space {
	s.FreeBytes, s.Device = s.FreeBytes+4*big, ^s.Device
	return s
}
