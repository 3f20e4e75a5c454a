// Package executortest checks that an implementation of [kvmbackup.Executor] keeps the contract: one for another
// hypervisor, one of the host's own for libvirt, or one that passes everything on over a wire.
//
//	func TestSimulator(t *testing.T) {
//		executortest.Run(t, func(t testing.TB) executortest.World {
//			return executortest.NewSimulator(t.TempDir())
//		}, executortest.Parallel())
//	}
//
// A [World] is a hypervisor with one domain, in the hands of its owner: the suite lets it make and start the domain,
// write to its disks, and kill it, and asks the executor what it sees and does. [Simulator] is one, on package
// kvmbackuptest. For an executor that wraps another, embed a world that is there and replace its Executor method.
//
// Every rule is a subtest. Those of the areas inspect, checkpoint, bytes, job, adopt, guest and context are a sentence
// of the contract each. Those of the area history are scripts: a world and the simulator play the same one, step by
// step, each with an engine, and what a user would see is compared after each step; in the end every backup is compared
// with what the disks held. [Rules] lists them; a single one is run with
//
//	go test -run 'TestSimulator/history/everyday'
//
// [Play] plays a history of your own.
//
// The package imports the standard library and packages of this module alone.
package executortest
