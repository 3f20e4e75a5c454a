// Package mocks has gomock mocks of the interfaces of package kvmbackup, for unit tests of programs that embed it:
// where the question is only whether something was called, and what comes of its answer.
//
// Where state matters, take the fakes instead: package store/memstore is a Store in memory, and package kvmbackuptest
// a whole simulated hypervisor, so that a test takes real backups of guests that don't exist.
//
// The files are generated; "make generate" makes them again after a change of an interface.
package mocks

//go:generate go run github.com/golang/mock/mockgen@v1.6.0 -source=../store.go -destination=store.go -package=mocks -write_package_comment=false
//go:generate go run github.com/golang/mock/mockgen@v1.6.0 -source=../executor.go -destination=executor.go -package=mocks -write_package_comment=false
//go:generate go run github.com/golang/mock/mockgen@v1.6.0 -source=../engine/images.go -destination=images.go -package=mocks -write_package_comment=false
//go:generate go run github.com/golang/mock/mockgen@v1.6.0 -source=../engine/keys.go -destination=keys.go -package=mocks -write_package_comment=false
//go:generate go run github.com/golang/mock/mockgen@v1.6.0 -source=../engine/decider.go -destination=decider.go -package=mocks -write_package_comment=false
//go:generate go run github.com/golang/mock/mockgen@v1.6.0 -source=../delete.go -destination=delete.go -package=mocks -write_package_comment=false
//go:generate go run github.com/golang/mock/mockgen@v1.6.0 -source=../engine/request.go -destination=request.go -package=mocks -write_package_comment=false
