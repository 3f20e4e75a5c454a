// Command pictures draws docs/chain.svg: the life of a chain, as the engine tells it of backups on the simulator.
//
//	go run ./scripts/pictures docs
//
// docs/nasbackup.svg is drawn by the tests of examples/nasbackup. "go generate ./..." draws both.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

//go:generate go run . ../../docs

func main() {
	if err := draw(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pictures:", err)
		os.Exit(1)
	}
}

func draw(ctx context.Context, args []string) (err error) {
	if len(args) != 1 {
		return errors.New("usage: pictures DOCS_FOLDER")
	}
	stages, err := live(ctx)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(args[0], "chain.svg"), []byte(chain(stages)), 0o644)
}
