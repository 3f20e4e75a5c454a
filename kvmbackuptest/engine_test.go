package kvmbackuptest_test

import (
	"testing"

	"github.com/kvmbackup/kvmbackup"
)

func TestFullEvery(t *testing.T) {
	story(t, false, func(t *testing.T, s *teller) {
		for i := range int64(5) {
			s.must(s.write("vda", i, 2))
			s.backup(kvmbackup.Policy{FullEvery: 3})
		}
		s.want("FIIFI")
	})
}
