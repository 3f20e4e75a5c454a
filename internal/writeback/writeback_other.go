//go:build !(linux && (amd64 || arm64 || riscv64 || s390x || loong64))

package writeback

import "os"

func begin(*os.File) {}
