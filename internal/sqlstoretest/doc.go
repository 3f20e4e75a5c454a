// Package sqlstoretest holds the tests of sqlstore on real databases. They are not in that package, so that a host
// downloads no driver but its own: "go mod tidy" also asks for what the tests of an imported package need.
package sqlstoretest
