// Command render turns the output of the benchmarks into the tables and plots of docs/performance.md:
//
//	make bench | go run ./libvirtjob/internal/bench/render
//	go run ./libvirtjob/internal/bench/render bench.txt
//
// What it reads from a pipe it also prints. Each table of the document is between two comments that name it; a table
// for which the output has no figures stays as it is. After a failed benchmark nothing is written.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() {
	docs := flag.String("docs", "docs", "the folder of performance.md and its plots")
	flag.Parse()
	if err := run(*docs, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}

func run(docs, input string) error {
	results, err := read(input)
	if err != nil {
		return err
	}
	path := filepath.Join(docs, "performance.md")
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := fill(string(old), results)
	if err != nil {
		return err
	}
	for name, draw := range plots {
		svg := draw(results)
		if svg == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(docs, name), []byte(svg), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// read parses the named file or, with no name, standard input, which it passes on.
func read(input string) (_ results, err error) {
	if input == "" {
		return parse(io.TeeReader(os.Stdin, os.Stdout))
	}
	f, err := os.Open(input)
	if err != nil {
		return results{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return parse(f)
}
