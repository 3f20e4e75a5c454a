package kvmbackup_test

import (
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocsCompile: every Go block in the documents and in the packages' comments is of Go code that is compiled: its
// statements, or its declarations, are all in one file. What checks errors between them there may be left out, as may
// comments.
func TestDocsCompile(t *testing.T) {
	code := map[string]string{}
	var docs []string
	walk(t, ".go", func(path, text string) {
		code[path] = tokens(text)
		for _, block := range commentBlocks(text) {
			if strings.Contains(block, ":= ") || strings.Contains(block, " = ") || strings.Contains(block, "func ") {
				docs = append(docs, path+"\x00"+block)
			}
		}
	})
	walk(t, ".md", func(path, text string) {
		if path == "docs/embed.md" {
			return // it is a program of its own, which scripts/check-outside compiles and runs
		}
		for _, m := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(text, -1) {
			docs = append(docs, path+"\x00"+m[1])
		}
	})
	for _, d := range docs {
		path, block, _ := strings.Cut(d, "\x00")
		parts, err := goParts(block)
		if err != nil {
			t.Errorf("%s: %v in\n%s", path, err, block)
		}
		if missing := missingFrom(code, parts); missing != "" {
			t.Errorf("%s: no Go file has all of this block, as this:\n%s\nof\n%s", path, missing, block)
		}
	}
}

// commentBlocks returns the indented blocks of a file's comments.
func commentBlocks(text string) []string {
	var blocks []string
	block := ""
	for line := range strings.Lines(text) {
		code, indented := strings.CutPrefix(line, "//\t")
		switch {
		case indented:
			block += code
		case block != "" && line == "//\n": // a blank line, or the block's end
			block += "\n"
		case block != "":
			blocks, block = append(blocks, block), ""
		}
	}
	return blocks
}

// goParts parses a block as a function's statements, or as declarations, and returns the tokens of each.
func goParts(block string) ([]string, error) {
	block = regexp.MustCompile(`(?m)^\s*\.\.\..*$`).ReplaceAllString(block, "")
	set := token.NewFileSet()
	const head = "package p\n"
	var nodes []ast.Node
	source := head + block
	if f, err := parser.ParseFile(set, "", source, 0); err == nil {
		for _, d := range f.Decls {
			nodes = append(nodes, d)
		}
	} else {
		source = head + "func f() {\n" + block + "\n}"
		f, err := parser.ParseFile(set, "", source, 0)
		if err != nil {
			return nil, err
		}
		for _, s := range f.Decls[0].(*ast.FuncDecl).Body.List {
			nodes = append(nodes, s)
		}
	}
	var parts []string
	for _, n := range nodes {
		parts = append(parts, tokens(source[set.Position(n.Pos()).Offset:set.Position(n.End()).Offset]))
	}
	return parts, nil
}

// missingFrom returns the first part that the best of the files doesn't have, or "" if one has all.
func missingFrom(code map[string]string, parts []string) (missing string) {
	best := -1
	for _, c := range code {
		n := slices.IndexFunc(parts, func(p string) bool { return !strings.Contains(c, p) })
		if n < 0 {
			return ""
		}
		if n > best {
			best, missing = n, parts[n]
		}
	}
	return missing
}

// tokens makes spaces, line ends and comments count for nothing.
func tokens(source string) string {
	var s scanner.Scanner
	set := token.NewFileSet()
	s.Init(set.AddFile("", -1, len(source)), []byte(source), nil, 0)
	var all strings.Builder
	for {
		_, tok, lit := s.Scan()
		switch {
		case tok == token.EOF:
			return all.String()
		case tok == token.SEMICOLON && lit == "\n":
		case lit != "":
			all.WriteString(lit + " ")
		default:
			all.WriteString(tok.String() + " ")
		}
	}
}

// TestDocsCommands: what the documents' commands name is there: targets of the Makefile, scripts, packages. The options
// of nasbackup are checked by its own tests.
func TestDocsCommands(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("(?s)```sh\n(.*?)```|`([^`\n]+)`")
	targets := regexp.MustCompile(`\bmake ([a-z][a-z-]*)`)
	paths := regexp.MustCompile(`(?m)(?:^|\s)((?:\./|\.ci/|scripts/)[\w./-]*[\w/])`)
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

// TestDocsErrors: operations.md says of every error of the engine and of the repository what it means and what to do,
// and of no error that doesn't exist.
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
	known := map[string]bool{}
	walk(t, ".go", func(_, text string) {
		for _, m := range regexp.MustCompile(`(?m)^(?:var |\t)(Err\w+) += `).FindAllStringSubmatch(text, -1) {
			known[m[1]] = true
		}
	})
	for _, m := range regexp.MustCompile("`(Err\\w+)`").FindAllStringSubmatch(messages, -1) {
		if !known[m[1]] {
			t.Errorf("docs/operations.md explains %s, which doesn't exist", m[1])
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
