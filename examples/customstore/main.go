// Command customstore shows a store of a host's own: one JSON file per VM in a folder. It keeps the rules by
// leaving them to package rules; all that it brings is a lock, reading a file and replacing a file.
//
//	customstore FOLDER
//
// lists the records in the folder.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/kvmbackup/kvmbackup"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: customstore FOLDER")
	}
	ctx := context.Background()
	st, err := Open(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	list, err := st.List(ctx, kvmbackup.Query{})
	if err != nil {
		log.Fatal(err)
	}
	for _, b := range list {
		fmt.Println(b.VM, b.Sequence, b.ID, b.Kind, b.Status, b.Path)
	}
}
