package engine_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kvmbackup/kvmbackup/engine"
)

// TestEveryMethodHasAnExample: a new verb comes with an example that runs.
func TestEveryMethodHasAnExample(t *testing.T) {
	files, err := filepath.Glob("example*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(text)
	}
	methods := reflect.TypeFor[*engine.Engine]()
	for i := range methods.NumMethod() {
		if name := "func ExampleEngine_" + methods.Method(i).Name + "() {"; !strings.Contains(source.String(), name) {
			t.Errorf("there is no %q", name)
		}
	}
}
