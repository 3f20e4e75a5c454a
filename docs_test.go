package kvmbackup_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocsCompile: every Go block in the documents is an excerpt of Go code that is compiled with the tests.
func TestDocsCompile(t *testing.T) {
	var code []string
	walk(t, ".go", func(_, text string) { code = append(code, squeeze(text)) })
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```")
	walk(t, ".md", func(path, text string) {
		for _, m := range blocks.FindAllStringSubmatch(text, -1) {
			found := false
			for _, c := range code {
				found = found || strings.Contains(c, squeeze(m[1]))
			}
			if !found {
				t.Errorf("%s: this block is in no Go file:\n%s", path, m[1])
			}
		}
	})
}

// TestDocsCommands: what the documents' commands name is there: targets of the Makefile, scripts, packages. The options of
// nasbackup are checked by its own tests.
func TestDocsCommands(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("(?s)```sh\n(.*?)```|`([^`\n]+)`")
	targets := regexp.MustCompile(`\bmake ([a-z][a-z-]*)`)
	paths := regexp.MustCompile(`(?m)(?:^|\s)((?:\./|\.ci/|scripts/)[\w/-]+)`)
	walk(t, ".md", func(path, text string) {
		for _, m := range code.FindAllStringSubmatch(text, -1) {
			for _, found := range targets.FindAllStringSubmatch(m[1]+m[2], -1) {
				if !strings.Contains(string(makefile), "\n"+found[1]+":") {
					t.Errorf("%s: the Makefile has no target %s", path, found[1])
				}
			}
			for _, found := range paths.FindAllStringSubmatch(m[1]+m[2], -1) {
				if _, err := os.Stat(found[1]); err != nil {
					t.Errorf("%s: %v", path, err)
				}
			}
		}
	})
}

// TestDocsErrors: operations.md says of every error of the engine and of the repository what it means and what to do.
func TestDocsErrors(t *testing.T) {
	operations, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, messages, _ := strings.Cut(string(operations), "## Messages")
	sentinels := regexp.MustCompile(`(?m)^\t(Err\w+) += `)
	for _, file := range []string{"errors.go", "repository/errors.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := sentinels.FindAllStringSubmatch(string(source), -1)
		if len(found) == 0 {
			t.Errorf("%s: no errors", file)
		}
		for _, m := range found {
			if !strings.Contains(messages, "`"+m[1]+"`") {
				t.Errorf("docs/operations.md doesn't explain %s of %s", m[1], file)
			}
		}
	}
}

// TestDocsLinks: every relative link in the documents leads somewhere.
func TestDocsLinks(t *testing.T) {
	links := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	walk(t, ".md", func(path, text string) {
		for _, m := range links.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", path, m[1], err)
			}
		}
	})
}

// squeeze makes indentation and line ends count for nothing.
func squeeze(s string) string { return strings.Join(strings.Fields(s), " ") }

func walk(t *testing.T, ext string, f func(path, text string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ext {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil {
			f(path, string(b))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
