package remote_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain lets more rules run at once than there are processors: they mostly wait.
func TestMain(m *testing.M) {
	_ = flag.Set("test.parallel", "8") // the command line still has the last word
	os.Exit(m.Run())
}
