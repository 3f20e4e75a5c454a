// Package lab is what the tests of all packages share.
package lab
