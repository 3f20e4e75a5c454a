// Package enginetest holds the tests of the root and the engine that need no hypervisor: on every kind of store, with
// random histories, and with processes that are killed. They are not in those packages, so that a host that imports
// them has nothing to do with database drivers: "go mod tidy" also asks for what the tests of an imported package need.
package enginetest
